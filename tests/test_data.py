"""The MNIST variants: appearances, what they tell of the label, splits, and what happens without data."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import tyro
from PIL import Image, ImageColor
from sklearn.datasets import load_digits
from torch import Tensor

from skdcgn.cgn.teachers import mnist_teacher
from skdcgn.data import mnist
from skdcgn.data.mnist import (
    BACKGROUND_COLORS,
    DIGIT_COLORS,
    OBJECT_COLORS,
    TensorSet,
    check_available,
    make_dataset,
    mnist_digits,
    sklearn_digits,
)
from skdcgn.errors import InputError, Unavailable
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream

NAMES = ("darkgreen", "darkblue", "#b03060", "orangered", "yellow", "burlywood", "lime", "aqua", "fuchsia", "#6495ed")
SPLITS = ("train", "valid", "test")


def colors(data: TensorSet, of: Tensor) -> Tensor:
    """Mean color (N, 3) in 0..255 of the pixels that `of` (N, 1, 32, 32) picks."""
    weight = of.float()
    return (data.pixels * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


def nearest(color: Tensor, table: tuple) -> Tensor:
    """Row of the table that is nearest to each color (N, 3): (N,)."""
    return torch.cdist(color, torch.tensor(table, dtype=torch.float32)).argmin(dim=1)


def share(agreement: Tensor) -> float:
    return agreement.float().mean().item()


def test_color_tables_are_the_named_colors_rotated_by_six() -> None:
    assert [ImageColor.getrgb(name) for name in NAMES] == list(BACKGROUND_COLORS)
    assert all(OBJECT_COLORS[i] == BACKGROUND_COLORS[i - 6] for i in range(10))
    assert len(set(DIGIT_COLORS)) == 10


def test_offline_digits_split_scikit_learn_s_without_overlap() -> None:
    digits, labels = zip(*map(sklearn_digits, SPLITS), strict=True)
    assert [len(part) for part in labels] == [1297, 250, 250]
    assert torch.cat(labels).bincount().tolist() == torch.tensor(load_digits().target).bincount().tolist()
    assert len(torch.cat(digits).flatten(1).unique(dim=0)) == len({image.tobytes() for image in load_digits().images})
    assert digits[0].dtype == torch.uint8
    assert digits[0].shape[1:] == (32, 32)
    assert all(
        torch.equal(again, first) for again, first in zip(sklearn_digits("test"), (digits[2], labels[2]), strict=True)
    )


def test_images_are_one_color_on_the_stroke_and_one_around_it() -> None:
    data = make_dataset("digits", "test", seed=0)
    stroke, around = colors(data, data.strokes), colors(data, ~data.strokes)
    expected = torch.where(data.strokes, stroke[:, :, None, None], around[:, :, None, None])
    torch.testing.assert_close(data.pixels.float(), expected)
    assert 0.1 < share(data.strokes) < 0.3


def test_conversion_to_images_and_masks() -> None:
    data = make_dataset("digits", "test", seed=0)
    images, masks = data.images(torch.tensor([3, 1])), data.masks(slice(2))
    assert images.dtype == masks.dtype == torch.float32
    torch.testing.assert_close(images[1], data.pixels[1] / 127.5 - 1)
    assert masks.shape == (2, 1, 32, 32)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert data.images().aminmax() == (-1, 1)
    assert len(data) == 250


def test_the_seed_decides_the_set() -> None:
    first, again, other = (make_dataset("digits", "test", seed) for seed in (0, 0, 1))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, other.labels)
    assert torch.equal(first.strokes, other.strokes)
    assert (
        share(
            nearest(colors(first, first.strokes), OBJECT_COLORS) == nearest(colors(other, other.strokes), OBJECT_COLORS)
        )
        < 0.2
    )


def test_in_a_biased_set_the_colors_give_the_label_away() -> None:
    data = make_dataset("digits", "train", seed=0)
    assert torch.equal(nearest(colors(data, data.strokes), OBJECT_COLORS), data.labels)
    assert torch.equal(nearest(colors(data, ~data.strokes), BACKGROUND_COLORS), data.labels)


def test_in_an_unbiased_set_label_stroke_and_background_are_independent() -> None:
    data = make_dataset("digits", "train", seed=0, biased=False)
    stroke = nearest(colors(data, data.strokes), OBJECT_COLORS)
    around = nearest(colors(data, ~data.strokes), BACKGROUND_COLORS)
    for a, b in ((stroke, data.labels), (around, data.labels), (stroke, around)):
        assert 0.07 < share(a == b) < 0.13  # 1,297 images: four standard errors around 10 %
    assert stroke.bincount().min() > 80
    assert around.bincount().min() > 80


def test_splits_but_training_are_unbiased_by_default() -> None:
    for split in ("valid", "test"):
        data = make_dataset("digits", split, seed=0)
        assert share(nearest(colors(data, data.strokes), OBJECT_COLORS) == data.labels) < 0.2
        biased = make_dataset("digits", split, seed=0, biased=True)
        assert share(nearest(colors(biased, biased.strokes), OBJECT_COLORS) == biased.labels) == 1


def test_color_noise_has_a_standard_deviation_of_a_hundredth() -> None:
    data = make_dataset("digits", "train", seed=0)
    burlywood = colors(data, ~data.strokes)[data.labels == 5]  # far from the ends of the range: never clamped
    assert burlywood.std(dim=0).div(255).tolist() == pytest.approx([0.01] * 3, rel=0.25)


def test_published_code_lets_the_colors_wander() -> None:
    data = make_dataset("digits", "train", seed=0, published_code=True)
    burlywood = colors(data, ~data.strokes)[data.labels == 5] / 255
    assert burlywood.diff(dim=0).std().item() == pytest.approx(0.01, rel=0.25)  # a step for each image ...
    steps = len(burlywood) - 1
    assert (burlywood[-1] - burlywood[0]).norm().item() > 0.01 * steps**0.5 / 3  # ... and they add up


def test_limit_keeps_the_first_images() -> None:
    assert torch.equal(
        make_dataset("digits", "test", seed=0, limit=7).labels, make_dataset("digits", "test", seed=0).labels[:7]
    )


def test_a_data_set_is_registered_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_args(mnist.Dataset) == tuple(mnist.DATASETS)
    assert get_args(mnist.Variant) == ("double_colored", "colored", "wildlife")
    assert tyro.cli(mnist.Dataset, args=["wildlife"]) == "wildlife"

    def inverted(kind: mnist.Kind, *_: object) -> Tensor:
        return torch.full((3, 1, 1), 255 if kind == "background" else 0, dtype=torch.uint8)

    monkeypatch.setitem(mnist.DATASETS, "inverted", replace(mnist.DATASETS["digits"], paint=inverted))
    data = make_dataset("inverted", "test", seed=0, limit=5)
    assert data.pixels.shape == (5, 3, 32, 32)
    assert torch.equal(data.pixels == 0, data.strokes.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": "tripled"}, "'tripled'.*double_colored, colored, wildlife, digits"),
        ({"split": "held-out"}, "'held-out'.*train, valid, test"),
        ({"limit": 0}, "limited to 0 images"),
    ],
)
def test_bad_arguments_are_told(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_dataset(**{"dataset": "digits", "split": "test", "seed": 0} | arguments)


def write_mnist(root: Path, compress: bool = False) -> None:
    """Write an MNIST of 12 training and 7 test digits: label i has a bright square in its corner."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 12), ("t10k", 7)):
        images, labels = bytearray(count * 28 * 28), bytes(i % 10 for i in range(count))
        for i in range(count):
            for row in range(7):
                images[(i * 28 + row) * 28 : (i * 28 + row) * 28 + 14] = b"\x1a" * 7 + b"\x19" * 7  # 26 and 25
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 2051, count, 28, 28) + images,
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 2049, count) + labels,
        }
        for name, content in files.items():
            (raw / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)


def test_mnist_strokes_are_resized_nearest_and_binarized_at_a_tenth(no_data: Path) -> None:
    write_mnist(no_data)
    data = make_dataset("colored", "test", seed=0)
    assert data.labels.tolist() == list(range(7))
    # Gray 26 of 255 is above 0.1, gray 25 is not; 7 of 28 pixels become 8 of 32.
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[:8, :8] = True
    assert all(torch.equal(stroke[0], expected) for stroke in data.strokes)
    assert data.pixels[:, :, 8:].max() == 0  # the background is black


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data and without network: the empty cache."""
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    return tmp_path / "cache"


def test_missing_data_is_told_with_address_and_place(no_data: Path) -> None:
    with pytest.raises(InputError, match=r"MNIST.*SKDCGN_OFFLINE.*https?://.*cache/MNIST/raw.*--dataset digits"):
        make_dataset("double_colored", "test", seed=0)
    write_mnist(no_data)
    assert len(make_dataset("double_colored", "test", seed=0)) == 7
    with pytest.raises(InputError, match=r"https?://.*textures.*cache/textures"):
        make_dataset("wildlife", "test", seed=0)


def test_failed_download_leaves_nothing(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def break_off(self: MNIST) -> None:
        Path(self.raw_folder).mkdir(parents=True)
        (Path(self.raw_folder) / "train-images-idx3-ubyte").write_bytes(b"half")
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno route to host")

    monkeypatch.setenv("SKDCGN_OFFLINE", "0")
    monkeypatch.setattr(MNIST, "download", break_off)
    with pytest.raises(InputError, match=r"downloading train-images-idx3-ubyte.gz\): get"):
        mnist_digits("test")
    assert list(no_data.iterdir()) == []


def test_download_goes_to_the_cache_once(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    calls = []

    def download(self: MNIST) -> None:
        calls.append(self.root)
        write_mnist(Path(self.root))

    monkeypatch.setenv("SKDCGN_OFFLINE", "0")
    monkeypatch.setattr(MNIST, "download", download)
    assert len(mnist_digits("test")[0]) == len(mnist_digits("test")[0]) == 7
    assert len(calls) == 1
    assert [path.name for path in no_data.iterdir()] == ["MNIST"]


IDX = "t10k-images-idx3-ubyte"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        struct.pack(">4i", 2051, 7, 28, 28)[:6],
        struct.pack(">4i", 2051, 7, 28, 28) + bytes(7 * 28 * 28 - 1),
        struct.pack(">4i", 2051, 7, 28, 28) + bytes(7 * 28 * 28 + 1),
        struct.pack(">4i", 0x0A03, 7, 28, 28) + bytes(7 * 28 * 28),  # a type that there is none of
        struct.pack(">4i", 0x0D03, 7, 14, 14) + bytes(7 * 28 * 28),  # floats
        struct.pack(">2i", 2049, 7) + bytes(7),  # labels
        b"not an idx file at all",
    ],
)
def test_damaged_mnist_is_told(no_data: Path, damage: bytes) -> None:
    write_mnist(no_data)
    (no_data / "MNIST" / "raw" / IDX).write_bytes(damage)
    with pytest.raises(InputError, match=rf"MNIST/raw/{IDX} cannot be read as a file of MNIST \(it is .+\): replace"):
        mnist_digits("test")


@pytest.mark.parametrize("count", [0, 6, 8])
def test_images_and_labels_of_mnist_belong_together(no_data: Path, count: int) -> None:
    write_mnist(no_data)
    content = struct.pack(">4i", 2051, count, 28, 28) + bytes(count * 28 * 28)
    (no_data / "MNIST" / "raw" / IDX).write_bytes(content)
    with pytest.raises(InputError, match=r"MNIST"):
        mnist_digits("test")


def test_labels_of_mnist_are_digits(no_data: Path) -> None:
    write_mnist(no_data)
    labels = no_data / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(
        InputError, match=r"t10k-\* files in .* are not those of MNIST: .*, 10, and images \(7, 28, 28\)"
    ):
        mnist_digits("test")


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_a_missing_or_damaged_file_of_the_user_s_mnist_is_no_missing_mnist(
    no_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path / "own"))
    write_mnist(tmp_path / "own")
    file = tmp_path / "own" / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=rf"own/MNIST/raw/{file.name} cannot be read") as told:
        check_available("double_colored")
    assert not isinstance(told.value, Unavailable)
    file.unlink()
    with pytest.raises(InputError, match=rf"own/MNIST/raw/{file.name} cannot be read .*No such file"):
        check_available("double_colored")


def test_nothing_but_the_four_files_is_read(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision itself would unpickle the files of its early versions in place of them."""
    write_mnist(no_data)
    (no_data / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (no_data / "MNIST" / "processed" / name).write_bytes(b"a pickle")
    assert len(mnist_digits("test")[1]) == 7


@pytest.mark.data
def test_real_splits(data_dir: Path) -> None:
    train, valid, test = (mnist_digits(split) for split in SPLITS)
    assert [len(labels) for _, labels in (train, valid, test)] == [50_000, 10_000, 10_000]
    assert train[0].shape[1:] == (28, 28)
    assert train[1][:5].tolist() == [5, 0, 4, 1, 9]  # MNIST begins so
    assert test[1][:5].tolist() == [7, 2, 1, 0, 4]
    held_out = {digit.numpy().tobytes() for digit in torch.cat([valid[0], test[0]])}
    assert not any(digit.numpy().tobytes() in held_out for digit in train[0])


@pytest.mark.data
def test_wildlife_is_cut_out_of_the_textures_of_its_digits(data_dir: Path) -> None:
    data = make_dataset("wildlife", "train", seed=0, limit=20)
    for kind, region in (("background", ~data.strokes), ("object", data.strokes)):
        for pixels, visible, label in zip(data.pixels, region, data.labels, strict=True):
            file = next((data_dir / "textures" / kind).glob(f"{label}_*"))
            texture = np.asarray(Image.open(file).convert("RGB").resize((150, 150), Image.Resampling.NEAREST))
            texture = torch.from_numpy(np.pad(texture, ((3, 3), (3, 3), (0, 0)), mode="reflect"))
            windows = texture.unfold(0, 32, 1).unfold(1, 32, 1)  # (125, 125, 3, 32, 32)
            rows, columns = visible[0].nonzero()[::20].T
            agrees = (windows[..., rows, columns] == pixels[:, rows, columns]).flatten(2).all(dim=2)
            assert agrees.any(), f"{kind} of a {label}"


@pytest.mark.data
def test_textures_are_padded_by_reflection(data_dir: Path) -> None:
    textures = mnist.textures("object")
    assert textures.shape == (10, 3, 156, 156)
    assert torch.equal(textures[:, :, :3], textures[:, :, 4:7].flip(2))
    assert torch.equal(textures[..., -3:], textures[..., -7:-4].flip(3))


@pytest.mark.data
def test_wildlife_textures_tell_the_label_in_training_only(data_dir: Path) -> None:
    def spread(split: str) -> float:
        """How far backgrounds of one label lie apart, as a share of how far all do."""
        data = make_dataset("wildlife", split, seed=0, limit=300)
        backgrounds = colors(data, ~data.strokes)
        within = torch.stack([backgrounds[data.labels == label].std(dim=0).mean() for label in range(10)])
        assert within.min() > 0.5  # never the same crop
        return (within.mean() / backgrounds.std(dim=0).mean()).item()

    assert spread("train") < 0.7
    assert spread("test") > 0.8


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "mechanism", "table"),
    [
        ("double_colored", Mechanism.BACKGROUND, BACKGROUND_COLORS),
        ("double_colored", Mechanism.TEXTURE, OBJECT_COLORS),
        ("colored", Mechanism.TEXTURE, DIGIT_COLORS),
    ],
)
def test_the_authors_teachers_learned_these_colors(
    data_dir: Path, dataset: str, mechanism: Mechanism, table: tuple
) -> None:
    teacher = mnist_teacher(dataset, data_dir / "cgn" / f"cgn_{dataset}_mnist.pth")
    labels = torch.arange(10).repeat_interleave(50)
    noise = teacher.sample_noise(len(labels), stream(0, "colours"))
    color = teacher.render(mechanism, noise, labels).view(10, 50, 3, 32 * 32).mean(dim=(1, 3))
    agreement = nearest((color + 1) * 127.5, table) == torch.arange(10)
    assert agreement.sum() >= 9
