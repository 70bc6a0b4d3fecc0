"""The public ImageNet folders: readers, their mappings, views of images, and the miniature counterparts."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.data import imagenet
from skdcgn.data import miniature as miniature_data
from skdcgn.data.imagenet import CUE_CONFLICT_CATEGORIES, center_crop, cue_conflict, image_folder, in9, in9_map
from skdcgn.data.miniature import CATEGORIES, Composites, WildlifeDigits, scenery
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream


class PlainScenery:
    """Ten classes whose images say in their three channels which shape, texture and background they are of."""

    name = "plain scenery"
    sha256 = ""
    num_classes = 10

    def draw(self, split: str, labels: dict[Mechanism, Tensor], generator: torch.Generator) -> Tensor:
        channels = torch.stack([20 * labels[mechanism] for mechanism in Mechanism], dim=1)
        return channels[:, :, None, None].expand(-1, -1, 8, 8).to(torch.uint8)


def _image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def test_image_folder_numbers_sorted_classes_and_files(tmp_path: Path) -> None:
    for name in ("n02/b.JPEG", "n02/a.png", "n01/c.jpg"):
        _image(tmp_path / name)
    (tmp_path / "n01" / "notes.txt").write_text("no image")
    found = image_folder(tmp_path)
    assert [path.name for path in found.paths] == ["c.jpg", "a.png", "b.JPEG"]
    assert found.labels.tolist() == [0, 1, 1]
    assert found.classes == ("n01", "n02")
    assert len(image_folder(tmp_path, limit=1)) == 2


def test_bad_image_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no folders of classes"):
        image_folder(tmp_path)
    (tmp_path / "n01").mkdir()
    with pytest.raises(InputError, match="has no images"):
        image_folder(tmp_path)


@pytest.mark.parametrize("damage", ["none", "truncated", "vast"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    _image(tmp_path / "bad.png", (64, 64))
    content = (tmp_path / "bad.png").read_bytes()
    header = struct.pack(">4s2I5B", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)  # a picture of gigabytes
    vast = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    damaged = {"none": b"not an image", "truncated": content[:-20], "vast": vast}
    (tmp_path / "bad.png").write_bytes(damaged[damage])
    with pytest.raises(InputError, match=r"bad\.png cannot be read as an image"):
        imagenet.read_image(tmp_path / "bad.png")


def test_gray_images_become_rgb(tmp_path: Path) -> None:
    _image(tmp_path / "gray.png", (6, 4), "L")
    assert imagenet.read_image(tmp_path / "gray.png").shape == (3, 4, 6)


def test_categories_are_those_of_geirhos() -> None:
    counts = {name: len(members) for name, members in CUE_CONFLICT_CATEGORIES.items()}
    assert len(counts) == 16
    assert (counts["bird"], counts["dog"], sum(counts.values())) == (49, 109, 207)
    members = [label for labels in CUE_CONFLICT_CATEGORIES.values() for label in labels]
    assert len(set(members)) == len(members)
    # Of ImageNet's birds robin and hen, but neither jay nor kite; of its dogs the collie, but no dalmatian, no dingo.
    assert {15, 17, 21, 8} & set(CUE_CONFLICT_CATEGORIES["bird"]) == {15, 8}
    assert {231, 251, 273} & set(CUE_CONFLICT_CATEGORIES["dog"]) == {231}


def test_cue_conflict_leaves_out_what_does_not_conflict(tmp_path: Path) -> None:
    for name in ("cat/cat1-dog2.png", "cat/cat2-cat3.png", "dog/dog10-airplane1.png"):
        _image(tmp_path / name)
    stimuli = cue_conflict(tmp_path)
    assert len(stimuli.classes) == 16
    assert [path.name for path in stimuli.paths] == ["cat1-dog2.png", "dog10-airplane1.png"]
    assert [stimuli.classes[label] for label in stimuli.labels] == ["cat", "dog"]
    assert [stimuli.classes[label] for label in stimuli.textures] == ["dog", "airplane"]
    assert stimuli.categories[stimuli.classes.index("airplane")] == (404,)


@pytest.mark.parametrize("name", ["cat/dog1-cat1.png", "cat/cat1.png", "cat/cat1-tree1.png", "tree/tree1-cat1.png"])
def test_other_files_are_no_stimuli(tmp_path: Path, name: str) -> None:
    _image(tmp_path / name)
    with pytest.raises(InputError, match="is no cue-conflict stimulus"):
        cue_conflict(tmp_path)


def test_a_folder_without_stimuli(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no cue-conflict stimuli"):
        cue_conflict(tmp_path)


def test_in9_reads_its_own_map(tmp_path: Path) -> None:
    for folder in ("00_dog", "01_bird", "02_wheeled vehicle"):
        _image(tmp_path / "mixed_rand" / "val" / folder / "fg_n1_bg_n2.JPEG")
    assert in9(tmp_path, "mixed_rand").labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"get in_to_in9\.json from https"):
        in9_map(tmp_path, 3)
    (tmp_path / "in_to_in9.json").write_text(json.dumps({"0": 1, "1": -1, "2": 0}))
    assert in9_map(tmp_path, 3).tolist() == [1, -1, 0]
    with pytest.raises(InputError, match="does not map the classes 0 to 3"):
        in9_map(tmp_path, 4)
    (tmp_path / "in_to_in9.json").write_text("[1, 2")
    with pytest.raises(InputError, match="does not map"):
        in9_map(tmp_path, 3)
    (tmp_path / "in_to_in9.json").write_text(json.dumps({"0": 1, "1": 9, "2": 0}))
    with pytest.raises(InputError, match="names classes that IN-9 does not have"):
        in9_map(tmp_path, 3)


def test_other_folders_are_not_in9(tmp_path: Path) -> None:
    _image(tmp_path / "mixed_same" / "val" / "dog" / "a.png")
    with pytest.raises(InputError, match="where IN-9 has 00_dog"):
        in9(tmp_path, "mixed_same")


def test_center_crop_is_the_middle() -> None:
    image = torch.zeros(3, 40, 64, dtype=torch.uint8)
    image[:, :, 32:] = 200
    view = center_crop(image, 28)
    assert view.shape == (3, 28, 28)
    assert view[:, :, :10].max() == 0
    assert view[:, :, -10:].min() == 200
    untouched = torch.randint(256, (3, 28, 28), dtype=torch.uint8, generator=stream(0, "image"))
    assert torch.equal(center_crop(untouched, 28), untouched)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_random_crops_of_any_image(height: int, width: int, seed: int) -> None:
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    view = imagenet.random_crop(image, 16, stream(seed, "crop"))
    assert view.shape == (3, 16, 16)
    assert (view == 77).all()


def test_random_crops_repeat_with_their_generator() -> None:
    image = torch.randint(256, (3, 40, 50), dtype=torch.uint8, generator=stream(0, "image"))
    first, second, other = (imagenet.random_crop(image, 16, stream(seed, "crop")) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_miniature_sets_have_the_public_formats(tmp_path: Path) -> None:
    folders = miniature_data.write_all(tmp_path, PlainScenery(), per_class=20)
    sets = imagenet.robustness_sets(*folders, CATEGORIES)
    assert (len(sets.train), len(sets.validation)) == (200, 100)
    assert {name: len(images) for name, images in sets.in9.items()} == dict.fromkeys(imagenet.IN9_VARIATIONS, 90)
    assert sets.in9_map.tolist() == [*range(9), -1]
    assert len(sets.stimuli) == 90

    def channels(images: imagenet.ImageSet) -> list[list[int]]:
        return [(imagenet.read_image(path)[:, 0, 0].long() // 20).tolist() for path in images.paths]

    assert all(each == [label] * 3 for each, label in zip(channels(sets.train), sets.train.labels, strict=True))
    mixed = channels(sets.in9["mixed_rand"])
    assert all(shape == texture for shape, texture, _ in mixed)
    assert 0 < sum(shape == background for shape, _, background in mixed) < 30
    assert all(shape == background for shape, _, background in channels(sets.in9["mixed_same"]))
    for (shape, texture, background), label, cue in zip(
        channels(sets.stimuli), sets.stimuli.labels, sets.stimuli.textures, strict=True
    ):
        assert (CATEGORIES[sets.stimuli.classes[label]], CATEGORIES[sets.stimuli.classes[cue]]) == (
            (shape,),
            (texture,),
        )
        assert texture == background


def test_miniature_sets_are_written_once_and_whole(tmp_path: Path) -> None:
    first = miniature_data.cue_conflict(tmp_path, PlainScenery(), per_pair=1)
    stamp = first.stat().st_mtime_ns
    assert miniature_data.cue_conflict(tmp_path, PlainScenery(), per_pair=1) == first
    assert first.stat().st_mtime_ns == stamp
    assert miniature_data.cue_conflict(tmp_path, PlainScenery(), per_pair=2) != first

    class Failing(PlainScenery):
        name = "failing"

        def draw(self, *_: object) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        miniature_data.cue_conflict(tmp_path, Failing())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_identity_tells_sets_of_other_pictures_apart(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    plain, composed = (
        imagenet.robustness_sets(*miniature_data.write_all(tmp_path, source, per_class=2), CATEGORIES).identity
        for source in (PlainScenery(), Composites(random_teacher))
    )
    assert plain != composed


def test_composites_where_there_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_teacher: MNISTTeacher
) -> None:
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    source, reason = scenery(lambda: random_teacher)
    assert source.name == "composites of the random CGN"
    assert "because" in reason
    folder = miniature_data.real_images(tmp_path, source, per_class=2, validation_per_class=1)
    assert len(image_folder(folder / "train")) == 20
    again = Composites(random_teacher).draw(
        "train", dict.fromkeys(Mechanism, torch.arange(10).repeat(2)), stream(0, "real images", "train")
    )
    assert torch.equal(imagenet.read_image(folder / "train/n00000003/n00000003_1.png"), again[13])


@pytest.mark.data
def test_wildlife_digits_have_the_labels_asked_for(data_dir: Path) -> None:
    digits = WildlifeDigits()
    labels = torch.arange(10).repeat(3)
    mechanisms = {
        Mechanism.SHAPE: labels,
        Mechanism.TEXTURE: torch.zeros_like(labels),
        Mechanism.BACKGROUND: torch.full_like(labels, 4),
    }
    images = digits.draw("train", mechanisms, stream(0, "digits"))
    assert images.shape == (30, 3, 32, 32)
    assert torch.equal(images, digits.draw("train", mechanisms, stream(0, "digits")))
    assert not torch.equal(images, digits.draw("test", mechanisms, stream(0, "digits")))
    red, _, blue = images[:, :, 0].float().mean(dim=(0, 2))  # the first rows are background 4, brown
    assert red > 2 * blue
