"""Classifiers by the images that they learn from: the images, the plan and its generators, and the study on digits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import ood_robustness as ood_robustness_figures
from analysis.frame.published import CGN_PAPER, REPLICATION, ROBUSTNESS
from analysis.frame.style import cited, is_gap
from analysis.frame.view import View
from experiments import baseline_mnist, mnist_kd, ood_robustness, train_cgn_mnist
from experiments.ood_robustness import DEFAULTS
from experiments.presets import BASELINES, PROFILES, STUDENTS
from skdcgn.cgn.mnist import CGN
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.tinygan import PUBLISHED_MNIST
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.mnist import make_dataset
from skdcgn.data.weights import save_state_dict
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded
from skdcgn.recipes.cgns import make_baseline
from skdcgn.recipes.composed import make_skdcgn
from skdcgn.recipes.configs.ood_robustness import ALL_IMAGES, RobustnessConfig
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.recipes.ood_robustness import (
    GENERATOR,
    ClassifierRunConfig,
    draw_images,
    make_gan,
    two_of_each_class,
    unbiased_sets,
)
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.plan import Case
from skdcgn.runs.store import Store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANGenerator, save_generator

CPU = torch.device("cpu")


# --- the images that a classifier learns from


@dataclass
class NotedRun:
    """A run that notes its tags, in a store of folders."""

    folder: Path
    tags: dict[str, object] = field(default_factory=dict)

    @property
    def store(self) -> "NotedRun":
        return self

    def set_tags(self, tags: dict[str, object]) -> None:
        self.tags |= tags

    def record(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(run_id=run_id, experiment="some_study", status="FINISHED", tags={})

    def files(self, run_id: str) -> list[str]:
        return [path.name for path in (self.folder / run_id).iterdir()]

    @contextmanager
    def artifact(self, run_id: str, name: str) -> Iterator[Path]:
        yield self.folder / run_id / name


def _config(
    source: str, images: int, teacher: MNISTTeacherConfig, seed: int = 0, per_mask: int = 5
) -> ClassifierRunConfig:
    own = {"teacher": teacher, "source": source, "seed": seed}
    own["classifier"] = ClassifierConfig(batch_size=min(images, 64))
    return ClassifierRunConfig("smoke", **own, images=images, per_mask=per_mask, generators=1)


def test_original_images_are_the_biased_ones_as_often_as_needed(tmp_path: Path) -> None:
    run, digits = NotedRun(tmp_path), MNISTTeacherConfig("digits")
    data = make_dataset("digits", "train", seed=3)
    pixels, labels = draw_images(run, _config("original", 3000, digits, 3), {}, CPU)
    assert pixels.shape == (3000, 3, 32, 32)
    assert torch.equal(pixels[: len(data)], data.pixels)
    assert torch.equal(pixels[len(data) : 2 * len(data)], data.pixels)
    assert torch.equal(labels, data.labels.repeat(3)[:3000])
    fewer, _ = draw_images(run, _config("original", 10, digits, 3), {}, CPU)
    assert torch.equal(fewer, pixels[:10])
    assert run.tags == {"images": "original digits MNIST"}


def test_counterfactual_images_have_the_shapes_label(tmp_path: Path) -> None:
    checkpoint = tmp_path / "cgn.safetensors"
    with seeded(0, "teacher"):
        save_state_dict(checkpoint, CGN().state_dict())
    run, teacher = NotedRun(tmp_path), MNISTTeacherConfig("double_colored", checkpoint)
    pixels, labels = draw_images(run, _config("cgn", 20, teacher, seed=1), {}, CPU)
    assert pixels.shape == (20, 3, 32, 32)
    assert (labels.view(4, 5) == labels[::5, None]).all()
    assert run.tags == {"images": teacher.load().name}


def test_generated_images_come_from_the_run_of_the_gan(tmp_path: Path) -> None:
    run, needs = NotedRun(tmp_path), {GENERATOR: SimpleNamespace(run_id="0123456789")}
    with seeded(0, "generator"):
        generator = TinyGANGenerator(TinyGANConfig(width=2)).eval()
    save_generator(generator, tmp_path / "0123456789" / GENERATOR)
    config = _config("gan", 5, MNISTTeacherConfig("digits"))
    (pixels, labels), (again, _) = draw_images(run, config, needs, CPU), draw_images(run, config, needs, CPU)
    assert pixels.shape == (5, 3, 32, 32)
    assert len(labels) == 5
    assert torch.equal(pixels, again)
    assert run.tags == {"images": "GAN (run 01234567)"}


@pytest.mark.parametrize("source", ["skdcgn", "skdcgn_published", "baseline"])
def test_students_images_have_the_datas_resolution(tmp_path: Path, source: str) -> None:
    run, needs = NotedRun(tmp_path), {GENERATOR: SimpleNamespace(run_id="0123456789")}
    size = TinyGANConfig(resolution=64 if source == "skdcgn_published" else 32, width=2, blocks=2)
    with seeded(0, "students"):
        students = {mechanism: TinyGANGenerator(size.for_mechanism(mechanism)).eval() for mechanism in Mechanism}
    for mechanism, student in students.items():
        save_generator(student, tmp_path / "0123456789" / mechanism.value)
    pixels, labels = draw_images(run, _config(source, 10, MNISTTeacherConfig("digits")), needs, CPU)
    assert pixels.shape == (10, 3, 32, 32)
    assert (labels.view(2, 5) == labels[::5, None]).all()
    assert SKDCGN(students).resolution == size.resolution
    assert run.tags == {"images": "students (run 01234567 of some_study)"}


def test_test_sets_are_unbiased_and_drifted_where_the_loader_drifts() -> None:
    sets = unbiased_sets("digits", seed=0)
    assert list(sets) == ["valid", "test", "valid_drifted", "test_drifted"]
    for split in ("valid", "test"):
        assert torch.equal(sets[split].strokes, sets[f"{split}_drifted"].strokes)
        assert not torch.equal(sets[split].pixels, sets[f"{split}_drifted"].pixels)
        assert torch.equal(sets[split].pixels, make_dataset("digits", split, 0, biased=False).pixels)


@pytest.mark.data
def test_other_variants_have_no_drifted_test_sets(data_dir: Path) -> None:
    assert list(unbiased_sets("colored", seed=0)) == ["valid", "test"]


def test_two_of_each_class() -> None:
    labels = torch.tensor([2, 0, 0, 2, 2, 0, 0, 7])
    pixels = torch.arange(8)[:, None, None, None]
    images, classes = two_of_each_class(pixels, labels)
    assert classes.tolist() == [0, 2, 7, 0, 2, 7]
    assert images.flatten().tolist() == [1, 0, 7, 5, 3, 7]


def test_published_numbers() -> None:
    assert ROBUSTNESS["double_colored", "cgn"][CGN_PAPER] == (97.4, 89.0)
    assert ROBUSTNESS["wildlife", "cgn"][REPLICATION] == (95.5, 81.4)
    assert ("digits", "cgn") not in ROBUSTNESS


# --- the plan


def _planned(**changes: object) -> dict[tuple[str, int], Case]:
    """The cases of the classifiers on digits, by source and seed."""
    config = replace(DEFAULTS["smoke"], datasets=("digits",), **changes)
    return {(case.config.source, case.config.seed): case for case in ood_robustness.plan(config).cases}


def _last(cases: list[Case]) -> Case:
    return cases[-1]


def test_a_classifier_needs_what_draws_its_images() -> None:
    cases = _planned(sources=ALL_IMAGES)
    needs = {source: set(case.needs) for (source, _), case in cases.items()}
    assert needs == {
        "original": set(),
        "cgn": {"teacher"},
        **{source: {GENERATOR} for source in ("gan", "skdcgn", "skdcgn_slim", "skdcgn_published", "baseline")},
    }
    makers = {source: case.needs[GENERATOR].make for (source, _), case in cases.items() if GENERATOR in case.needs}
    assert makers == {
        "gan": make_gan,
        "skdcgn": make_skdcgn,
        "skdcgn_slim": make_skdcgn,
        "skdcgn_published": make_skdcgn,
        "baseline": make_baseline,
    }
    assert not any(case.inputs for case in cases.values())  # no file is read: the teacher is one of our own


def test_generators_are_the_runs_of_their_own_scripts() -> None:
    cases, own = _planned(), {"dataset": "digits", "seeds": (0,)}
    students = mnist_kd.plan(replace(mnist_kd.DEFAULTS["smoke"], **own)).cases
    (baseline,) = baseline_mnist.plan(replace(baseline_mnist.DEFAULTS["smoke"], **own)).cases
    (teacher,) = train_cgn_mnist.plan(replace(train_cgn_mnist.DEFAULTS["smoke"], dataset="digits")).cases
    expected = {("skdcgn", GENERATOR): _last(students), ("baseline", GENERATOR): baseline, ("cgn", "teacher"): teacher}
    for (source, name), case in expected.items():
        needed = cases[source, 0].needs[name]
        assert (needed.experiment, needed.identity) == (case.experiment, case.identity)
        assert needed.tags == case.tags


@pytest.mark.parametrize(
    ("source", "generators", "expected"),
    [
        ("gan", 1, [0, 0, 0, 0, 0]),
        ("gan", 2, [3, 4, 3, 4, 3]),
        ("skdcgn", 3, [3, 4, 5, 3, 4]),
        ("skdcgn_slim", 3, [3, 4, 5, 3, 4]),
        ("baseline", 5, [3, 4, 5, 6, 7]),
        ("skdcgn_published", 5, [3, 3, 3, 3, 3]),
    ],
)
def test_seeds_take_the_generators_in_turns(source: str, generators: int, expected: list[int]) -> None:
    first = expected[0]
    seeds = tuple(range(first, first + 5))
    config = replace(DEFAULTS["smoke"], datasets=("digits",), sources=(source,), generators=generators, seeds=seeds)
    plan = ood_robustness.plan(config)
    needed = [case.needs[GENERATOR] for case in plan.cases]
    assert [case.tags["seed"] for case in needed] == expected
    trained = [case for case in plan.everything() if case.make is needed[0].make]
    assert len(trained) == len(set(expected))  # each once, however many seeds share it


def test_students_of_the_published_size_are_trained_as_published() -> None:
    composed = _planned(sources=("skdcgn_published",), generators=2, published_students="paper")[
        "skdcgn_published", 0
    ].needs[GENERATOR]
    students = [composed.needs[mechanism.value].config for mechanism in Mechanism]
    assert {student.student for student in students} == {PUBLISHED_MNIST}
    assert {student.distill for student in students} == {mnist_kd.DEFAULTS["paper"].distill}
    assert {student.profile for student in students} == {"paper"}
    assert all(DEFAULTS[profile].published_students == "paper" for profile in PROFILES if profile != "smoke")


@pytest.mark.data
def test_the_authors_teacher_is_an_input_of_those_that_use_it(data_dir: Path) -> None:
    sha256 = MNISTTeacherConfig("wildlife").load().sha256
    config = replace(DEFAULTS["smoke"], datasets=("wildlife",), sources=ALL_IMAGES)
    for case in ood_robustness.plan(config).cases:
        source = case.config.source
        assert case.inputs == ({"teacher": sha256} if source == "cgn" else {})
        assert case.tags["teacher_sha256"] == (sha256 if source == "cgn" or source.startswith("skdcgn") else "none")
        if source.startswith("skdcgn"):
            assert case.needs[GENERATOR].inputs == {"teacher": sha256}


# --- the study

SMOKE = replace(
    DEFAULTS["smoke"],
    datasets=("digits",),
    sources=DEFAULTS["quick"].sources,
    seeds=(0, 1),
    images=100,
    runtime=Runtime(device="cpu"),
)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline and students of a few steps."""
    smoke = BASELINES["smoke"]
    short = replace(smoke, training=replace(smoke.training, steps=1), counterfactuals=64, evaluations=1)
    monkeypatch.setitem(BASELINES, "smoke", short)
    distill = replace(STUDENTS["smoke"].distill, steps=3)
    monkeypatch.setitem(STUDENTS, "smoke", replace(STUDENTS["smoke"], distill=distill, evaluations=1))


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_study_on_digits_its_table_and_figures(
    digits: Store, brief: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ood_robustness.plan(SMOKE)
    results = carry_out(plan)
    assert list(results.loc["digits"].index.unique("source")) == list(SMOKE.sources)
    assert len(results) == 2 * len(SMOKE.sources)
    assert results["test_drifted_accuracy"].between(0, 1).all()

    runs = digits.runs("ood_robustness", kind="classifier")
    assert len(runs) == 2 * len(SMOKE.sources)
    for run in runs:
        assert run.status == "FINISHED"
        confusion = digits.load_tensors(run.run_id, "confusion")
        assert set(confusion) == {"train", "valid", "test", "valid_drifted", "test_drifted"}
        assert confusion["train"].sum() == SMOKE.images
        assert confusion["test"].sum() == 250
        accuracy = (confusion["test"].trace() / confusion["test"].sum()).item()
        assert run.final["test_accuracy"] == pytest.approx(accuracy)
        by_class = digits.load_tensors(run.run_id, "class_accuracy")["test"]
        torch.testing.assert_close(by_class, confusion["test"].diagonal() / confusion["test"].sum(dim=1))
        assert len(digits.load_tensors(run.run_id, "samples")["pixels"]) <= 20
    of_source = {run.tags["source"]: run.tags for run in runs}
    assert of_source["skdcgn"]["teacher"] == of_source["cgn"]["teacher"] == "our CGN on digits"
    assert of_source["original"]["teacher"] == "none"
    (gan,) = digits.runs("ood_robustness", kind="gan")
    assert of_source["gan"]["images"] == f"GAN (run {gan.run_id[:8]})"
    assert 0 <= gan.final["recognised"] <= 1
    for source, family in (("skdcgn", "tinygan"), ("skdcgn_slim", "slim")):
        (composed,) = digits.runs("mnist_kd", kind="skdcgn", student=family)
        assert composed.run_id[:8] in of_source[source]["images"]

    capsys.readouterr()
    again = carry_out(plan)
    pd.testing.assert_frame_equal(again, results)
    assert capsys.readouterr().out.count("skipped") == len(plan.everything()) == len(runs) + 1 + 1 + 4 + 4 + 1
    assert len(digits.runs("ood_robustness")) == len(runs) + 1

    shown = View(digits, dataset="digits")
    table = ood_robustness_figures.table(shown)
    assert "stand-in" in table.title
    assert table.text.loc["SKDCGN 64x64", "train"] == "no finished run [1]"
    assert table.commands[0].endswith("--profile smoke --datasets digits --sources skdcgn_published")
    cell = table.cells[(table.cells["source"] == "CGN") & (table.cells["metric"] == "final/test_accuracy")].iloc[0]
    assert cell["n"] == 2
    assert cell["mean"] == pytest.approx(results.xs("cgn", level="source")["test_accuracy"].mean())
    assert "GAN, SKDCGN, slim SKDCGN, baseline: one trained generator for all seeds" in " ".join(table.notes)
    for draw in (
        ood_robustness_figures.figure,
        ood_robustness_figures.class_figure,
        ood_robustness_figures.image_sheet,
    ):
        figure = draw(shown)
        assert not is_gap(figure)
        assert "smoke" in texts(figure)
        assert set(cited(figure)) == {run.run_id for run in runs}
        assert is_gap(draw(View(digits, dataset="wildlife")))


@pytest.mark.data
def test_the_study_on_the_authors_teacher(data_dir: Path, store: Store) -> None:
    config = replace(SMOKE, datasets=("colored",), sources=("original", "cgn"), seeds=(0,), images=100)
    results = carry_out(ood_robustness.plan(config))
    for name in ("train_accuracy", "valid_accuracy", "test_accuracy"):
        assert results[name].between(0, 1).all()
    assert "test_drifted_accuracy" not in results
    assert {run.tags["stand_in"] for run in store.runs("ood_robustness")} == {"false"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--images", "0"), "images is 0"),
        (("--generators", "0"), "generators is 0"),
        (("--per-mask", "0"), "per_mask is 0"),
        (("--sources",), "sources is ()"),
        (("--students", "huge"), "huge"),
        (("--runtime.device", "cuda:99"), "give cpu, or auto"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    refusal: Callable[..., str], flags: tuple[str, ...], words: str
) -> None:
    assert words in refusal(ood_robustness, "--profile", "smoke", "--datasets", "digits", *flags)


def test_the_generators_of_a_seed_do_not_depend_on_the_other_seeds() -> None:
    config = RobustnessConfig("smoke", ("digits",), ("gan",), "smoke", seeds=(7, 8, 9), generators=2)
    assert [config.generator_seed("gan", position) for position in range(3)] == [7, 8, 7]
