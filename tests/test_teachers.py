"""Teachers, their records, and students in their place."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from skdcgn.cgn.teachers import MNISTTeacher, miniature, mnist_teacher
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.labels import balanced_labels
from skdcgn.errors import InputError
from skdcgn.images import to_float, to_uint8
from skdcgn.mechanisms import NORMAL, Mechanism, NoisePrior, compose
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches, draw_records


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["colored", "double_colored", "wildlife"])
def test_authors_weights_load_strictly_and_draw_digits(data_dir: Path, dataset: str) -> None:
    teacher = mnist_teacher(dataset)
    labels = balanced_labels(20, 10)
    masks = teacher.render(Mechanism.SHAPE, teacher.sample_noise(200, stream(0, "test")), labels)
    assert masks.shape == (200, 1, 32, 32)
    assert 0.05 < masks.mean() < 0.3
    assert ((masks > 0.05) & (masks < 0.95)).float().mean() < 0.1  # nearly binary
    thin, thick = masks[labels == 1].mean(), masks[labels == 0].mean()
    assert thin < 0.75 * thick  # a 1 has less ink than a 0


def test_render_is_deterministic_and_in_range(random_teacher: MNISTTeacher) -> None:
    noise, labels = random_teacher.sample_noise(4, stream(0, "z")), torch.arange(4)
    for mechanism in Mechanism:
        output = random_teacher.render(mechanism, noise, labels)
        assert output.shape == (4, mechanism.channels, 32, 32)
        assert output.min() >= (0 if mechanism is Mechanism.SHAPE else -1)
        assert output.max() <= 1
        assert torch.equal(output, random_teacher.render(mechanism, noise, labels))
        assert not output.requires_grad


def test_wrong_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    torch.save({"f_shape.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not a checkpoint of an MNIST CGN"):
        mnist_teacher("double_colored", tmp_path / "other.pth")


def test_published_pairing_is_wrong_for_texture_and_right_for_shape(random_teacher: MNISTTeacher) -> None:
    labels = balanced_labels(2, 10)
    for mechanism in Mechanism:
        records = draw_records(random_teacher, mechanism, labels, stream(0, "published"), published_code=True)
        assert records.images.shape == (20, 3, 64, 64)
        assert records.images.flatten(1).min(dim=1).values.max() < -0.7  # normalized per image
        assert records.images.flatten(1).max(dim=1).values.min() > 0.7
        output = mechanism.to_image(random_teacher.render(mechanism, records.noise, labels), 3)
        rendered = output.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        correlations = [
            np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(records.images, rendered, strict=True)
        ]
        assert (np.mean(correlations) > 0.9) == (mechanism is Mechanism.SHAPE)


def test_fresh_batches_draw_only_their_classes(random_teacher: MNISTTeacher) -> None:
    batches = FreshBatches(random_teacher, Mechanism.SHAPE, 30, stream(0, "batches"), classes=(2, 7))
    records = next(batches)
    assert set(records.labels.tolist()) == {2, 7}
    assert records.images.shape == (30, 1, 32, 32)


def test_uint8_round_trip() -> None:
    images = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    assert torch.allclose(to_float(to_uint8(images)), images, atol=1e-6)


def _students(prior: NoisePrior = NORMAL) -> dict[Mechanism, TinyGANGenerator]:
    with seeded(0, "students"):
        return {m: TinyGANGenerator(NATIVE_MNIST.for_mechanism(m), prior=prior) for m in Mechanism}


def test_students_draw_their_teachers_noise(random_teacher: MNISTTeacher) -> None:
    teachers = random_teacher, miniature(stream(0, "miniature"))
    composed = [SKDCGN(_students(teacher.prior)) for teacher in teachers]
    for teacher, skdcgn in zip(teachers, composed, strict=True):
        assert torch.equal(skdcgn.sample_noise(9, stream(0, "z")), teacher.sample_noise(9, stream(0, "z")))
    assert composed[0].sha256 != composed[1].sha256
    mixed = {**_students(), Mechanism.SHAPE: _students(NoisePrior(0.5))[Mechanism.SHAPE]}
    with pytest.raises(InputError, match="differ in resolution, noise or classes"):
        SKDCGN(mixed)


def test_students_and_teacher_are_interchangeable_sources(random_teacher: MNISTTeacher) -> None:
    skdcgn = SKDCGN(_students())
    labels = balanced_labels(2, 10)
    noise = {mechanism: skdcgn.sample_noise(20, stream(1, mechanism)) for mechanism in Mechanism}
    sampled = [
        sample_counterfactuals(source, labels, stream(0, "cf"), noise=noise) for source in (random_teacher, skdcgn)
    ]
    for counterfactuals in sampled:
        assert counterfactuals.images.shape == (20, 3, 32, 32)
        composed = compose(counterfactuals.mask, counterfactuals.texture, counterfactuals.background)
        assert torch.equal(counterfactuals.images, composed)
    for mechanism in Mechanism:
        assert torch.equal(sampled[0].labels[mechanism], sampled[1].labels[mechanism])
    assert not torch.equal(sampled[0].images, sampled[1].images)


def test_counterfactual_labels_are_permuted_only_when_asked(random_teacher: MNISTTeacher) -> None:
    labels = balanced_labels(5, 10)
    permuted = sample_counterfactuals(random_teacher, labels, stream(0, "cf")).labels
    assert torch.equal(permuted[Mechanism.SHAPE], labels)
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        assert torch.equal(permuted[mechanism].sort().values, labels.sort().values)
        assert (permuted[mechanism] == labels).float().mean() < 0.4
    assert not torch.equal(permuted[Mechanism.TEXTURE], permuted[Mechanism.BACKGROUND])
    kept = sample_counterfactuals(random_teacher, labels, stream(0, "cf"), permute=False).labels
    assert all(torch.equal(kept[mechanism], labels) for mechanism in Mechanism)


def test_incomplete_skdcgn_is_refused() -> None:
    students = _students()
    del students[Mechanism.TEXTURE]
    with pytest.raises(InputError, match="no texture student"):
        SKDCGN(students)


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> None:
    yield
    assert not list(tmp_path.rglob(".*.part")), "a temporary file was left behind"
    shutil.rmtree(tmp_path, ignore_errors=True)
