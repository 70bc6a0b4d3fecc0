"""The ablations: presets, their metrics by hand, and the scripts at smoke scale."""

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from analysis import ablation_losses as ablation_losses_figures
from analysis import noise_pairing as noise_pairing_figures
from analysis.frame.view import View
from experiments import ablation_losses, kl_convergence, noise_pairing
from skdcgn.cgn.adversarial import save_cgn
from skdcgn.cgn.mnist import CGN
from skdcgn.measure import fidelity
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.profiles import MNIST
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import evaluation_steps
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


@pytest.mark.parametrize("profile", ["quick", "full", "paper"])
def test_lambda_1_falls_to_0_after_two_thirds_of_every_ablation(profile: str) -> None:
    """As in the paper, where it is 0 from epoch 20 of 30 on."""
    scale = MNIST[profile]
    epoch_steps = scale.ablation.per_class * 10 // scale.ablation.batch_size
    of_training = [step / scale.ablation.steps for step in range(scale.ablation.steps)]
    weights = [scale.ablation_loss.lambda_1_at(step // epoch_steps) for step in range(scale.ablation.steps)]
    zero = next(fraction for fraction, weight in zip(of_training, weights, strict=True) if weight < 1e-9)
    assert weights[0] == 0.2
    assert zero == pytest.approx(2 / 3, abs=0.01)


# --- metrics


def test_noise_energy_by_hand() -> None:
    teacher, student = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    teacher[0, 0, 1, 1] = 1.0  # 1 - 0
    student[0, 0, 1, 1] = 0.5
    student[0, 0, 0, 1] = 1.0  # 0.5 - 1 / 4
    assert fidelity.noise_energy(teacher, student) == pytest.approx(0.25**2)
    assert fidelity.noise_energy(teacher, teacher) == pytest.approx(1)
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    assert fidelity.noise_energy(teacher, ramp) == 0  # a slope is no noise
    corners = teacher.clone()
    corners[0, 0, ::2, ::2] = 9.0  # neither inner pixels nor neighbours of one
    assert fidelity.noise_energy(teacher, corners) == pytest.approx(1)


def test_noise_energy_rises_with_noise_and_falls_with_blur() -> None:
    images = torch.rand(8, 3, 16, 16, generator=stream(0, "images"))
    noise = torch.randn(images.shape, generator=stream(0, "noise"))
    energies = [fidelity.noise_energy(images, images + std * noise) for std in (0.0, 0.1, 0.3)]
    assert energies == sorted(energies)
    assert fidelity.noise_energy(images, torch.nn.functional.avg_pool2d(images, 3, 1, 1)) < 0.5


def test_noise_response_is_the_correlation_within_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    teacher = torch.tensor([1.0, -1.0, 5.0, 7.0]).view(4, 1, 1, 1)
    means = torch.tensor([0.0, 0.0, 6.0, 6.0]).view(4, 1, 1, 1)
    half_wrong = torch.tensor([2.0, -2.0, 9.0, 5.0]).view(4, 1, 1, 1)  # deviations 2, -2, 2, -2 against 1, -1, -1, 1
    assert fidelity.noise_response(teacher, 3 * teacher + 2, labels) == pytest.approx(1)
    assert fidelity.noise_response(teacher, -teacher, labels) == pytest.approx(-1)
    assert fidelity.noise_response(teacher, means, labels) == 0
    assert fidelity.noise_response(teacher, half_wrong, labels) == pytest.approx(0)


def test_steps_to_interpolates_and_takes_the_first_crossing() -> None:
    rising = [(10, 0.2), (20, 0.4), (30, 0.3), (40, 0.9)]
    assert fidelity.steps_to(rising, 0.3, rising=True) == pytest.approx(15)
    assert fidelity.steps_to(rising, 0.1, rising=True) == 10
    assert math.isnan(fidelity.steps_to(rising, 0.95, rising=True))
    assert fidelity.steps_to([(4, 1.0), (8, 0.5)], 0.75, rising=False) == pytest.approx(6)


def test_evaluations_at_fractions_of_the_training() -> None:
    assert evaluation_steps(180, (2 / 30, 10 / 30, 1.0)) == {12, 60, 180}
    assert evaluation_steps(3, (0.01, 1.0)) == {1, 3}


# --- the scripts


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "cgn.safetensors"
    with seeded(0, "teacher"):
        save_cgn(path, CGN())
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
    store: run_store.Store,
    random_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    script: ModuleType,
    options: dict[str, float],
    measured: set[str],
) -> None:
    """Every arm of an experiment, at smoke scale: kept, compared by the analysis, and not run a second time."""
    experiment = script.__name__.removeprefix("experiments.")
    arm, titles = ablation_losses_figures.ARMS[experiment]
    default = script.DEFAULTS["smoke"]
    fixed = {"mechanism": "shape", "teacher": random_checkpoint, "evaluations": 3, "heldout_per_class": 3}
    config = replace(default, distill=replace(default.distill, steps=15), **fixed, **options)
    results = script.main(config)
    assert list(results.index.names) == ["mechanism", arm, "seed"]
    assert set(results.index.get_level_values(arm)) == set(titles)
    assert results[list(measured)].notna().all(axis=None)
    assert results["l1"].nunique() == len(titles)  # every arm really differs
    assert {run.info.status for run in store.search(experiment)} == {"FINISHED"}
    shown = View(store)
    assert set(ablation_losses_figures.chosen(shown, experiment)[arm]) == set(titles)
    if script is ablation_losses:
        figure = ablation_losses_figures.figure_over_training(shown, 12, "cross_entropy")
        assert len(figure.axes) == 3  # epochs 2, 10 and 30
        assert "smoke test" in figure.texts[0].get_text().replace("\n", " ")
    if script is noise_pairing:
        assert len(noise_pairing_figures.pairing_figure(shown).axes) == 4
    capsys.readouterr()
    again = script.main(config)
    assert capsys.readouterr().out.count("skipped") == len(titles)
    pd.testing.assert_frame_equal(again, results)
