"""The ImageNet teacher: lazy, bounded, told apart by its truncation; its stand-in; subsets of classes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cgn_imagenet import write_full_checkpoint

from skdcgn.cgn import teachers as cgn_teachers
from skdcgn.cgn.imagenet import MINIATURE, PARTS, PARTS_OF, ImageNetCGN
from skdcgn.cgn.teachers import ImageNetTeacher, imagenet_teacher, miniature, miniature_teacher
from skdcgn.data.labels import select_classes
from skdcgn.errors import InputError
from skdcgn.mechanisms import MASK_EPSILON, Mechanism
from skdcgn.randomness import stream


@pytest.fixture(scope="module")
def teacher() -> ImageNetTeacher:
    return miniature(stream(0, "test"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "cgn.pth"
    torch.save(ImageNetCGN(MINIATURE, stream(0, "test")).state_dict(), path)
    return path


@pytest.fixture
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the authors' weights."""
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)


def held(teacher: ImageNetTeacher, mechanism: Mechanism) -> set[str]:
    return {part for part in PARTS if hasattr(teacher.network(mechanism), part)}


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_renders_in_range_whatever_the_batch(
    teacher: ImageNetTeacher, mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, labels = teacher.sample_noise(5, stream(0, "noise")), torch.arange(5)
    output = teacher.render(mechanism, noise, labels)
    assert output.shape == (5, mechanism.channels, 32, 32)
    assert output.dtype == torch.float32
    assert not output.requires_grad
    low, high = (MASK_EPSILON, 1 - MASK_EPSILON) if mechanism is Mechanism.SHAPE else (-1, 1)
    assert low <= output.min() <= output.max() <= high
    assert torch.equal(output, teacher.render(mechanism, noise, labels))
    monkeypatch.setattr(cgn_teachers, "images_at_once", lambda resolution: 2)
    torch.testing.assert_close(output, teacher.render(mechanism, noise, labels), rtol=1e-4, atol=1e-5)


def test_only_the_mechanism_asked_for_is_in_memory(checkpoint: Path) -> None:
    read = []

    def load(mechanism: Mechanism) -> ImageNetCGN:
        read.append(mechanism)
        return ImageNetCGN.load(checkpoint, MINIATURE, PARTS_OF[mechanism])

    teacher = ImageNetTeacher(load, MINIATURE, "lazy", "0" * 64)
    noise, labels = teacher.sample_noise(2, stream(0, "noise")), torch.arange(2)
    assert read == []
    for mechanism in Mechanism:
        teacher.render(mechanism, noise, labels)
        teacher.render(mechanism, noise, labels)
        assert held(teacher, mechanism) == set(PARTS_OF[mechanism])
        assert not any(parameter.requires_grad for parameter in teacher.network(mechanism).parameters())
    assert read == list(Mechanism)


def test_a_whole_network_is_asked_for_once(teacher: ImageNetTeacher) -> None:
    networks = {teacher.network(mechanism) for mechanism in Mechanism}
    assert len(networks) == 1
    counts = [teacher.parameters(mechanism) for mechanism in Mechanism]
    assert counts == [920_881, 512_713, 512_713]


def test_noise_is_truncated(teacher: ImageNetTeacher) -> None:
    assert teacher.truncation == 1
    noise = teacher.sample_noise(500, stream(0, "noise"))
    assert noise.shape == (500, 32)
    assert 1.9 < noise.abs().max() <= 2


def test_identity_depends_on_whatever_changes_the_pictures(checkpoint: Path) -> None:
    def load(mechanism: Mechanism) -> ImageNetCGN:
        return ImageNetCGN.load(checkpoint, MINIATURE, PARTS_OF[mechanism])

    settings = [(0.5, "fp32"), (1.0, "fp32"), (0.5, "bf16")]
    teachers = [ImageNetTeacher(load, MINIATURE, "a", "1" * 64, t, precision=p) for t, p in settings]
    assert len({teacher.sha256 for teacher in teachers}) == 3
    assert miniature(stream(0, "a")).sha256 == miniature(stream(0, "a")).sha256 != miniature(stream(1, "a")).sha256


def test_bf16_renders_nearly_the_same(checkpoint: Path) -> None:
    def load(mechanism: Mechanism) -> ImageNetCGN:
        return ImageNetCGN.load(checkpoint, MINIATURE, PARTS_OF[mechanism])

    full, half = (ImageNetTeacher(load, MINIATURE, "a", "", precision=p) for p in ("fp32", "bf16"))
    noise, labels = full.sample_noise(4, stream(0, "noise")), torch.arange(4)
    for mechanism in Mechanism:
        expected, output = (teacher.render(mechanism, noise, labels) for teacher in (full, half))
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("truncation", [0.0, 1.01, -0.5])
def test_truncation_out_of_range(teacher: ImageNetTeacher, truncation: float) -> None:
    with pytest.raises(InputError, match="truncation"):
        ImageNetTeacher(teacher.network, MINIATURE, "a", "", truncation)


@pytest.mark.usefixtures("nothing_at_hand")
def test_the_stand_in_says_that_it_is_one() -> None:
    teacher = imagenet_teacher()
    assert teacher.stand_in
    assert "miniature" in teacher.name
    assert "stand-in" in teacher.reason
    assert "\n" not in teacher.reason
    assert (teacher.resolution, teacher.num_classes, teacher.noise_dim, teacher.truncation) == (32, 10, 32, 1.0)
    assert miniature_teacher(truncation=0.5).truncation == 0.5


def test_the_authors_weights_are_taken_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path))
    (tmp_path / "cgn").mkdir()
    path = tmp_path / "cgn" / "cgn.pth"
    path.write_bytes(b"Google Drive - Quota exceeded")
    with pytest.raises(InputError, match="corrupt"):  # not the stand-in in silence
        imagenet_teacher()
    with path.open("wb") as file:
        file.truncate(1_113_000_000)  # sparse: nothing reads it before it renders
    monkeypatch.setattr(cgn_teachers.weights, "sha256", lambda _: "2" * 64)
    teacher = imagenet_teacher()
    assert not teacher.stand_in
    assert (teacher.resolution, teacher.num_classes, teacher.noise_dim, teacher.truncation) == (256, 1000, 128, 0.5)
    assert str(path) in teacher.reason
    other = imagenet_teacher(checkpoint, truncation=0.7)
    assert (other.name, other.truncation) == ("cgn.pth", 0.7)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no ImageNet CGN at .*absent\.pth"):
        imagenet_teacher(tmp_path / "absent.pth")
    monkeypatch.setattr(cgn_teachers, "MINIATURE_FILE", tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match=r"lacks absent\.safetensors: install it again"):
        miniature_teacher()


# Classes


def test_named_classes() -> None:
    assert select_classes("all", Mechanism.SHAPE, 10) == tuple(range(10))
    assert select_classes("animals", Mechanism.SHAPE) == tuple(range(398))
    best = {mechanism: select_classes("best", mechanism) for mechanism in Mechanism}
    assert [len(best[mechanism]) for mechanism in Mechanism] == [76, 75, 38]
    assert best[Mechanism.SHAPE][:3] == (9, 18, 22)
    assert len(set(best.values())) == 3


@pytest.mark.data
def test_best_classes_are_the_authors(data_dir: Path) -> None:
    theirs = json.loads((data_dir / "cgn" / "imagenet_best_classes.json").read_text())
    for mechanism, name in zip(Mechanism, ("mask", "texture", "background"), strict=True):
        assert select_classes("best", mechanism) == tuple(sorted(theirs[name]))


@given(st.sets(st.integers(0, 999), min_size=1), st.randoms())
def test_ids_are_read_back(ids: set[int], random) -> None:
    parts = [f"{i}" if random.random() < 0.5 else f" {i}-{i} " for i in ids]
    random.shuffle(parts)
    assert select_classes(",".join(parts), Mechanism.SHAPE) == tuple(sorted(ids))


def test_ranges_of_ids() -> None:
    assert select_classes("0-99", Mechanism.SHAPE) == tuple(range(100))
    assert select_classes("7-9,1,8", Mechanism.SHAPE) == (1, 7, 8, 9)


@pytest.mark.parametrize("spec", ["", "dogs", "5-3", "1,,2", "-4", "1.5"])
def test_unreadable_classes(spec: str) -> None:
    with pytest.raises(InputError, match=r"--classes .* cannot be read"):
        select_classes(spec, Mechanism.SHAPE)


@pytest.mark.parametrize("spec", ["10", "0-10", "animals", "best"])
def test_classes_that_the_teacher_lacks(spec: str) -> None:
    with pytest.raises(InputError, match="this teacher has 10"):
        select_classes(spec, Mechanism.SHAPE, 10)


# Full size


@pytest.mark.slow
@pytest.mark.data
def test_full_checkpoint_is_a_teacher(data_dir: Path, tmp_path: Path) -> None:
    """A file with the names, shapes and size of the real `cgn.pth` renders every mechanism at 256x256."""
    manifest = json.loads((data_dir / "manifests" / "cgn_imagenet.json").read_text())
    path = write_full_checkpoint(manifest, tmp_path)
    teacher = imagenet_teacher(path)
    assert not teacher.stand_in
    for mechanism, count in zip(Mechanism, (55_880_833 + 44_009_869, 55_880_833, 55_880_833), strict=True):
        output = teacher.render(mechanism, teacher.sample_noise(1, stream(0, "noise")), torch.tensor([7]))
        assert output.shape == (1, mechanism.channels, 256, 256)
        assert output.isfinite().all()
        assert output.std() > 0
        assert held(teacher, mechanism) == set(PARTS_OF[mechanism])
        assert teacher.parameters(mechanism) == count
    path.unlink()
