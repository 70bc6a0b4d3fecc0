"""The studies of students, from a run store made by hand to figures and tables."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from record import Make, Record

from analysis import ablation_losses, imagenet_kd, kl_convergence, mnist_kd, noise_pairing
from analysis.frame import style
from analysis.frame.table import Table
from analysis.frame.view import View
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.runs import store as run_store

LABELS = torch.arange(10).repeat(2)

SIZES = {"parameters": 50, "teacher_parameters": 1000, "macs": 3e6, "teacher_macs": 2e6}


def tags(**more: object) -> dict[str, object]:
    fixed = {"kind": "student", "profile": "quick", "dataset": "double_colored", "teacher": "a teacher"}
    return {**fixed, "teacher_sha256": "abc", "stand_in": False, "hardware": "a machine", **more}


def student(mechanism: Mechanism, seed: int, final: dict[str, float], steps: int = 12, **more: object) -> Record:
    """A white student of a black teacher, and a history of two evaluations."""
    images = torch.full((20, mechanism.channels, 8, 8), 0.0 if mechanism is Mechanism.SHAPE else -1.0)
    heldout = {f"heldout/{key}": [[6, final[key] / 2], [12, final[key]]] for key in ("iou", "l1") if key in final}
    return {
        "experiment": "mnist_kd",
        "name": f"{mechanism} {seed} {len(more)} {steps} {final}",
        "tags": tags(mechanism=mechanism.value, seed=seed, **more),
        "params": {"seed": seed, "distill.steps": steps, "distill.texture_steps": None},
        "metrics": {f"final/{key}": value for key, value in {**SIZES, **final}.items()}
        | {"cost/latency_ms_batch_1": 1.0 + seed, "cost/teacher_latency_ms_batch_1": 2.0},
        "history": {**heldout, "loss/total": [[6, 1 / 3], [12, 1 / 6]], "loss/pixel": [[6, 1 / 6], [12, 1 / 12]]},
        "tensors": {"samples": {"labels": LABELS, "teacher": images, "student": torch.ones_like(images)}},
    }


def composed() -> Record:
    """Three students put together: white counterfactuals over the teacher's black ones."""
    masks = torch.zeros(20, 1, 8, 8)
    masks[:, :, :2] = 0.5  # a quarter of all pixels is neither on nor off
    masks[:5, :, 4, 0] = masks[:5, :, 7, 7] = 1.0  # five masks in two pieces
    black, white = torch.full((20, 3, 8, 8), -1.0), torch.ones(20, 3, 16, 16)  # students may be larger
    labels = {f"labels_{mechanism}": (LABELS + index) % 10 for index, mechanism in enumerate(Mechanism)}
    sampled = {"teacher": black, "student": white, "mask_teacher": masks, "mask_student": masks.clone()}
    own = {"tags": tags(kind="skdcgn", seed=0), "tensors": {"counterfactuals": {**sampled, **labels}}}
    return {"experiment": "mnist_kd", "name": "composed", **own}


@pytest.fixture(scope="module")
def store(make: Make) -> run_store.Store:
    """Shape at two seeds (and an older run that must not count), texture at one, background missing."""
    return make(
        [
            student(Mechanism.SHAPE, 0, {"iou": 0.1}),  # superseded below
            student(Mechanism.SHAPE, 0, {"iou": 0.8, "l1": 0.5, "ssim": 0.25}),
            student(Mechanism.SHAPE, 1, {"iou": 0.9, "l1": 0.5, "ssim": 0.25}),
            student(Mechanism.TEXTURE, 0, {"l1": 0.125, "ssim": 0.5, "frechet": 7.0}),
            composed(),
            student(Mechanism.SHAPE, 0, {"iou": 0.4}, profile="smoke"),
            student(Mechanism.SHAPE, 0, {"iou": 0.7, "l1": 0.1}, dataset="digits", stand_in=True),
        ]
    )


@pytest.fixture(scope="module")
def shown(store: run_store.Store) -> View:
    return View(store)


@pytest.fixture(scope="module")
def digits(store: run_store.Store) -> View:
    return View(store, dataset="digits")


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def words(figure: Figure) -> str:
    """All text of a figure, however it was broken into lines."""
    return " ".join(texts(figure).split())


def picture(figure: Figure, block: int = 0) -> np.ndarray:
    return figure.axes[block].images[0].get_array()


# --- mnist_kd: figures


def test_figure_7_draws_the_teacher_over_the_student(shown: View) -> None:
    drawn = mnist_kd.figure_7(shown)
    assert list(drawn) == ["figure_7a_shape", "figure_7b_texture", "figure_7c_background"]
    shape = drawn["figure_7a_shape"]
    for block in (0, 1):
        pixels = picture(shape, block)
        assert (pixels[2:10, 2:10] == 0).all()  # teacher: an empty mask, black
        assert (pixels[12:20, 2:10] == 255).all()  # student: a full one
    run = shown.only("mnist_kd", kind="student", mechanism="shape")
    assert shape.texts[0].get_text().startswith("Fig. 7a: shape mechanism")
    assert f"Run {run['run_id'][:8]}, profile quick, 12 steps, seed 0; teacher: a teacher; on a machine." in words(
        shape
    )
    assert "IoU 0.800" in words(shape)
    assert "teacher\nstudent" in texts(shape)
    assert re.search(r"label\n0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", texts(shape))
    assert "stand-in" not in texts(shape)
    assert style.cited(shape) == [run["run_id"]]


def test_a_missing_run_shows_as_a_gap_with_its_command(shown: View, digits: View, store: run_store.Store) -> None:
    command = "python experiments/mnist_kd.py --mechanism background"
    assert command in texts(mnist_kd.figure_7(shown)["figure_7c_background"])
    assert command in texts(mnist_kd.learning_curves(shown)["learning_curve_background"])
    full = mnist_kd.figure_7(View(store, "full", "wildlife"))["figure_7a_shape"]
    assert "python experiments/mnist_kd.py --profile full --dataset wildlife --mechanism shape" in texts(full)
    assert style.is_gap(full)
    for figure in (mnist_kd.figure_11(digits), mnist_kd.figure_6_mnist(digits)):
        assert "python experiments/mnist_kd.py --dataset digits" in texts(figure)


def test_what_was_run_on_less_says_so_in_its_title(store: run_store.Store, digits: View) -> None:
    drawn = mnist_kd.figure_7(digits)["figure_7a_shape"]
    assert "scikit-learn digits (stand-in: not MNIST" in words(drawn)
    smoke = mnist_kd.learning_curves(View(store, "smoke"))["learning_curve_shape"]
    assert "smoke test" in smoke.texts[0].get_text()


def test_figure_6_draws_skdcgn_over_cgn_with_all_labels(shown: View) -> None:
    figure = mnist_kd.figure_6_mnist(shown)
    pixels = picture(figure)
    assert (pixels[2:10, 2:10] == 255).all()  # the students' counterfactuals are white here
    assert (pixels[12:20, 2:10] == 0).all()
    assert "SKDCGN\nCGN" in texts(figure)
    assert "background\n2\n3\n4\n5\n6\n7\n8\n9\n0\n1\n" in texts(figure)


def test_figure_11_puts_a_number_on_the_noise(shown: View) -> None:
    figure = mnist_kd.figure_11(shown)
    assert "25.0 % of the mask pixels" in words(figure)
    assert "5 of 20 masks fall into several pieces" in words(figure)
    assert len(figure.axes) == 2  # two rows of five


def test_learning_curves_draw_each_seed_and_their_mean(shown: View) -> None:
    drawn = mnist_kd.learning_curves(shown)
    iou, l1, losses = drawn["learning_curve_shape"].axes
    first, second, mean = (line.get_ydata() for line in iou.lines)
    np.testing.assert_allclose([first, second, mean], [[0.4, 0.8], [0.45, 0.9], [0.425, 0.85]])
    assert l1.get_title() == "held-out L1 ↓"
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["total", "pixel"]
    assert len(drawn["learning_curve_texture"].axes) == 2  # no IoU


# --- mnist_kd: the compression table


def cell(table: Table, mechanism: str, quantity: str, model: str) -> str:
    return table.text.loc[(mechanism, quantity), model]


def test_compression_has_hand_checked_values(shown: View) -> None:
    table = mnist_kd.compression(shown)
    assert list(table.text.columns) == ["teacher", "paper's student", "ours"]
    assert cell(table, "shape", "parameters", "teacher") == "1,000"
    assert cell(table, "shape", "parameters", "ours") == "50 (20.0× smaller)"
    assert cell(table, "shape", "MACs of one image (millions)", "ours") == "3.00 (1.5× larger)"
    # 0.85 ± 12.706 * 0.0707 / sqrt(2): Student's t with one degree of freedom
    assert cell(table, "shape", "mask IoU ↑", "ours") == "0.850 [0.215, 1.485], n=2"
    assert cell(table, "shape", "latency, batch of 1 (ms)", "ours") == "1.50 [-4.85, 7.85], n=2"
    assert cell(table, "shape", "latency, batch of 1 (ms)", "teacher") == "2.00 [2.00, 2.00], n=2"
    assert cell(table, "shape", "mask IoU ↑", "teacher") == "reference"
    assert cell(table, "texture", "L1 ↓", "ours") == "0.125, n=1"
    assert cell(table, "texture", "Fréchet distance ↓", "ours") == "7.00, n=1"
    assert cell(table, "shape", "Fréchet distance ↓", "ours") == "not measured"
    assert ("texture", "mask IoU ↑") not in table.text.index
    run_id = shown.only("mnist_kd", kind="student", mechanism="shape")["run_id"]
    (origin,) = [note for note in table.notes if note.startswith("Shape, ours: ")]
    assert run_id[:8] in origin
    assert "12 steps, seeds 0, 1; teacher: a teacher; on a machine." in origin


def test_the_published_student_has_its_known_size_without_a_run(shown: View) -> None:
    table = mnist_kd.compression(shown)
    assert cell(table, "shape", "parameters", "paper's student") == "2,101,955 (2102.0× larger)"
    assert cell(table, "background", "parameters", "paper's student") == "2,101,955"  # no teacher to compare with


def test_gaps_of_a_table_name_their_commands(shown: View) -> None:
    table = mnist_kd.compression(shown)
    gap = cell(table, "background", "L1 ↓", "ours")
    number = int(re.fullmatch(r"no finished run \[(\d+)\]", gap)[1])
    assert table.commands[number - 1] == "python experiments/mnist_kd.py --mechanism background"
    assert cell(table, "background", "parameters", "teacher") == gap
    theirs = table.cells.query("model == \"paper's student\" and metric == 'final/iou'")["command"].item()
    assert theirs == "python experiments/mnist_kd.py --profile paper --mechanism shape"


@pytest.mark.parametrize(("parameters", "text"), [(2_101_955, "0.125, n=1"), (50, "no finished run")])
def test_runs_of_the_paper_profile_fill_the_papers_column_only(make: Make, parameters: int, text: str) -> None:
    run = student(Mechanism.TEXTURE, 0, {"l1": 0.125, "parameters": parameters}, profile="paper")
    store = make([run])
    for view in (View(store), View(store, "quick")):
        table = mnist_kd.compression(view)
        assert cell(table, "texture", "L1 ↓", "paper's student").startswith(text)
        assert cell(table, "texture", "L1 ↓", "ours").startswith("no finished run")
    assert (cell(mnist_kd.compression(View(store)), "texture", "parameters", "teacher") == "1,000") == (text[0] == "0")


def test_an_unknown_dataset_is_refused(store: run_store.Store) -> None:
    with pytest.raises(InputError, match="no dataset 'mnist': choose one of double_colored"):
        View(store, dataset="mnist")


# --- Appendix D


def variant(name: str, seed: int, iou: float, steps: int = 30) -> Record:
    """A shape student of an objective: a teacher of black masks, and a student that brightens at every evaluation."""
    black = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    return {
        "experiment": "ablation_losses",
        "name": f"{name} {seed} {steps}",
        "tags": tags(mechanism="shape", variant=name, seed=seed),
        "params": {"distill.steps": steps, "distill.published_code": name == "published_code", "seed": seed},
        "metrics": {"final/iou": iou, "final/noise_energy": 1.0 + seed},
        "history": {
            "heldout/iou": [[step, iou * step / 30] for step in (2, 10, 30)],
            "heldout/noise_energy": [[step, 1.0] for step in (2, 10, 30)],
        },
        "tensors": {
            f"heldout_{step:07d}": {"teacher": black, "student": torch.full_like(black, 255 * step // 30)}
            for step in (2, 10, 30)
        },
    }


VARIANTS = [
    *(variant("tinygan", seed, 0.5 + 0.1 * seed) for seed in range(3)),
    *(variant("d2_kl_outputs", seed, 0.7 + 0.11 * seed) for seed in range(3)),
    variant("cross_entropy", 0, 0.1),
    variant("d3_mse", 0, 0.4),
    variant("published_code", 0, 0.3),
]


@pytest.fixture(scope="module")
def variants(make: Make) -> View:
    return View(make(VARIANTS))


def test_verdicts_are_paired_by_seed_and_by_hand(variants: View) -> None:
    found = ablation_losses.ablation_verdicts(variants).cells.set_index(["question", "mechanism"])
    better = found.loc[("Is D.2 better than the plain loss?", "shape")]
    # differences 0.2, 0.21, 0.22: mean 0.21 ± 4.30265 * 0.01 / sqrt(3)
    assert [better["mean"], better["low"], better["high"]] == pytest.approx([0.21, 0.18516, 0.23484], abs=1e-5)
    assert (better["n"], better["verdict"]) == (3, "better")
    assert better["over seeds"] == "+0.21 [+0.185, +0.235], n=3"
    alone = found.loc[("Is MSE (D.3) better than the plain loss?", "shape")]
    assert (alone["n"], alone["verdict"]) == (1, "one seed only")
    assert alone["mean"] == pytest.approx(-0.1)
    code = found.loc[("What did the released code lose against D.2?", "shape")]
    assert code["n"] == 1  # its own setting, the teacher set, does not keep it out of the comparison
    gap = found.loc[("Does the paper's KL speed convergence?", "shape")]
    assert (gap["n"], gap["verdict"]) == (0, "no pair of runs: python experiments/kl_convergence.py")


def test_figures_show_the_kept_images_pixel_by_pixel(variants: View) -> None:
    figure = ablation_losses.figure_over_training(variants, 12, "cross_entropy")
    for axes, step in zip(figure.axes, (2, 10, 30), strict=True):
        pixels = axes.images[0].get_array()
        assert pixels.shape == (2 * 10 + 2, 10 * 10 + 2, 3)
        assert (pixels[2:10, 2:10] == 0).all()
        assert (pixels[12:20, 92:100] == 255 * step // 30).all()
    assert figure.texts[0].get_text().startswith("Fig. 12: mask students, cross entropy")
    assert "at the end: mask IoU 0.100, noise energy 1.000." in words(figure)


def test_missing_runs_show_as_gaps_with_their_commands(variants: View) -> None:
    for figure in (
        ablation_losses.figure_14(variants),
        ablation_losses.figure_over_training(variants, 13, "d1_kl_layers"),
    ):
        assert "python experiments/ablation_losses.py" in texts(figure).splitlines()
    assert "python experiments/kl_convergence.py --mechanism shape" in texts(kl_convergence.figure_15_mnist(variants))
    drawn = ablation_losses.curves(variants, "kl_convergence")
    assert all("python experiments/kl_convergence.py" in texts(figure).splitlines() for figure in drawn.values())
    assert "python experiments/noise_pairing.py" in texts(noise_pairing.pairing_figure(variants))


def test_only_runs_of_one_setting_are_compared(make: Make) -> None:
    late = View(make([*VARIANTS, variant("tinygan", 0, 0.9, steps=60)]))
    assert ablation_losses.chosen(late, "ablation_losses")["final/iou"].tolist() == [0.9]


def test_curves_draw_the_mean_of_every_arm(variants: View) -> None:
    drawn = ablation_losses.curves(variants, "ablation_losses")
    assert list(drawn) == [f"ablation_losses_{mechanism}" for mechanism in Mechanism]
    iou, noise = drawn["ablation_losses_shape"].axes
    assert iou.get_title() == "mask IoU ↑"
    assert noise.get_title() == "noise energy"
    lines = {line.get_label(): line.get_ydata()[-1] for line in iou.lines}
    assert lines["plain loss"] == pytest.approx(0.6)
    assert set(lines) == {
        "plain loss",
        "cross entropy",
        "D.2: KL of the outputs",
        "D.3: MSE for each layer",
        "published code",
    }


def test_means_are_written_with_interval_and_n(variants: View) -> None:
    cells = ablation_losses.ablation_means(variants, "ablation_losses").cells.set_index(["mechanism", "variant"])
    assert cells.loc[("shape", "plain loss"), "mask IoU ↑"] == "0.6 [0.352, 0.848], n=3"
    assert cells.loc[("shape", "cross entropy"), "mask IoU ↑"] == "0.1, n=1"
    assert ablation_losses.ablation_means(variants, "kl_convergence").empty


# --- convergence, pairing, ImageNet


def studies() -> Iterator[Record]:
    """Runs with everything that the other figures are drawn from, in as few pixels as it takes."""
    arms = {
        "ablation_losses": ("variant", ["d2_kl_outputs"]),
        "kl_convergence": ("kl", ["none", "paper"]),
        "noise_pairing": ("pairing", ["exact", "published"]),
        "imagenet_kd": ("objective", ["no_kl", "kl"]),
    }
    for experiment, (tag, names) in arms.items():
        imagenet = experiment == "imagenet_kd"
        common = tags(**({"dataset": "miniature", "stand_in": True, "classes": "all"} if imagenet else {}))
        for (position, mechanism), name, seed in itertools.product(enumerate(Mechanism), names, range(2)):
            shape = (10, mechanism.channels, 8, 8)
            kept = {
                f"heldout_{step:07d}": {
                    "teacher": torch.zeros(shape, dtype=torch.uint8),
                    "student": torch.full(shape, step + 100 * names.index(name), dtype=torch.uint8),
                }
                for step in (1, 23, 30)
            }
            samples = {"labels": [20], "teacher": [20, *shape[1:]], "student": [20, *shape[1:]]}
            metrics = {"iou": 0.5 + seed / 10, "l1": 0.1, "noise_response": 0.5, "seen_l1": 0.1}
            if name == "paper":
                metrics["steps_to_target"] = 10.0 + seed
            yield {
                "experiment": experiment,
                "name": f"{experiment} {mechanism} {name} {seed}",
                "tags": {**common, "mechanism": mechanism.value, "seed": seed, tag: name},
                "params": {"distill.steps": 30, "target_iou": 0.5, "target_l1": 0.05, "seed": seed},
                "metrics": {f"final/{key}": value + position for key, value in metrics.items()},
                "history": {"heldout/iou": [[2, 0.2], [30, 0.1]]},
                "tensors": {**kept, "samples": samples},
            }
        if imagenet:
            shown = {f"labels_{mechanism}": [10] for mechanism in Mechanism}
            shown |= {who: [10, 3, 8, 8] for who in ("teacher", "student")}
            own = {**common, "kind": "skdcgn", "seed": 0}
            yield {"experiment": experiment, "name": "composed", "tags": own, "tensors": {"counterfactuals": shown}}
        if experiment == "noise_pairing":
            own = {**common, "kind": "class_means", "mechanism": "texture"}
            yield {"experiment": experiment, "name": "class means", "tags": own, "metrics": {"final/l1": 0.75}}


@pytest.fixture(scope="module")
def filled(make: Make) -> View:
    return View(make(list(studies())))


@pytest.mark.parametrize(("module", "names"), [(kl_convergence, ("none", "paper")), (imagenet_kd, ("no_kl", "kl"))])
def test_figure_15_shows_both_arms_after_both_epochs(filled: View, module: Any, names: tuple[str, str]) -> None:
    mnist = module is kl_convergence
    figure = kl_convergence.figure_15_mnist(filled) if mnist else imagenet_kd.figure_15(filled)["figure_15"]
    pixels = picture(figure)
    students = [pixels[2 + 10 * row, 2, 0] for row in range(1, 5)]
    assert students == [101, 1, 123, 23]  # with KL, and without, after epoch 1 and after epoch 23
    assert "KL, ep. 1\nno KL, ep. 1\nKL, ep. 23\nno KL, ep. 23" in texts(figure)
    assert "with and without KL: 0.500 and 0.500." in words(figure)
    tag = "kl" if mnist else "objective"
    runs = filled.chosen("kl_convergence" if mnist else "imagenet_kd", {tag: names[::-1]}, mechanism="shape")
    assert style.cited(figure) == runs.drop_duplicates(tag)["run_id"].tolist()
    assert ("classes all" in words(figure)) == (not mnist)


def test_figure_14_has_all_three_mechanisms(filled: View) -> None:
    figure = ablation_losses.figure_14(filled)
    assert len(figure.axes) == 3
    assert "(a) teacher\ntexture" in texts(figure)
    assert len(style.cited(figure)) == 3


def test_imagenet_sheets_show_the_miniature_and_say_so(filled: View) -> None:
    drawn = imagenet_kd.figure_2(filled) | imagenet_kd.figure_6(filled)
    assert list(drawn) == ["figure_2a_shape", "figure_2b_texture", "figure_2c_background", "figure_6"]
    for figure in drawn.values():
        assert "ImageNet (stand-in: a miniature at 32x32, not ImageNet)" in words(figure)
        assert "classes all" in words(figure)
    assert all(style.is_gap(figure) for figure in imagenet_kd.figure_2(View(filled.store, "paper")).values())


def test_convergence_counts_steps_and_pairs_the_gain(filled: View) -> None:
    table = kl_convergence.convergence(filled)
    assert cell(table, "shape", "steps to target ↓", "KL of the paper") == "10.5 [4.15, 16.9], n=2"
    assert cell(table, "shape", "steps to target ↓", "no KL") == "never reached"
    assert cell(table, "shape", "steps to target ↓", "KL of the released module").startswith("no finished run")
    assert cell(table, "shape", "mask IoU ↑", "KL of the paper − no KL") == "0 [0, 0], n=2"
    assert "The target is a mask IoU of 0.5, an L1 of 0.05, on held-out noise." in " ".join(table.notes)
    empty = kl_convergence.convergence(View(filled.store, "full"))
    assert empty.empty
    assert empty.commands[0] == "python experiments/kl_convergence.py --profile full --mechanism shape"


def test_pairing_draws_responses_and_class_means(filled: View) -> None:
    responses, _, texture, _ = noise_pairing.pairing_figure(filled).axes
    assert [bar.get_height() for bar in responses.patches] == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]
    assert [line.get_ydata()[0] for line in texture.lines] == [0.75]
    assert [bar.get_height() for bar in texture.patches] == pytest.approx([1.1] * 4)
