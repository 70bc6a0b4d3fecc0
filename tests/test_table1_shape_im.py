"""The study of the shape mechanism: cases, labels, classifiers, the script at smoke scale, and its table in words."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis import table1_shape_im as table1_shape_im_figures
from analysis.frame import style
from analysis.frame.view import View
from experiments import table1_shape_im
from experiments.table1_shape_im import DEFAULTS, Config
from skdcgn import cli
from skdcgn.cgn.adversarial import PUBLISHED
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.counterfactuals import datasets
from skdcgn.counterfactuals.datasets import CounterfactualConfig, draw
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError, Interrupted
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream
from skdcgn.recipes import table1_shape_im as table1_shape_im_recipe
from skdcgn.recipes.table1_shape_im import Case, RealImages, Remembering, cases, two_way_sets
from skdcgn.runs import interruption
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime

ALL = ("none", "noise", "rotation", "transparency")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counterfactuals are drawn by whole chunks: small ones do here."""
    monkeypatch.setattr(datasets, "CHUNK", 40)


# --- cases


def test_the_cases_of_a_study() -> None:
    found = cases(ALL, ("sampling", "training", "both"), ("scratch",), ("permuted", "unpermuted"))
    assert len(found) == len(set(found)) == 2 * (4 + 4 + 3)  # the control is trained once, for training and both
    assert all((case.when == "sampling") == (case.init is None) for case in found)
    order = [case.cgn for case in found]
    assert sum(a != b for a, b in itertools.pairwise(order)) == len(set(order)) - 1  # CGN by CGN
    assert len(set(order)) == 1 + 4


@pytest.mark.parametrize(
    ("when", "training", "sampling"),
    [("sampling", "none", "noise"), ("training", "noise", "none"), ("both", "noise", "noise")],
)
def test_when_a_mask_is_modified(when: str, training: str, sampling: str) -> None:
    (case,) = cases(("noise",), (when,), ("scratch",), ("permuted",))
    assert (case.in_training, case.at_sampling) == (training, sampling)
    config = DEFAULTS["smoke"]
    trained = config.training_of(case, 7)
    assert (trained is None) == (when == "sampling")
    if trained is not None:
        assert (trained.intervention, trained.seed, trained.steps) == ("noise", 7, config.training.steps)
    images = config.of(case, 7).counterfactuals
    assert (images.intervention, images.permute, images.seed) == (sampling, True, 7)


def test_transparencies_join_the_cases_that_are_there_anyway() -> None:
    found = cases(("none", "transparency"), ("sampling",), (), ("permuted",), (0.25, 0.75, 1.0), ("sampling",))
    assert sorted(case.transparency for case in found) == [0.25, 0.75, 1.0]
    assert [case.strength for case in found if case.transparency == 0.25] == [0.25]
    assert Case("noise", "sampling", None, "permuted").transparency is None
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match="--strengths"):
            cases(("none",), ("sampling",), (), ("permuted",), (wrong,), ("sampling",))


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
    (case,) = cases(("noise",), ("sampling",), (), ("unpermuted",))
    data = draw(random_teacher, DEFAULTS["smoke"].of(case, 0).counterfactuals)
    assert torch.equal(data.texture, data.shape)
    assert torch.equal(data.background, data.shape)
    (case,) = cases(("noise",), ("sampling",), (), ("permuted",))
    data = draw(random_teacher, DEFAULTS["smoke"].of(case, 0).counterfactuals)
    assert 0 < (data.texture == data.shape).float().mean() < 0.5


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
    (case,) = cases(("none",), ("sampling",), (), ("permuted",))
    config = replace(DEFAULTS["smoke"].of(case, 0), images=80)
    measured = table1_shape_im_recipe.measure(config, random_teacher, _real_images(), torch.device("cpu"))
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
    assert measured == table1_shape_im_recipe.measure(config, random_teacher, _real_images(), torch.device("cpu"))


def test_the_two_way_test_set_is_all_real(random_teacher: MNISTTeacher) -> None:
    """Flat grey images are easily told from a random CGN's: those of the test set are taken for real."""
    (case,) = cases(("none",), ("sampling",), (), ("permuted",))
    two_way = ClassifierConfig(epochs=12, batch_size=10, gamma=0.9, precision="fp32")
    config = replace(DEFAULTS["smoke"].of(case, 0), images=200, two_way=two_way, two_way_images=150)
    measured = table1_shape_im_recipe.measure(config, random_teacher, _real_images(), torch.device("cpu"))
    assert measured["two_way_accuracy"] > 0.9
    assert measured["two_way_test_accuracy"] > 0.8


def test_mask_quality_knows_digits_from_masks_that_are_all_the_same() -> None:
    class Stamp(MNISTTeacher):
        """Gives every image of a class the same bar."""

        num_classes = 10

        def __init__(self) -> None:
            pass

        def render(self, mechanism: Mechanism, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(len(labels), 1, 32, 32)
            mask[:, :, 8:24, 14:18] = 1.0
            return mask

    quality = table1_shape_im_recipe.mask_quality(Stamp(), _real_images().valid, seed=0)
    assert quality == {"stroke_iou": 1.0, "mask_sameness": 1.0}


def test_samples_of_two_cases_differ_in_the_modification_alone(random_teacher: MNISTTeacher) -> None:
    of = {
        case.when: table1_shape_im_recipe.samples(random_teacher, case, seed=0)
        for case in cases(("noise",), ("sampling", "training"), ("scratch",), ("permuted",))
    }
    assert of["sampling"]["mask"].shape == (10, 1, 32, 32)
    assert of["sampling"]["images"].shape == (10, 3, 32, 32)
    assert torch.equal(of["sampling"]["generated"], of["training"]["generated"])
    assert torch.equal(of["training"]["mask"], of["training"]["generated"])
    assert not torch.equal(of["sampling"]["mask"], of["sampling"]["generated"])


def test_an_interrupted_case_says_so(random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: interruption.Interruption) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(interruption.Interruption, "check", interrupt)
    (case,) = cases(("none",), ("sampling",), (), ("permuted",))
    with pytest.raises(Interrupted):
        table1_shape_im_recipe.measure(
            DEFAULTS["smoke"].of(case, 0), random_teacher, _real_images(), torch.device("cpu")
        )


def test_an_estimate_grows_with_the_work(random_teacher: MNISTTeacher) -> None:
    config = DEFAULTS["smoke"]
    found = cases(("none",), ("training",), ("scratch",), ("permuted",))
    real = _real_images().training
    few, many = (
        table1_shape_im_recipe.estimate_seconds(
            [each.of(case, 0) for case in found], real, random_teacher, torch.device("cpu")
        )
        for each in (config, replace(config, training=replace(config.training, steps=10_000), images=100_000))
    )
    assert 0 < few < many / 10


# --- the script


def _config(**changes: object) -> Config:
    return replace(DEFAULTS["smoke"], dataset="digits", runtime=Runtime(threads=1), **changes)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, random_teacher: MNISTTeacher) -> None:
    """The offline digits, with a random CGN in the place of the teacher that would be trained first."""
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    monkeypatch.setattr(table1_shape_im.train_cgn_mnist, "load_teacher", lambda *_: random_teacher)


def test_smoke_run_on_digits(store: run_store.Store, offline: None, capsys: pytest.CaptureFixture[str]) -> None:
    results = table1_shape_im.main(_config())
    first = capsys.readouterr().out
    assert len(results) == 2 * 2 * 2 + 1  # two modifications, whens and labels; one transparency
    assert re.search(r"9 cases: about \d+ minutes", first.splitlines()[0])
    assert "99.9 / 14.96" in first

    found = store.search(table1_shape_im.EXPERIMENT)
    assert {run.info.status for run in found} == {"FINISHED"}
    level = [run.data.tags["level"] for run in found]
    assert (level.count("group"), level.count("cgn"), level.count("case")) == (1, 2, 9)
    for run in found:
        assert run.data.tags["stand_in"] == "true"
        if run.data.tags["level"] == "case":
            assert {"when", "init", "labels", "intervention", "strength", "seed", "overrides"} <= set(run.data.tags)
            assert 0 <= run.data.metrics["final/test_accuracy"] <= 1
        if run.data.tags["level"] == "group":
            with store.artifact(run.info.run_id, "table_1.csv") as path:
                table = pd.read_csv(path)
            assert {"protocol", "intervention", "quantity", "mean", "low", "high", "n"} <= set(table)

    again = table1_shape_im.main(_config())
    assert capsys.readouterr().out.count("skipped") == 9 + 2 + 1
    assert len(store.search(table1_shape_im.EXPERIMENT)) == len(found)
    pd.testing.assert_frame_equal(again, results)

    _check_analysis(store)


def _check_analysis(store: run_store.Store) -> None:
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


def test_a_case_of_a_trained_cgn_does_not_train_it_again(store: run_store.Store, offline: None) -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=())
    table1_shape_im.main(config)
    table1_shape_im.main(replace(config, when=("both",), labels=("unpermuted",)))
    table1_shape_im.main(replace(config, images=80))
    cgns = [run for run in store.search(table1_shape_im.EXPERIMENT) if run.data.tags["level"] == "cgn"]
    assert len(cgns) == 1


def test_a_killed_training_goes_on(
    store: run_store.Store, offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=())
    config = replace(config, runtime=Runtime(threads=1, checkpoint_every=1))
    whole = table1_shape_im.main(config)

    other = run_store.open_store(f"sqlite:///{tmp_path / 'other.db'}")
    monkeypatch.setattr(run_store, "open_store", lambda: other)
    steps = []

    def kill(self: interruption.Interruption) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise Interrupted(15)

    with monkeypatch.context() as context:
        context.setattr(interruption.Interruption, "check", kill)
        with pytest.raises(Interrupted):
            table1_shape_im.main(config)
    killed = {run.data.tags["level"]: run.info for run in other.search(table1_shape_im.EXPERIMENT)}
    assert killed["cgn"].status == killed["group"].status == "KILLED"
    resumed = table1_shape_im.main(config)
    pd.testing.assert_frame_equal(resumed, whole)
    (cgn,) = [run for run in other.search(table1_shape_im.EXPERIMENT) if run.data.tags["level"] == "cgn"]
    assert cgn.info.run_id == killed["cgn"].run_id


def test_the_start_is_part_of_a_cgns_identity(store: run_store.Store, offline: None) -> None:
    config = _config(interventions=("noise",), when=("training",), labels=("permuted",), strengths=())
    config = replace(config, init=("scratch", "pretrained"), training=config.finetune)
    results = table1_shape_im.main(config)
    assert set(results["init"]) == {"scratch", "pretrained"}
    cgns = [run for run in store.search(table1_shape_im.EXPERIMENT) if run.data.tags["level"] == "cgn"]
    assert len({run.info.run_id for run in cgns}) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strengths", "1.5"), "--strengths 1.5"),
        (("--images", "0"), "--images 0"),
        (("--when",), "--when names none"),
        (("--dataset", "double_colored"), "--dataset digits"),
        (("--runtime.device", "cuda:99"), "try cpu or auto"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    store: run_store.Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    arguments = ["--profile", "smoke", "--dataset", "digits", *options]
    with pytest.raises(SystemExit) as exit_:
        cli.entry(lambda: table1_shape_im.main(cli.parse(DEFAULTS, args=arguments)))
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not store.search(table1_shape_im.EXPERIMENT)  # nothing half-done is left behind


@pytest.mark.data
def test_real_images_are_biased_in_training_alone(data_dir: Path) -> None:
    real = table1_shape_im_recipe.real_images("double_colored", limit=100)
    assert (len(real.training), len(real.valid), len(real.test)) == (50_000, 100, 100)
    corner = real.training.pixels[:2000, :, 0, 0].float()
    labels = real.training.labels[:2000]
    spread = max(corner[labels == label].std(dim=0).max().item() for label in range(10))
    assert spread < 10  # one background colour a label
    assert real.valid.pixels[real.valid.labels == 1][:, :, 0, 0].float().std(dim=0).max() > 30


def test_every_case_draws_from_its_own_seed(random_teacher: MNISTTeacher) -> None:
    (case,) = cases(("none",), ("sampling",), (), ("permuted",))
    first, second = (draw(random_teacher, DEFAULTS["smoke"].of(case, seed).counterfactuals) for seed in (0, 1))
    assert not torch.equal(first.shape, second.shape)
    noise = random_teacher.sample_noise(2, stream(0, "any"))
    assert noise.shape == (2, 32)
