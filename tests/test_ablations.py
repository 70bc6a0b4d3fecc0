"""The ablations: presets, their metrics by hand, the scripts at smoke scale, and what the analysis makes of them."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import ablation_losses as ablation_losses_figures
from analysis import kl_convergence as kl_convergence_figures
from analysis import noise_pairing as noise_pairing_figures
from experiments import ablation_losses, kl_convergence, noise_pairing
from skdcgn.cgn.adversarial import save_cgn
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.images import grid
from skdcgn.measure import fidelity
from skdcgn.measure.heldout import HeldOut
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.profiles import MNIST
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import evaluation_steps
from skdcgn.runtime import Runtime
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANGenerator
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
    assert set(ablation_losses_figures.chosen(store, experiment)[arm]) == set(titles)
    if script is ablation_losses:
        figure = ablation_losses_figures.figure_over_training(store, 12, "cross_entropy")
        assert len(figure.axes) == 3  # epochs 2, 10 and 30
        assert "smoke test" in figure.texts[0].get_text().replace("\n", " ")
    if script is noise_pairing:
        assert len(noise_pairing_figures.pairing_figure(store).axes) == 4
    capsys.readouterr()
    again = script.main(config)
    assert capsys.readouterr().out.count("skipped") == len(titles)
    pd.testing.assert_frame_equal(again, results)


# --- the analysis


@dataclass(frozen=True)
class Distill:
    steps: int = 30
    published_code: bool = False


@dataclass(frozen=True)
class Config:
    variant: str
    seeds: tuple[int, ...]
    distill: Distill = field(default_factory=Distill)
    runtime: Runtime = field(default_factory=lambda: Runtime(force=True))


TAGS = {
    "profile": "quick",
    "dataset": "double_colored",
    "teacher": "a teacher",
    "teacher_sha256": "a",
    "stand_in": False,
}


def add_run(
    store: run_store.Store, parent: run_module.Run, variant: str, seed: int, iou: float, steps: int = 30
) -> None:
    """Add a shape student to a store: a teacher of black masks, and a student that brightens with every evaluation."""
    config = Config(variant, (seed,), Distill(steps, variant == "published_code"))
    tags = {**TAGS, "mechanism": "shape", "variant": variant, "seed": seed, "git_dirty": True}
    with store.start(ablation_losses_figures.ABLATION, config, variant, None, tags, parent) as run:
        for step in (2, 10, 30):
            rows = 2 * [torch.full((5, 3, 8, 8), -1.0), torch.full((5, 3, 8, 8), step / 15 - 1)]
            run.log_image("shape/teacher over student", grid(rows, scale=2), step)
            run.log_metrics("heldout", {"iou": iou * step / 30, "noise_energy": 1.0}, step)
        run.log_metrics("final", {"iou": iou, "noise_energy": 1.0 + seed}, 30)
        run.log_metrics("cost", {"train_seconds": 1.5}, 30)


@pytest.fixture
def filled(store: run_store.Store) -> run_store.Store:
    with store.start(
        ablation_losses_figures.ABLATION, Config("all", (0, 1, 2)), "group", {"level": "group"}, TAGS
    ) as parent:
        for seed in range(3):
            add_run(store, parent, "tinygan", seed, 0.5 + 0.1 * seed)
            add_run(store, parent, "d2_kl_outputs", seed, 0.7 + 0.11 * seed)
        add_run(store, parent, "cross_entropy", 0, 0.1)
        add_run(store, parent, "d3_mse", 0, 0.4)
    return store


def test_verdicts_are_paired_by_seed_and_by_hand(filled: run_store.Store) -> None:
    verdicts = ablation_losses_figures.verdicts(filled).set_index(["question", "mechanism"])
    better = verdicts.loc[("Is D.2 better than the plain loss?", "shape")]
    # differences 0.2, 0.21, 0.22: mean 0.21 ± 4.30265 * 0.01 / sqrt(3)
    assert [better["mean"], better["low"], better["high"]] == pytest.approx([0.21, 0.18516, 0.23484], abs=1e-5)
    assert (better["n"], better["verdict"]) == (3, "better")
    alone = verdicts.loc[("Is MSE (D.3) better than the plain loss?", "shape")]
    assert (alone["n"], alone["verdict"]) == (1, "one seed only")
    assert alone["mean"] == pytest.approx(-0.1)
    gap = verdicts.loc[("Does the paper's KL speed convergence?", "shape")]
    assert gap["verdict"] == "no pair of runs: python experiments/kl_convergence.py"


@pytest.mark.parametrize(
    ("metric", "interval", "words"),
    [
        ("l1", (0.1, 0.2), "worse"),
        ("l1", (-0.2, -0.1), "better"),
        ("iou", (0.1, 0.2), "better"),
        ("iou", (-0.1, 0.2), "no clear difference"),
        ("noise_energy", (0.1, 0.2), "noisier"),
        ("steps_to_target", (-9.0, -1.0), "faster"),
    ],
)
def test_words_follow_the_direction_of_the_metric(metric: str, interval: tuple[float, float], words: str) -> None:
    assert ablation_losses_figures._verdict(metric, *interval) == words


def test_figures_read_the_images_back_pixel_by_pixel(filled: run_store.Store) -> None:
    figure = ablation_losses_figures.figure_over_training(filled, 12, "cross_entropy")
    for axes, step in zip(figure.axes, (2, 10, 30), strict=True):
        pixels = axes.images[0].get_array()
        assert pixels.shape == (2 * 10 + 2, 10 * 10 + 2, 3)
        assert (pixels[2:10, 2:10] == 0).all()
        np.testing.assert_allclose(pixels[12:20, 92:100], 255 * step / 30, atol=1)
    assert figure.texts[0].get_text().startswith("Fig. 12: mask students, cross entropy")


def test_missing_runs_show_as_gaps_with_their_commands(filled: run_store.Store) -> None:
    for figure in (
        ablation_losses_figures.figure_14(filled),
        ablation_losses_figures.figure_over_training(filled, 13, "d1_kl_layers"),
    ):
        assert "python experiments/ablation_losses.py" in [text.get_text() for text in figure.axes[0].texts]
    for figure in (
        kl_convergence_figures.figure_15_mnist(filled),
        ablation_losses_figures.curves(filled, "kl_convergence", Mechanism.SHAPE),
    ):
        assert "python experiments/kl_convergence.py" in [text.get_text() for text in figure.axes[0].texts]


def test_only_runs_of_one_setting_are_compared(filled: run_store.Store) -> None:
    with filled.start(
        ablation_losses_figures.ABLATION, Config("all", (9,)), "group", {"level": "late"}, TAGS
    ) as parent:
        add_run(filled, parent, "tinygan", 0, 0.9, steps=60)
    assert ablation_losses_figures.chosen(filled, ablation_losses_figures.ABLATION)["final/iou"].tolist() == [0.9]


def test_curves_draw_the_mean_of_every_arm(filled: run_store.Store) -> None:
    iou, noise = ablation_losses_figures.curves(filled, ablation_losses_figures.ABLATION, Mechanism.SHAPE).axes
    assert iou.get_title() == "mask IoU ↑"
    assert noise.get_title() == "noise energy"
    lines = {line.get_label(): line.get_ydata()[-1] for line in iou.lines}
    assert lines["plain loss"] == pytest.approx(0.6)
    assert set(lines) == {"plain loss", "cross entropy", "D.2: KL of the outputs", "D.3: MSE for each layer"}


def test_pictures_are_read_back_as_they_were_drawn(store: run_store.Store, random_teacher: MNISTTeacher) -> None:
    """Figures 12 to 16 are cut from the pictures that a training logs: layout and reading must agree."""
    heldout = HeldOut.unseen(random_teacher, Mechanism.SHAPE, per_class=2)
    with seeded(0, "student"):
        student = TinyGANGenerator(NATIVE_MNIST.for_mechanism(Mechanism.SHAPE)).eval()
    config = Config("tinygan", (0,), Distill(30))
    with store.start(ablation_losses_figures.ABLATION, config, "run") as run:
        run.log_image("shape/teacher over student", heldout.compare(student), 30)
    shown = pd.Series({"run_id": run.run_id, "param/distill.steps": "30", "mechanism": "shape"})
    drawn = ablation_losses_figures._images(store, shown, Mechanism.SHAPE, 30)
    for read, rendered in zip(drawn, (heldout.teacher, heldout.render(student)), strict=True):
        image = Mechanism.SHAPE.to_image(rendered[:10], 3)
        assert read.shape == image.shape
        assert (read - image).abs().max() <= 1 / 255 + 1e-4


def test_means_are_written_with_interval_and_n(filled: run_store.Store) -> None:
    table = ablation_losses_figures.means(filled, ablation_losses_figures.ABLATION)
    assert table.loc[("shape", "plain loss"), "mask IoU ↑"] == "0.6 [0.352, 0.848], n=3"
    assert table.loc[("shape", "cross entropy"), "mask IoU ↑"] == "0.1, n=1"
    assert ablation_losses_figures.means(filled, "kl_convergence").empty
