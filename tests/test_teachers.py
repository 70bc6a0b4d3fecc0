"""Teachers, their records, and students in their place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import mnist_kd
from experiments.cases import style_inputs, teacher_of
from skdcgn.cgn.losses import style_features
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import (
    OWN_TEACHER,
    OWN_TEACHER_NAME,
    MNISTTeacher,
    imagenet_teacher,
    miniature,
    mnist_teacher,
)
from skdcgn.commands.experiments import experiment
from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.counterfactuals.students import SKDCGN, render
from skdcgn.data.labels import balanced_labels
from skdcgn.data.miniature import scenery
from skdcgn.data.registry import REGISTRY
from skdcgn.data.weights import save_state_dict
from skdcgn.errors import InputError, Unavailable
from skdcgn.images import to_float, to_uint8
from skdcgn.measure.features import extractor
from skdcgn.mechanisms import NORMAL, Mechanism, NoisePrior, compose
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.cgns import _authors_teacher, make_cgn
from skdcgn.recipes.configs.sources import ImageNetTeacherConfig, MNISTTeacherConfig, TeacherConfig
from skdcgn.recipes.sources import load_source, teacher_tags
from skdcgn.recipes.students import load_student
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.store import Store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches, draw_records

CHECKPOINT = Path("cgn.safetensors")


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


# --- as recipes and plans use them


def test_the_teacher_of_the_digits_is_a_case_of_its_own() -> None:
    """Whatever uses it needs the same run; its identity tells the teacher before it is trained."""
    teacher = teacher_of(MNISTTeacherConfig("digits"), "smoke", Runtime())
    case = teacher.needs["teacher"]
    assert (case.experiment, case.make) == ("train_cgn_mnist", make_cgn)
    assert teacher.inputs == {}
    assert teacher.tags["teacher_sha256"] == case.identity.digest
    assert teacher.tags["stand_in"] is True
    other = teacher_of(MNISTTeacherConfig("digits"), "quick", Runtime())
    assert other.needs["teacher"].identity.digest != case.identity.digest


def test_a_checkpoint_is_an_input(tmp_path: Path) -> None:
    teachers = []
    for seed in (0, 1):
        with seeded(seed, "teacher"):
            save_state_dict(tmp_path / f"{seed}.safetensors", CGN().state_dict())
        teachers.append(
            teacher_of(MNISTTeacherConfig("wildlife", tmp_path / f"{seed}.safetensors"), "smoke", Runtime())
        )
    assert [teacher.needs for teacher in teachers] == [{}, {}]
    assert teachers[0].inputs != teachers[1].inputs
    for teacher in teachers:
        assert teacher.inputs == {"teacher": teacher.config.load().sha256}
        assert teacher.tags == teacher_tags(teacher.config.load())


@pytest.mark.parametrize(
    "config", [MNISTTeacherConfig("digits", CHECKPOINT), ImageNetTeacherConfig("miniature", CHECKPOINT)]
)
def test_a_stand_in_takes_no_checkpoint(config: TeacherConfig) -> None:
    with pytest.raises(InputError, match="leave --teacher out"):
        teacher_of(config, "smoke", Runtime())


def test_the_miniature_comes_with_the_package() -> None:
    teacher = teacher_of(ImageNetTeacherConfig("miniature"), "smoke", Runtime())
    assert teacher.needs == {}
    assert teacher.tags["stand_in"] is True
    assert ImageNetTeacherConfig("miniature").load().prior == NoisePrior(1.0)
    assert ImageNetTeacherConfig("miniature", truncation=0.5).load().prior == NoisePrior(0.5)


def test_the_teacher_that_a_run_trained_stands_in_for_the_papers(digits: Store) -> None:
    (run,) = digits.runs("train_cgn_mnist")
    teacher = MNISTTeacherConfig("digits").load("cpu", digits, run)
    assert teacher_tags(teacher) == {"teacher": "our CGN on digits", "teacher_sha256": teacher.sha256, "stand_in": True}
    source = load_source(f"runs:/{run.run_id}", digits)
    noise, labels = teacher.sample_noise(3, stream(0, "z")), torch.arange(3)
    for mechanism in Mechanism:
        assert torch.equal(teacher.render(mechanism, noise, labels), source.render(mechanism, noise, labels))


@pytest.fixture
def distilled(digits: Store) -> Store:
    """A store with the students of the digits' teacher."""
    smoke = mnist_kd.DEFAULTS["smoke"]
    brief = replace(
        smoke, dataset="digits", distill=replace(smoke.distill, steps=2), evaluations=1, heldout_per_class=2
    )
    carry_out(mnist_kd.plan(brief))
    return digits


def test_three_students_are_put_together_beside_their_teacher(distilled: Store) -> None:
    (composed,) = distilled.runs("mnist_kd", kind="skdcgn")
    students = {run.tags["mechanism"]: run for run in distilled.runs("mnist_kd", kind="student")}
    source = load_source(f"runs:/{composed.run_id}", distilled)
    noise, labels = source.sample_noise(4, stream(0, "z")), torch.arange(4)
    for mechanism in Mechanism:
        student = load_student(distilled, students[mechanism].run_id)
        assert torch.equal(render(student, mechanism, noise, labels), source.render(mechanism, noise, labels))

    drawn = distilled.load_tensors(composed.run_id, "counterfactuals")
    assert set(drawn) == {"teacher", "student", "mask_teacher", "mask_student", *(f"labels_{m}" for m in Mechanism)}
    assert drawn["teacher"].shape == drawn["student"].shape == (20, 3, 32, 32)
    assert drawn["mask_teacher"].shape == (20, 1, 32, 32)
    assert torch.equal(drawn["labels_shape"], balanced_labels(2, 10))
    assert not torch.equal(drawn["teacher"], drawn["student"])
    assert drawn["student"].abs().max() <= 1


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder of data, empty, on a machine without network."""
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    return tmp_path


def test_our_own_teacher_serves_where_the_authors_is_absent_and_not_where_it_is_damaged(
    own_data: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="the teacher is our own double_colored MNIST CGN, from the package"):
        assert mnist_teacher("double_colored").name == OWN_TEACHER_NAME
    weights = own_data / "cgn" / "cgn_double_colored_mnist.pth"
    weights.parent.mkdir()
    weights.write_bytes(OWN_TEACHER.read_bytes()[:-1])
    monkeypatch.setattr("sys.argv", ["mnist_kd", "--profile", "smoke"])
    with pytest.raises(SystemExit) as ended:
        experiment.main(mnist_kd.DEFAULTS, mnist_kd.plan, "")
    assert ended.value.code == 2
    assert f"error: {weights} is corrupt" in capsys.readouterr().err
    assert store.runs("mnist_kd") == []


@pytest.mark.parametrize(
    "use",
    [
        lambda: style_features("vgg16"),
        lambda: style_inputs("vgg16"),
        lambda: scenery(lambda: pytest.fail("not to be replaced")),
        lambda: imagenet_teacher(),
        lambda: extractor(256),
        lambda: _authors_teacher("colored", torch.device("cpu")),
    ],
)
def test_a_damaged_file_is_never_done_without(own_data: Path, use: Callable[[], object]) -> None:
    for file in REGISTRY.values():
        for member in file.checksums():
            path = own_data / file.path / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    (own_data / "MNIST" / "raw").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is corrupt: .*; delete it, or replace it with https://") as told:
        use()
    assert not isinstance(told.value, Unavailable)
