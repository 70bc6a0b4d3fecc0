"""The studies of objectives, KL and noise: presets, plans, what each measures, and the scripts at smoke scale."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch

from analysis import ablation_losses as ablation_losses_figures
from analysis import noise_pairing as noise_pairing_figures
from analysis.frame.view import View
from experiments import ablation_losses, kl_convergence, noise_pairing
from experiments.presets import StudentsConfig
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import mnist_teacher
from skdcgn.data.weights import save_state_dict
from skdcgn.measure.fidelity import noise_response
from skdcgn.measure.heldout import HeldOut
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded
from skdcgn.recipes.students import ClassMeansConfig, load_student, make_class_means
from skdcgn.runs.identity import flatten
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.loop import evaluation_steps
from skdcgn.runs.plan import Case
from skdcgn.runs.store import Store
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.variants import APPENDIX_D, KL_TERMS

PLAIN = LossConfig()


# --- presets


def test_every_preset_differs_from_the_plain_loss_in_what_its_name_says() -> None:
    loss = {name: preset.loss(PLAIN) for name, preset in {**APPENDIX_D, **KL_TERMS}.items()}
    assert loss["tinygan"] == PLAIN
    assert loss["cross_entropy"].cross_entropy == 1
    assert loss["d1_kl_layers"].feature_distance == "kl"
    assert loss["d3_mse"].feature_distance == "mse"
    d2 = loss["d2_kl_outputs"]
    assert (d2.feature_distance, d2.kl, d2.kl_on, d2.kl_direction) == ("l1", 1.0, "pixels", "teacher_student")
    assert loss["paper"] == d2
    module = loss["published_module"]
    assert (module.kl, module.kl_on, module.kl_direction, module.temperature) == (
        1.0,
        "activations",
        "student_teacher",
        8.0,
    )
    assert loss["published_code"] == loss["none"] == PLAIN  # its module computes a KL, and drops it
    assert [name for name, preset in APPENDIX_D.items() if preset.published_data] == ["published_code"]


def test_a_preset_keeps_the_rest_of_the_plain_loss() -> None:
    changed = LossConfig(lambda_1=0.7, lambda_1_decay=0.1)
    for preset in (*APPENDIX_D.values(), *KL_TERMS.values()):
        assert preset.loss(changed).lambda_1 == 0.7
        assert preset.loss(changed).lambda_1_decay == 0.1


@pytest.mark.parametrize("script", [ablation_losses, kl_convergence])
@pytest.mark.parametrize("profile", ["quick", "full", "paper"])
def test_lambda_1_falls_to_0_after_two_thirds_of_the_training(script: ModuleType, profile: str) -> None:
    """As in the paper, where it is 0 from epoch 20 of 30 on."""
    distill, loss = script.DEFAULTS[profile].distill, script.DEFAULTS[profile].loss
    epoch_steps = distill.per_class * 10 // distill.batch_size
    weights = [loss.lambda_1_at(step // epoch_steps) for step in range(distill.steps)]
    zero = next(step / distill.steps for step, weight in enumerate(weights) if weight < 1e-9)
    assert weights[0] == 0.2
    assert zero == pytest.approx(2 / 3, abs=0.01)


def test_evaluations_at_fractions_of_the_training() -> None:
    assert evaluation_steps(180, (2 / 30, 10 / 30, 1.0)) == {12, 60, 180}
    assert evaluation_steps(3, (0.01, 1.0)) == {1, 3}


# --- plans


@pytest.mark.parametrize(
    ("script", "arm", "fields"),
    [
        (ablation_losses, "variant", ("loss.", "distill.published_code")),
        (kl_convergence, "kl", ("loss.",)),
        (noise_pairing, "pairing", ("distill.published_code",)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("profile", ["smoke", "quick", "full", "paper"])
def test_runs_of_a_seed_and_mechanism_differ_in_nothing_but_the_arm(
    script: ModuleType, arm: str, fields: tuple[str, ...], profile: str
) -> None:
    config = replace(script.DEFAULTS[profile], dataset="digits", seeds=(0, 1))
    cases = [case for case in script.plan(config).cases if case.tags["kind"] == "student"]
    _, titles = ablation_losses_figures.ARMS[script.__name__.removeprefix("experiments.")]
    assert len(cases) == 2 * 3 * len(titles)
    groups = itertools.groupby(sorted(cases, key=_of), key=_of)
    for _, group in groups:
        configs = {case.tags[arm]: flatten(asdict(case.config)) for case in group}
        assert set(configs) == set(titles)
        first = next(iter(configs.values()))
        for other in configs.values():
            assert all(other[key] == first[key] or key.startswith(fields) for key in first)
    assert len({case.identity.digest for case in cases}) == len(cases)


def _of(case: Case) -> tuple[str, int]:
    return case.tags["mechanism"], case.tags["seed"]


def test_studies_of_one_profile_train_alike_but_for_what_they_ask() -> None:
    options = {"dataset": "digits", "mechanism": "texture"}
    first = ablation_losses.plan(replace(ablation_losses.DEFAULTS["smoke"], **options, variant="tinygan")).cases[0]
    second = noise_pairing.plan(replace(noise_pairing.DEFAULTS["smoke"], **options, pairing="exact")).cases[-1]
    assert (first.config.student, first.config.distill) == (second.config.student, second.config.distill)
    assert (first.config.mechanism, first.config.seed) == (second.config.mechanism, second.config.seed)
    assert first.needs["teacher"].identity.digest == second.needs["teacher"].identity.digest


def test_the_class_means_are_a_run_for_each_mechanism() -> None:
    cases = noise_pairing.plan(replace(noise_pairing.DEFAULTS["smoke"], dataset="digits", seeds=(0, 1))).cases
    means = [case for case in cases if case.tags["kind"] == "class_means"]
    assert [case.config.mechanism for case in means] == [mechanism.value for mechanism in Mechanism]
    assert all(case.make is make_class_means and set(case.needs) == {"teacher"} for case in means)


# --- what a study measures beside fidelity


class Flat:
    """A source of plain images: the label decides their brightness, and the noise adds 0.1 or takes it away."""

    num_classes, resolution = 4, 16

    def sample_noise(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.tensor([1.0, -1.0]).repeat_interleave(n // 2).view(-1, 1)

    def render(self, mechanism: Mechanism, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        brightness = (labels / 4 if mechanism is Mechanism.SHAPE else labels / 4 + 0.1 * noise[:, 0]).view(-1, 1, 1, 1)
        return brightness.expand(-1, mechanism.channels, 16, 16).clone()


@dataclass(frozen=True)
class FlatConfig:
    """Such a source as a teacher."""

    dataset: str = "flat"

    def load(self, *_: object) -> Flat:
        return Flat()


@pytest.mark.parametrize(("mechanism", "l1"), [("shape", 0.0), ("texture", 0.1), ("background", 0.1)])
def test_class_means_know_the_label_and_nothing_else(mechanism: str, l1: float) -> None:
    measured = {}
    run = SimpleNamespace(store=None, log_metrics=lambda prefix, metrics: measured.update({prefix: metrics}))
    make_class_means(run, ClassMeansConfig("smoke", FlatConfig(), mechanism, 2), {})
    assert set(measured) == {"final"}
    assert measured["final"]["l1"] == pytest.approx(l1, abs=1e-6)
    assert measured["final"].get("iou") == (1.0 if mechanism == "shape" else None)


def _smoke(script: ModuleType, teacher: Path, **changes: object) -> StudentsConfig:
    default = script.DEFAULTS["smoke"]
    fixed = {"mechanism": "shape", "teacher": teacher, "evaluations": 3, "heldout_per_class": 3}
    return replace(default, **{"distill": replace(default.distill, steps=15), **fixed, **changes})


def test_a_run_that_never_reaches_its_target_has_no_number_of_steps(store: Store, random_checkpoint: Path) -> None:
    results = carry_out(kl_convergence.plan(_smoke(kl_convergence, random_checkpoint, kl="none", target_iou=1.0)))
    assert "iou" in results
    assert "steps_to_target" not in results


def test_the_steps_to_a_target_are_read_from_the_held_out_history(store: Store, random_checkpoint: Path) -> None:
    config = _smoke(kl_convergence, random_checkpoint, kl="paper", mechanism="texture", target_l1=2.0)
    results = carry_out(kl_convergence.plan(config))
    assert results["steps_to_target"].tolist() == [5]  # the first of three evaluations of 15 steps
    assert results.index.names == ["mechanism", "kl", "seed"]


def test_noise_response_is_that_of_the_kept_student(store: Store, random_checkpoint: Path) -> None:
    (result,) = (
        carry_out(noise_pairing.plan(_smoke(noise_pairing, random_checkpoint, pairing="exact")))
        .xs("student", level="kind")
        .itertuples()
    )
    teacher = mnist_teacher("double_colored", random_checkpoint)
    heldout = HeldOut.unseen(teacher, Mechanism.SHAPE, 3)
    images = heldout.render(load_student(store, result.run_id))
    assert result.noise_response == pytest.approx(noise_response(heldout.teacher, images, heldout.labels), abs=1e-5)
    assert -1 <= result.noise_response <= 1


# --- the scripts


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "cgn.safetensors"
    with seeded(0, "teacher"):
        save_state_dict(path, CGN().state_dict())
    return path


@pytest.mark.parametrize(
    ("script", "options", "measured"),
    [
        (ablation_losses, {}, {"iou", "noise_energy", "frechet"}),
        (kl_convergence, {"target_iou": 0.0}, {"iou", "steps_to_target"}),
        (noise_pairing, {}, {"iou", "seen_iou", "noise_response"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_scripts_on_a_teacher_of_random_weights(
    store: Store,
    random_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    script: ModuleType,
    options: dict[str, float],
    measured: set[str],
) -> None:
    """Every arm of a study, at smoke scale: kept, compared by the analysis, and not run a second time."""
    experiment = script.__name__.removeprefix("experiments.")
    arm, titles = ablation_losses_figures.ARMS[experiment]
    plan = script.plan(_smoke(script, random_checkpoint, **options))
    everything = carry_out(plan)
    assert list(everything.index.names) == [*plan.index]
    results = everything.xs("student", level="kind") if "kind" in plan.index else everything
    assert set(results.index.get_level_values(arm)) == set(titles)
    assert results[list(measured)].notna().all(axis=None)
    assert results["l1"].nunique() == len(titles)  # every arm really differs
    assert {run.status for run in store.runs(experiment)} == {"FINISHED"}
    shown = View(store)
    assert set(ablation_losses_figures.chosen(shown, experiment)[arm]) == set(titles)
    if script is ablation_losses:
        figure = ablation_losses_figures.figure_over_training(shown, 12, "cross_entropy")
        assert len(figure.axes) == 3  # epochs 2, 10 and 30
        assert "smoke test" in figure.texts[0].get_text().replace("\n", " ")
    if script is noise_pairing:
        assert len(noise_pairing_figures.pairing_figure(shown).axes) == 4
        (means,) = store.runs(experiment, kind="class_means")
        assert 0 < means.final["iou"] <= 1
    capsys.readouterr()
    again = carry_out(plan)
    assert capsys.readouterr().out.count("skipped") == len(plan.cases)
    pd.testing.assert_frame_equal(again, everything)


@pytest.mark.data
def test_a_student_of_the_authors_teacher_answers_to_noise(data_dir: Path, store: Store) -> None:
    default = noise_pairing.DEFAULTS["smoke"]
    config = replace(default, mechanism="texture", pairing="exact", distill=replace(default.distill, steps=4))
    results = carry_out(noise_pairing.plan(config))
    assert results.xs("student", level="kind")["noise_response"].between(-1, 1).all()
    assert {run.tags["stand_in"] for run in store.runs("noise_pairing")} == {"false"}


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (ablation_losses, ("--dataset", "digits", "--teacher", "x.pth"), "leave --teacher out"),
        (kl_convergence, ("--loss.kl", "-1"), "kl is -1.0"),
        (kl_convergence, ("--dataset", "digits", "--heldout-per-class", "0"), "heldout_per_class is 0"),
        (noise_pairing, ("--teacher", "missing.pth"), "missing.pth"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    refusal: Callable[..., str], script: ModuleType, flags: tuple[str, ...], words: str
) -> None:
    assert words in refusal(script, "--profile", "smoke", *flags)
