"""Table 1: its readings, its plan, CGNs and classifiers, the study at smoke scale on digits, and its table in words."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis import table1_shape_im as table1_shape_im_figures
from analysis.frame import style
from analysis.frame.view import View
from experiments import table1_shape_im
from experiments.table1_shape_im import DEFAULTS, EXPERIMENT
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.classifiers.two_way import two_way_sets
from skdcgn.configs.cgn import PUBLISHED
from skdcgn.counterfactuals.datasets import CounterfactualConfig, draw
from skdcgn.counterfactuals.readings import Reading, readings
from skdcgn.counterfactuals.remembering import Remembering
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError, Interrupted
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.configs.table1_shape_im import ShapeStudyConfig
from skdcgn.recipes.sources import load_trained
from skdcgn.recipes.table1_shape_im import (
    CGN,
    RealImages,
    make_modified_cgn,
    make_reading,
    measure,
    real_images,
    samples,
)
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.run import Interruption
from skdcgn.runs.store import Store, open_store
from skdcgn.runtime import Runtime

ALL = ("none", "noise", "rotation", "transparency")
SMOKE = DEFAULTS["smoke"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counterfactuals are drawn by whole chunks: small ones do here."""
    monkeypatch.setattr("skdcgn.configs.counterfactuals.CHUNK", 40)


# --- readings


def test_the_readings_of_a_study() -> None:
    found = readings(ALL, ("sampling", "training", "both"), ("scratch",), ("permuted", "unpermuted"))
    assert len(found) == len(set(found)) == 2 * (4 + 4 + 3)  # the control is trained once, for training and both
    assert all((reading.when == "sampling") == (reading.init is None) for reading in found)
    order = [reading.cgn for reading in found]
    assert sum(a != b for a, b in itertools.pairwise(order)) == len(set(order)) - 1  # CGN by CGN
    assert len(set(order)) == 1 + 4


@pytest.mark.parametrize(
    ("when", "training", "sampling"),
    [("sampling", "none", "noise"), ("training", "noise", "none"), ("both", "noise", "noise")],
)
def test_when_a_mask_is_modified(when: str, training: str, sampling: str) -> None:
    (reading,) = readings(("noise",), (when,), ("scratch",), ("permuted",))
    assert (reading.in_training, reading.at_sampling) == (training, sampling)
    cgn = SMOKE.cgn(reading, 7)
    assert (cgn is None) == (when == "sampling")
    if cgn is not None:
        assert cgn.init == "scratch"
        assert cgn.training == replace(SMOKE.training, intervention="noise", seed=7)
    images = SMOKE.reading(reading, 7).counterfactuals
    assert (images.intervention, images.permute, images.seed) == (sampling, True, 7)


def test_a_cgn_that_starts_from_the_teacher_has_a_training_of_its_own() -> None:
    (reading,) = readings(("transparency",), ("training",), ("pretrained",), ("permuted",))
    cgn = SMOKE.cgn(replace(reading, strength=0.5), 3)
    assert cgn.training == replace(SMOKE.finetune, intervention="transparency", intervention_strength=0.5, seed=3)


def test_transparencies_join_the_readings_that_are_there_anyway() -> None:
    found = readings(("none", "transparency"), ("sampling",), (), ("permuted",), (0.25, 0.75, 1.0), ("sampling",))
    modifications = [("none", None), ("transparency", None), ("transparency", 0.25)]
    assert sorted(((each.intervention, each.strength) for each in found), key=str) == sorted(modifications, key=str)
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match="--strengths"):
            readings(("none",), ("sampling",), (), ("permuted",), (wrong,), ("sampling",))


def test_a_reading_is_told_by_its_tags_and_its_name() -> None:
    reading = Reading("transparency", "both", "scratch", "permuted", 0.5)
    assert str(reading) == "transparency 0.5 in training and at sampling (scratch), permuted labels"
    expected = {"intervention": "transparency", "when": "both", "init": "scratch", "labels": "permuted"}
    assert reading.tags == {**expected, "strength": "0.5"}
    assert Reading("noise", "sampling", None, "unpermuted").tags["init"] == "none"
    every = readings(
        ALL, ("sampling", "training", "both"), ("scratch", "pretrained"), ("permuted", "unpermuted"), (0.5,)
    )
    assert len({str(each) for each in every}) == len(every)


def test_labels_decide_the_epochs_of_the_digit_classifier() -> None:
    config = replace(SMOKE, classifier=ClassifierConfig(epochs=9, batch_size=60), unpermuted_epochs=2, two_way_epochs=3)
    epochs = {
        reading.labels: config.reading(reading, 0).classifier.epochs
        for reading in readings(("none",), ("sampling",), (), ("permuted", "unpermuted"))
    }
    assert epochs == {"permuted": 9, "unpermuted": 2}
    (reading,) = readings(("none",), ("sampling",), (), ("permuted",))
    assert config.reading(reading, 0).two_way.epochs == 3


def test_the_paper_profile_is_the_published_protocol() -> None:
    config = DEFAULTS["paper"]
    assert replace(config.training, steps=PUBLISHED.steps) == PUBLISHED
    assert config.training.steps == 46_000
    assert (config.images, config.classifier.epochs, config.classifier.batch_size) == (100_000, 10, 64)
    assert config.init == ("scratch",)
    for name in ("quick", "full", "paper"):
        assert len(DEFAULTS[name].seeds) >= 3
        assert {"permuted", "unpermuted"} <= set(DEFAULTS[name].labels)
        assert {"sampling", "training"} <= set(DEFAULTS[name].when)
        assert set(ALL) <= set(DEFAULTS[name].interventions)


def test_unpermuted_images_keep_the_digits_own_labels(random_teacher: MNISTTeacher) -> None:
    (reading,) = readings(("noise",), ("sampling",), (), ("unpermuted",))
    data = draw(random_teacher, SMOKE.reading(reading, 0).counterfactuals)
    assert torch.equal(data.texture, data.shape)
    assert torch.equal(data.background, data.shape)
    data = draw(random_teacher, SMOKE.reading(replace(reading, labels="permuted"), 0).counterfactuals)
    assert 0 < (data.texture == data.shape).float().mean() < 0.5


def test_every_seed_draws_its_own_images(random_teacher: MNISTTeacher) -> None:
    (reading,) = readings(("none",), ("sampling",), (), ("permuted",))
    first, second = (draw(random_teacher, SMOKE.reading(reading, seed).counterfactuals) for seed in (0, 1))
    assert not torch.equal(first.shape, second.shape)


# --- the plan


def _config(**changes: object) -> ShapeStudyConfig:
    return replace(SMOKE, dataset="digits", runtime=Runtime(threads=1), **changes)


def test_readings_stand_next_to_their_cgn() -> None:
    """So that what a CGN rendered is remembered from one reading to the next."""
    config = _config(interventions=ALL, when=("sampling", "training", "both"), seeds=(0, 1), strengths=(0.5,))
    plan = table1_shape_im.plan(config)
    sources = [case.needs.get(CGN, case.needs.get("teacher")) for case in plan.cases]
    for seed in config.seeds:
        own = [source for source, case in zip(sources, plan.cases, strict=True) if case.config.seed == seed]
        assert sum(a is not b for a, b in itertools.pairwise(own)) == len({id(source) for source in own}) - 1
    order = plan.everything()
    made = [case.make for case in order]
    assert made.count(make_modified_cgn) == 2 * 4  # for each seed the control and three modifications
    assert made.count(make_reading) == len(plan.cases)
    assert all(order.index(needed) < order.index(case) for case in plan.cases for needed in case.needs.values())


def test_a_cgn_is_one_case_for_all_that_is_drawn_from_it() -> None:
    config = _config(interventions=("noise",), when=("training", "both"), strengths=())
    cases = table1_shape_im.plan(config).cases
    assert len(cases) == 2 * 2  # whens and labels
    assert len({id(case.needs[CGN]) for case in cases}) == 1
    (trained,) = {case.needs[CGN] for case in cases}
    other = table1_shape_im.plan(replace(config, images=80, labels=("unpermuted",), when=("both",))).cases
    assert {case.needs[CGN].identity.digest for case in other} == {trained.identity.digest}


def test_the_start_and_the_seed_are_part_of_a_cgns_identity() -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=(), seeds=(0, 1))
    config = replace(config, init=("scratch", "pretrained"), training=config.finetune)
    cases = table1_shape_im.plan(config).cases
    assert len({case.needs[CGN].identity.digest for case in cases}) == len(cases) == 4
    assert len({case.needs[CGN].name for case in cases}) == 4


def test_a_reading_without_a_cgn_of_its_own_depends_on_the_teacher_alone() -> None:
    cases = table1_shape_im.plan(_config()).cases
    needs = {case.config.reading.when: set(case.needs) for case in cases}
    assert needs == {"sampling": {"teacher"}, "training": {CGN}}
    assert {case.tags["source"] for case in cases if CGN not in case.needs} == {"our CGN on digits"}


# --- images and classifiers


def test_remembering_renders_once_and_changes_nothing(random_teacher: MNISTTeacher) -> None:
    calls = []

    class Counting(MNISTTeacher):
        def __init__(self) -> None:
            self.__dict__ |= random_teacher.__dict__

        def render(self, mechanism: Mechanism, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            calls.append(len(labels))
            return super().render(mechanism, noise, labels)

    config = CounterfactualConfig(120, per_mask=2, intervention="noise")
    plain = draw(random_teacher, config)
    source = Remembering(Counting())
    for _ in range(2):
        again = draw(source, config)
        # Parts of another size may round otherwise.
        assert (again.pixels.int() - plain.pixels.int()).abs().max() <= 1
    rendered = sum(calls)
    assert max(calls) <= 100
    draw(source, replace(config, intervention="rotation"))
    assert sum(calls) == rendered
    draw(source, replace(config, permute=False))
    assert rendered < sum(calls) < 2 * rendered  # the masks are known


def test_remembering_forgets_what_would_fill_the_memory(
    random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remembering, "_MEMORY", 0)
    source = Remembering(random_teacher)
    first = draw(source, CounterfactualConfig(20))
    assert not source._outputs
    assert torch.equal(first.pixels, draw(source, CounterfactualConfig(20)).pixels)


def test_two_way_sets_hold_as_many_of_both_and_share_no_image() -> None:
    real = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    counterfactual = torch.arange(100, 180, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    (pixels, labels), (held_out, held_out_labels) = two_way_sets(real, counterfactual, 45, seed=0)
    assert labels.bincount().tolist() == [45, 45]
    assert held_out_labels.bincount().tolist() == [15, 15]
    values = torch.cat([pixels, held_out])[:, 0, 0, 0]
    assert len(values.unique()) == len(values)
    assert torch.equal(torch.cat([labels, held_out_labels]) == 1, values >= 100)
    again = two_way_sets(real, counterfactual, 45, seed=1)[0][0]
    assert not torch.equal(again, pixels)

    (_, labels), (_, held_out_labels) = two_way_sets(real, counterfactual, 1000, seed=0)
    assert labels.bincount().tolist() == [60, 60]  # three quarters of the smaller set
    assert held_out_labels.bincount().tolist() == [20, 20]
    with pytest.raises(InputError, match="at least 4"):
        two_way_sets(real[:1], counterfactual, 10, seed=0)


def _real_images() -> RealImages:
    """Bright digits on a dark ground, of 10 classes that brightness tells apart."""
    labels = torch.arange(200) % 10
    pixels = (20 * labels + 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    strokes = torch.zeros(200, 1, 32, 32, dtype=torch.bool)
    strokes[:, :, 8:24, 14:18] = True
    everything = TensorSet(pixels, labels, strokes)
    return RealImages(everything, everything, everything)


def test_measure_returns_every_accuracy(random_teacher: MNISTTeacher) -> None:
    (reading,) = readings(("none",), ("sampling",), (), ("permuted",))
    config = replace(SMOKE.reading(reading, 0), images=80)
    measured = measure(config, random_teacher, _real_images(), torch.device("cpu"), Interruption())
    assert set(measured) == {
        "train_accuracy",
        "valid_accuracy",
        "test_accuracy",
        "two_way_train_accuracy",
        "two_way_accuracy",
        "two_way_test_accuracy",
        "stroke_iou",
        "mask_sameness",
    }
    assert all(0 <= value <= 1 for value in measured.values())
    assert measured == measure(config, random_teacher, _real_images(), torch.device("cpu"), Interruption())


def test_the_two_way_test_set_is_all_real(random_teacher: MNISTTeacher) -> None:
    """Flat gray images are easily told from a random CGN's: those of the test set are taken for real."""
    (reading,) = readings(("none",), ("sampling",), (), ("permuted",))
    two_way = ClassifierConfig(epochs=12, batch_size=10, gamma=0.9, precision="fp32")
    config = replace(SMOKE.reading(reading, 0), images=200, two_way=two_way, two_way_images=150)
    measured = measure(config, random_teacher, _real_images(), torch.device("cpu"), Interruption())
    assert measured["two_way_accuracy"] > 0.9
    assert measured["two_way_test_accuracy"] > 0.8


def test_samples_of_two_readings_differ_in_the_modification_alone(random_teacher: MNISTTeacher) -> None:
    of = {
        reading.when: samples(random_teacher, reading, seed=0)
        for reading in readings(("noise",), ("sampling", "training"), ("scratch",), ("permuted",))
    }
    assert of["sampling"]["mask"].shape == (10, 1, 32, 32)
    assert of["sampling"]["images"].shape == (10, 3, 32, 32)
    assert torch.equal(of["sampling"]["generated"], of["training"]["generated"])
    assert torch.equal(of["training"]["mask"], of["training"]["generated"])
    assert not torch.equal(of["sampling"]["mask"], of["sampling"]["generated"])


def test_an_interrupted_reading_says_so(random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Interruption) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(Interruption, "check", interrupt)
    (reading,) = readings(("none",), ("sampling",), (), ("permuted",))
    with pytest.raises(Interrupted):
        measure(SMOKE.reading(reading, 0), random_teacher, _real_images(), torch.device("cpu"), Interruption())


# --- the study


def test_the_study_on_digits_its_table_and_figures(digits: Store, capsys: pytest.CaptureFixture[str]) -> None:
    plan = table1_shape_im.plan(_config())
    results = carry_out(plan)
    assert len(results) == 2 * 2 * 2 + 1  # two modifications, whens and labels; one transparency
    found = digits.runs(EXPERIMENT)
    assert {run.status for run in found} == {"FINISHED"}
    kinds = [run.tags["kind"] for run in found]
    assert (kinds.count("cgn"), kinds.count("classifier")) == (2, 9)
    assert {run.tags["stand_in"] for run in found} == {"true"}
    for run in digits.runs(EXPERIMENT, kind="classifier"):
        assert {"when", "init", "labels", "intervention", "strength", "seed", "overrides"} <= set(run.tags)
        assert 0 <= run.final["test_accuracy"] <= 1
        assert set(digits.load_tensors(run.run_id, "samples")) == {"generated", "mask", "images"}

    capsys.readouterr()
    again = carry_out(plan)
    assert capsys.readouterr().out.count("skipped") == 9 + 2 + 1
    assert len(digits.runs(EXPERIMENT)) == len(found)
    pd.testing.assert_frame_equal(again, results)

    _check_analysis(digits)


def _check_analysis(store: Store) -> None:
    shown = View(store, dataset="digits")
    table = table1_shape_im_figures.table_1(shown)
    assert "stand-in" in table.title
    assert "smoke test" in table.title
    text = table.text
    assert "99.9 / 14.96" in text["paper"].tolist()
    assert (text["train"] != "").all()
    assert any("python experiments/table1_shape_im.py --dataset digits" in command for command in table.commands)
    assert table.to_latex().count("protocol") >= 1
    for draw_ in (table1_shape_im_figures.figure_3, table1_shape_im_figures.transparency_curve):
        figure = draw_(shown)
        assert not style.is_gap(figure)
        assert style.cited(figure)
    assert table1_shape_im_figures.verdicts(shown).cells["verdict"].str.contains("Noise, permuted labels").any()


def test_a_modified_cgn_starts_where_it_is_told(digits: Store) -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=())
    config = replace(config, init=("scratch", "pretrained"), training=config.finetune, seeds=(5,))
    results = carry_out(table1_shape_im.plan(config))
    assert set(results.index.get_level_values("init")) == {"scratch", "pretrained"}
    (teacher,) = digits.runs("train_cgn_mnist")
    weights = {"teacher": _weights(digits, teacher.run_id)}
    for run in digits.runs(EXPERIMENT, kind="cgn"):
        assert run.tags["intervention"] == run.params["training.intervention"] == "noise"
        assert run.tags["perceptual"]
        weights[run.tags["init"]] = _weights(digits, run.run_id)
    way = {init: (weights[init] - weights["teacher"]).norm() for init in ("scratch", "pretrained")}
    assert 0 < way["pretrained"] < way["scratch"] / 10


def _weights(store: Store, run_id: str) -> torch.Tensor:
    cgn = load_trained(store, store.record(run_id), "digits").cgn
    return torch.cat([parameter.flatten() for parameter in cgn.parameters()])


def test_a_reading_of_a_trained_cgn_does_not_train_it_again(digits: Store) -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=())
    for changes in ({}, {"when": ("both",), "labels": ("unpermuted",)}, {"images": 80}):
        carry_out(table1_shape_im.plan(replace(config, **changes)))
    assert len(digits.runs(EXPERIMENT, kind="cgn")) == 1
    assert len(digits.runs(EXPERIMENT, kind="classifier")) == 3


def test_a_killed_training_resumes(
    digits: Store, taught_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=())
    plan = table1_shape_im.plan(replace(config, runtime=Runtime(threads=1, checkpoint_every=1)))
    whole = carry_out(plan, digits)

    (tmp_path / "other").mkdir()
    shutil.copy(taught_store, tmp_path / "other" / "mlflow.db")
    other = open_store(f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}")
    steps = []

    def kill(self: Interruption) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise Interrupted(15)

    with monkeypatch.context() as context:
        context.setattr(Interruption, "check", kill)
        with pytest.raises(Interrupted):
            carry_out(plan, other)
    (killed,) = other.runs(EXPERIMENT)
    assert (killed.tags["kind"], killed.status) == ("cgn", "KILLED")
    resumed = carry_out(plan, other)
    pd.testing.assert_frame_equal(resumed.drop(columns="run_id"), whole.drop(columns="run_id"))
    (cgn,) = other.runs(EXPERIMENT, kind="cgn")
    assert cgn.run_id == killed.run_id


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strengths", "1.5"), "strengths is (1.5,)"),
        (("--images", "0"), "images is 0"),
        (("--when",), "when is ()"),
        (("--runtime.device", "cuda:99"), "give cpu, or auto"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    refusal: Callable[..., str], options: tuple[str, ...], words: str
) -> None:
    assert words in refusal(table1_shape_im, "--profile", "smoke", "--dataset", "digits", *options)


def test_where_mnist_is_missing_one_sentence_offers_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    with pytest.raises(InputError, match="--dataset digits"):
        table1_shape_im.plan(SMOKE)


@pytest.mark.data
def test_real_images_are_biased_in_training_alone(data_dir: Path) -> None:
    real = real_images("double_colored", limit=100)
    assert (len(real.training), len(real.valid), len(real.test)) == (50_000, 100, 100)
    corner = real.training.pixels[:2000, :, 0, 0].float()
    labels = real.training.labels[:2000]
    spread = max(corner[labels == label].std(dim=0).max().item() for label in range(10))
    assert spread < 10  # one background color a label
    assert real.valid.pixels[real.valid.labels == 1][:, :, 0, 0].float().std(dim=0).max() > 30


@pytest.mark.data
def test_a_reading_of_the_authors_cgn(data_dir: Path, store: Store) -> None:
    """Its masks are digits, and those of a class differ."""
    config = replace(
        SMOKE, interventions=("none",), when=("sampling",), labels=("permuted",), strengths=(), test_images=200
    )
    results = carry_out(table1_shape_im.plan(config))
    (quality,) = results[["stroke_iou", "mask_sameness"]].itertuples(index=False)
    assert quality.stroke_iou > 0.5
    assert quality.mask_sameness < quality.stroke_iou
    (run,) = store.runs(EXPERIMENT)
    assert run.tags["source"] == run.tags["teacher"]
    assert run.tags["stand_in"] == "false"
