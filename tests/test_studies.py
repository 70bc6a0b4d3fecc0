"""Table 1's words, and the studies of classifiers, CGNs and searches: from runs made by hand to figures and tables."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from record import Make, Record

from analysis import (
    baseline_cgn_tinygan,
    imagenet_ood,
    ood_robustness,
    sweep_kl,
    sweep_lambdas,
    sweeps,
    table1_shape_im,
    train_cgn_mnist,
)
from analysis.frame import style
from analysis.frame.view import View
from analysis.sweeps import Found
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.search import studies

EMPTY: Sequence[Record] = ()


def run(experiment: str, kind: str, seed: int, metrics: dict[str, float], **more: Any) -> Record:
    """A finished run at the smoke profile; `more` are its tags, and its `params` and `tensors`."""
    fixed = {"kind": kind, "seed": seed, "profile": "smoke", "dataset": "double_colored", "teacher": "a teacher"}
    others = {"teacher_sha256": "abc", "stand_in": False, "hardware": "a machine"}
    given = {name: more.pop(name, {}) for name in ("params", "tensors")}
    final = {f"final/{name}": value for name, value in metrics.items()}
    name = f"{experiment} {kind} {seed} {more}"
    return {"experiment": experiment, "name": name, "metrics": final, "tags": fixed | others | more, **given}


def words(figure: Figure) -> str:
    """All text of a figure, however it was broken into lines."""
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


# --- Table 1: the words


def _results(accuracies: dict[tuple[str, str, str], tuple[float, float]], seeds: int = 3) -> pd.DataFrame:
    """Rows of a study: (when, labels, intervention) to train and test accuracy, a little apart by seed."""
    rows = []
    for (when, labels, intervention), (train, test) in accuracies.items():
        for seed in range(seeds):
            rows.append(
                {
                    "when": when,
                    "init": "none" if when == "sampling" else "scratch",
                    "labels": labels,
                    "intervention": intervention,
                    "strength": "paper",
                    "seed": seed,
                    "train_accuracy": train + 0.001 * seed,
                    "valid_accuracy": test + 0.001 * seed**2,
                    "test_accuracy": test,
                    "two_way_accuracy": 0.9,
                    "two_way_test_accuracy": 0.2,
                    "stroke_iou": 0.3,
                    "mask_sameness": 0.9,
                }
            )
    return pd.DataFrame(rows)


UNPERMUTED = {
    ("sampling", "unpermuted", "none"): (1.0, 0.10),
    ("sampling", "unpermuted", "noise"): (1.0, 0.10),
    ("sampling", "unpermuted", "rotation"): (1.0, 0.10),
    ("sampling", "unpermuted", "transparency"): (1.0, 0.10),
}
TRAINED = {
    ("training", "permuted", "none"): (0.94, 0.85),
    ("training", "permuted", "noise"): (0.99, 0.15),
    ("training", "permuted", "rotation"): (0.98, 0.14),
    ("training", "permuted", "transparency"): (0.93, 0.60),
}
SAMPLED = {
    ("sampling", "permuted", "none"): (0.94, 0.85),
    ("sampling", "permuted", "noise"): (0.10, 0.11),
    ("sampling", "permuted", "rotation"): (0.45, 0.37),
    ("sampling", "permuted", "transparency"): (0.93, 0.87),
}


def _pattern(accuracies: dict[tuple[str, str, str], tuple[float, float]]) -> str:
    (found,) = [
        each for each in table1_shape_im.verdict(_results(accuracies)) if each.startswith("The paper's pattern")
    ]
    return found.split("given by: ")[1]


def test_the_verdict_names_the_protocol_that_gives_the_pattern() -> None:
    trained = "mask modified while training from scratch; permuted labels"
    assert _pattern(UNPERMUTED | TRAINED | SAMPLED) == f"{trained}. Nearest in numbers: {trained}."
    unpermuted = "mask modified at sampling, teacher unchanged; the digit's labels"
    assert _pattern(UNPERMUTED | SAMPLED) == f"none of these. Nearest in numbers: {unpermuted}."
    small = {case: (train / 2, test / 2) for case, (train, test) in TRAINED.items()}  # the same pattern, less trained
    assert _pattern(UNPERMUTED | small) == f"{trained}. Nearest in numbers: {unpermuted}."


def test_the_verdict_warns_of_classifiers_that_learned_too_little() -> None:
    warning = "the numbers cannot be compared with the paper's"
    assert warning not in " ".join(table1_shape_im.verdict(_results(UNPERMUTED | TRAINED)))
    small = {case: (train / 2, test / 2) for case, (train, test) in TRAINED.items()}
    assert warning in " ".join(table1_shape_im.verdict(_results(UNPERMUTED | small)))


def test_the_verdict_says_what_each_protocol_gave() -> None:
    said = table1_shape_im.verdict(_results(UNPERMUTED | TRAINED | SAMPLED))
    (trained,) = [sentence for sentence in said if sentence.startswith("Mask modified while training")]
    assert "noise 99.1 / 15.2" in trained
    assert "Memorized: noise and rotation; transparency in between." in trained
    (unpermuted,) = [sentence for sentence in said if sentence.startswith("Mask") and "digit's labels" in sentence]
    assert "control 100.1 / 10.2" in unpermuted
    assert "Memorized: neither; transparency not in between." in unpermuted
    assert not [sentence for sentence in table1_shape_im.verdict(_results(TRAINED).query("seed < 0")) if sentence]


def test_the_verdict_compares_training_with_sampling() -> None:
    sentences = table1_shape_im.verdict(_results(TRAINED | SAMPLED))
    (rotation,) = [sentence for sentence in sentences if sentence.startswith("Rotation")]
    assert "at sampling 37.2 %; while training from scratch 14.2 % (in points -23.0 [" in rotation
    assert "lower" in rotation
    assert "overlapping by 0.90 within a class" in rotation


def test_the_verdict_on_transparency_needs_an_interval_that_leaves_out_0() -> None:
    better = [sentence for sentence in table1_shape_im.verdict(_results(SAMPLED)) if sentence.startswith("Sec. 4.4")]
    assert len(better) == 1
    assert "higher" in better[0]
    close = _results(SAMPLED)
    noisy = close["intervention"] == "transparency"
    close.loc[noisy, "valid_accuracy"] = [0.80, 0.86, 0.92]
    assert "not told apart" in next(s for s in table1_shape_im.verdict(close) if s.startswith("Sec. 4.4"))
    one = [s for s in table1_shape_im.verdict(_results(SAMPLED, seeds=1)) if s.startswith("Sec. 4.4")]
    assert "one seed only" in one[0]


def test_the_control_of_training_is_that_of_both_as_well() -> None:
    results = _results({**TRAINED, ("both", "permuted", "noise"): (0.5, 0.1)})
    both = next(protocol for protocol in table1_shape_im.protocols(results) if protocol.when == "both")
    assert table1_shape_im.values(results, both, "none", "train_accuracy").tolist() == pytest.approx(
        [0.94, 0.941, 0.942]
    )
    table = pd.DataFrame(table1_shape_im.cells(results, "the command"))
    rows = table[table["protocol"] == str(both)].set_index(["intervention", "quantity"])
    assert rows.loc[(table1_shape_im.INTERVENTIONS["none"], "train"), "n"] == 3
    assert rows.loc[(table1_shape_im.INTERVENTIONS["rotation"], "train"), "command"] == "the command"
    assert rows.loc[(table1_shape_im.INTERVENTIONS["noise"], "paper"), "text"] == "99.9 / 14.96"
    assert rows.loc[(table1_shape_im.INTERVENTIONS["none"], "paper"), "text"] == "97.4 / 89"
    assert table1_shape_im.INTERVENTIONS["rotation_transparency"] not in table["intervention"].tolist()


# --- Table 1: from runs

PROTOCOLS = (("sampling", "none"), ("training", "scratch"))


def cases() -> list[Record]:
    """Runs of Table 1: both whens, all interventions, two seeds; and a transparency of one half at sampling."""
    rows = []
    for when, init in PROTOCOLS:
        for intervention, strength in (*((name, "paper") for name in SAMPLED_TESTS), ("transparency", "0.5")):
            for seed in range(2):
                place = {"when": when, "init": init, "labels": "permuted", "intervention": intervention}
                metrics = dict.fromkeys(table1_shape_im._COLUMNS, SAMPLED_TESTS[intervention] + 0.01 * seed)
                params = {"images": 60, "seed": seed, "strength": strength}
                pixels = {"mask": [10, 1, 8, 8], "images": [10, 3, 8, 8]}
                tensors = {"samples": {name: torch.full(shape, 255.0) for name, shape in pixels.items()}}
                more = {"params": params, "tensors": tensors, "strength": strength, **place}
                if when == "sampling" or strength == "paper":
                    rows.append(run("table1_shape_im", "classifier", seed, metrics, **more))
    trained = {"params": {"training.steps": 3}, "intervention": "noise", "init": "scratch"}
    rows.append(run("table1_shape_im", "cgn", 0, {}, **trained))  # no case of the table
    return rows


SAMPLED_TESTS = {"none": 0.85, "noise": 0.11, "rotation": 0.37, "transparency": 0.87}


@pytest.fixture(scope="module")
def table_1_view(make: Make) -> View:
    return View(make(cases()))


def test_table_1_is_read_from_its_runs(table_1_view: View) -> None:
    table = table1_shape_im.table_1(table_1_view)
    assert "smoke test" in table.title
    row = table.text.loc[("mask modified at sampling, teacher unchanged; permuted labels", "unit Gaussian noise")]
    assert row["paper"] == "99.9 / 14.96"
    assert row["test (MNIST-train's last)"] == "11.5 [5.1, 17.9], n=2"
    assert not table.commands
    (origin,) = [note for note in table.notes if "counterfactuals a case" in note]
    assert origin.startswith("18 runs, profile smoke, 60 counterfactuals a case, CGNs trained for 3 steps, seeds 0, 1;")
    said = table1_shape_im.verdicts(table_1_view).cells["verdict"]
    assert said.str.startswith("Rotation, permuted labels, test accuracy: at sampling 37.5 %").any()
    assert list(said) == list(table.notes[-len(said) :])


def test_figure_3_shows_masks_over_their_images(table_1_view: View) -> None:
    figure = table1_shape_im.figure_3(table_1_view)
    assert len(figure.axes) == 2
    assert "(a) masks modified at sampling, teacher unchanged; (b) masks modified while training from scratch" in words(
        figure
    )
    assert "CGNs trained for 3 steps" in words(figure)
    assert len(style.cited(figure)) == 8  # two protocols, four interventions, the lowest seed


def test_the_curve_over_transparency_goes_from_low_to_the_control(table_1_view: View) -> None:
    test, _ = table1_shape_im.transparency_curve(table_1_view).axes
    aside = table1_shape_im._ASIDE / 2
    first, second = (bars.lines[0] for bars in test.containers)
    np.testing.assert_allclose(first.get_xdata().astype(float), np.array([0.5, 0.75, 1.0]) - aside)
    np.testing.assert_allclose(second.get_xdata().astype(float), np.array([0.75, 1.0]) + aside)
    np.testing.assert_allclose(first.get_ydata(), [87.5, 87.5, 85.5])


def test_an_empty_store_shows_gaps_with_the_command(make: Make) -> None:
    store = make(EMPTY)
    command = "python experiments/table1_shape_im.py --profile full"
    assert table1_shape_im.table_1(View(store, "full")).commands == [command]
    assert table1_shape_im.table_1(View(store)).empty
    for drawn in (table1_shape_im.figure_3(View(store)), table1_shape_im.transparency_curve(View(store))):
        assert style.is_gap(drawn)
    assert "No finished run" in table1_shape_im.verdicts(View(store)).cells["verdict"][0]


# --- classifiers by the source of their images


def sources(drifted: bool) -> list[Record]:
    rows = []
    for seed in range(2):
        for place, (source, teacher) in enumerate(
            (("original", "none"), ("cgn", "a teacher"), ("skdcgn", "a teacher"))
        ):
            metrics = {f"{name}_accuracy": 0.1 * (place + 1) + 0.01 * seed for name in ("train", "valid", "test")}
            metrics |= {"test_drifted_accuracy": 0.1, "valid_drifted_accuracy": 0.1} if drifted else {}
            tensors = {"class_accuracy": {"test": torch.linspace(0, 1, 10)}}
            tensors["samples"] = {"pixels": [20, 3, 8, 8], "labels": [20]}
            params = {"images": 200, "classifier.epochs": 1, "generators": 1}
            more = {"source": source, "teacher": teacher, "params": params, "tensors": tensors}
            rows.append(run("ood_robustness", "classifier", seed, metrics, **more))
    rows.append(run("ood_robustness", "gan", 0, {"recognised": 0.5}, source="gan"))  # a generator, no classifier
    return rows


def test_robustness_stands_beside_published_accuracies(make: Make) -> None:
    view = View(make(sources(drifted=False)))
    table = ood_robustness.table(view)
    assert list(table.text.columns) == [
        "CGN paper (train / test)",
        "replication (train / test)",
        "train",
        "last 10,000 of MNIST-train",
        "MNIST-test",
    ]
    assert table.text.loc["CGN", "MNIST-test"] == "20.5 [14.1, 26.9], n=2"
    assert table.text.loc["CGN", "CGN paper (train / test)"] == "97.4 / 89"
    assert table.text.loc["SKDCGN", "replication (train / test)"] == "–"
    assert table.text.loc["GAN", "train"] == "no finished run [1]"
    assert table.commands[0] == "python experiments/ood_robustness.py --profile smoke --sources gan"
    notes = " ".join(table.notes)
    assert "original: profile smoke, 200 images, 1 epochs, seeds 0, 1; on a machine." in notes
    assert "CGN, SKDCGN: profile smoke, 200 images, 1 epochs, seeds 0, 1; teacher: a teacher; on a machine." in notes
    assert "SKDCGN: one trained generator for all seeds" in notes
    drifted = ood_robustness.table(View(make(sources(drifted=True))))
    assert drifted.text.loc["CGN", "MNIST-test, drifted"] == "10.0 [10.0, 10.0], n=2"
    assert "Drifted: the CGN authors' loader" in " ".join(drifted.notes)


def test_robustness_figures_name_their_runs(make: Make) -> None:
    view = View(make(sources(drifted=True)))
    ids = view.chosen("ood_robustness", kind="classifier", by={"source": ["original", "cgn", "skdcgn"]})["run_id"]
    for drawn in (ood_robustness.figure(view), ood_robustness.class_figure(view), ood_robustness.image_sheet(view)):
        assert "smoke test" in words(drawn)
        assert set(style.cited(drawn)) == set(ids)
    (axes,) = ood_robustness.figure(view).axes
    ours = next(bars for bars in axes.containers if bars.get_label() == "ours, MNIST-test").lines[0]
    np.testing.assert_allclose(ours.get_ydata(), [10.5, 20.5, 30.5])
    assert "GAN\n(no run)" in [label.get_text() for label in axes.get_xticklabels()]
    (accuracy,) = ood_robustness.class_figure(view).axes[0].images
    np.testing.assert_allclose(accuracy.get_array()[0], np.linspace(0, 100, 10), rtol=1e-6)


def test_robustness_gaps_name_the_command(make: Make) -> None:
    store = make(EMPTY)
    table = ood_robustness.table(View(store))
    assert set(table.text["train"].str.startswith("no finished run")) == {True}
    assert table.commands[0] == "python experiments/ood_robustness.py --sources original"
    for drawn in (ood_robustness.figure, ood_robustness.class_figure, ood_robustness.image_sheet):
        assert "--profile full --datasets double_colored" in words(drawn(View(store, "full")))


# --- CGNs of our own


def test_our_cgns_stand_beside_the_authors(make: Make) -> None:
    metrics = {"valid_accuracy": 0.5, "test_accuracy": 0.25, "authors_test_accuracy": 0.75}
    params = {"training.steps": 20, "counterfactuals": 200, "classifier.epochs": 1}
    rows = {name: [20, 3, 8, 8] for name in ("texture", "background", "image", "counterfactual")}
    rows["mask"] = [20, 1, 8, 8]
    both = {f"{who}_{name}": shape for who in ("ours", "authors") for name, shape in rows.items()}
    ours = {"params": params, "perceptual": "none", "teacher": "none"}
    view = View(
        make(
            [
                run("train_cgn_mnist", "cgn", 0, metrics, tensors={"samples": both}, **ours),
                run("baseline_mnist", "cgn", 0, {"test_accuracy": 0.5}, tensors={"samples": rows}, **ours),
                run("baseline_mnist", "cgn", 1, {"test_accuracy": 0.6}, tensors={"samples": rows}, **ours),
            ]
        )
    )
    table = train_cgn_mnist.table(view)
    assert "no perceptual loss" in table.title
    accuracy = table.text.loc["the same, MNIST-test (%) ↑"]
    assert accuracy["the authors' CGN"] == "75.0, n=1"
    assert accuracy["our CGN"] == "25.0, n=1"
    assert accuracy["CGN with TinyGANs (baseline)"] == "55.0 [-8.5, 118.5], n=2"
    assert table.text.loc["the same of held-out real strokes", "our CGN"] == "not measured"
    assert "20 steps, perceptual loss: none, classifier on 200 counterfactuals" in " ".join(table.notes)
    drawn = train_cgn_mnist.figure(view)
    assert list(drawn) == ["our_teacher", "our_baseline"]
    assert [len(figure.axes) for figure in drawn.values()] == [2, 1]
    assert style.cited(drawn["our_baseline"]) == [view.only("baseline_mnist")["run_id"]]


def test_missing_cgns_are_gaps(make: Make) -> None:
    view = View(make(EMPTY), dataset="digits")
    assert train_cgn_mnist.table(view).commands == [
        "python experiments/train_cgn_mnist.py --dataset digits",
        "python experiments/baseline_mnist.py --dataset digits",
    ]
    assert all(style.is_gap(figure) for figure in train_cgn_mnist.figure(view).values())


# --- ImageNet: the baseline, and the invariant ensemble


def baseline() -> list[Record]:
    """Runs of all stages, without SKDCGN's counterfactuals."""
    fixed = {"dataset": "miniature", "stand_in": True}
    pair = {"labels": [20], "teacher": [20, 3, 8, 8], "student": [20, 3, 8, 8]}
    rows = {name: [4, 3, 8, 8] for name in ("premask", "texture", "background", "image", "target")}
    rows |= {"labels": [4], "mask": [4, 1, 8, 8]}
    counterfactuals = {"image": [20, 3, 4, 4], "mask": [20, 1, 4, 4], "reference": [20, 3, 8, 8]}
    counterfactuals |= {f"labels_{mechanism}": [20] for mechanism in Mechanism}
    measured = {"frechet_counterfactual": 2.0, "parameters_shape": 1234.0, "parameters": 7.0, "megabytes_shape": 1.5}
    stages = [
        run(
            "baseline_cgn_tinygan",
            "tinygan",
            0,
            {"l1": 0.5},
            params={"recipe.epochs": 18},
            tensors={"samples_0000001": pair, "samples_0000006": pair},
            **fixed,
        )
        | {"history": {"heldout/l1": [[1, 0.5], [6, 0.25]]}},
        run(
            "baseline_cgn_tinygan",
            "cgn",
            0,
            {"mask_share": 0.5},
            tensors={"mechanisms_0000000": rows, "mechanisms_0000004": rows},
            perceptual="random",
            **fixed,
        ),
    ]
    for source in ("cgn", "baseline"):
        more = {"source": source, "tensors": {"counterfactuals": counterfactuals}, **fixed}
        stages.append(run("baseline_cgn_tinygan", "counterfactuals", 0, measured, **more))
    stages.append(run("imagenet_kd", "student", 0, {"iou": 0.25}, mechanism="shape", **fixed))
    return stages


def test_the_baselines_figures_and_table(make: Make) -> None:
    view = View(make(baseline()))
    drawn = baseline_cgn_tinygan.figure_8(view)
    assert "1 steps, epoch 1 of 18. Held out, then: L1 0.5." in words(drawn["figure_8a"])
    assert "6 steps, epoch 18 of 18. Held out, then: L1 0.25." in words(drawn["figure_8b"])
    ninth, tenth = baseline_cgn_tinygan.figure_9(view), baseline_cgn_tinygan.figure_10(view)
    assert "a small untrained net, in place of VGG16" in words(ninth)
    assert [len(figure.axes) for figure in (ninth, tenth)] == [1, 2]
    assert len(style.cited(tenth)) == 2  # the CGN's row is drawn as well
    assert "SKDCGN" not in words(tenth)
    for figure in (*drawn.values(), ninth, tenth):
        assert "stand-in: a miniature" in words(figure)
    table = baseline_cgn_tinygan.comparison(view)
    assert "stand-in" in table.title
    assert table.text.loc["Fréchet distance of counterfactuals to the CGN's ↓", "baseline"] == "2.00, n=1"
    assert table.text.loc["parameters, shape", "baseline"] == "1,234"
    assert table.text["SKDCGN"].str.startswith("no finished run").all()
    assert table.commands == [
        "python experiments/imagenet_kd.py && python experiments/baseline_cgn_tinygan.py --stage counterfactuals"
    ]


def test_the_missing_baseline_shows_as_gaps(make: Make) -> None:
    view = View(make(EMPTY))
    drawn = [*baseline_cgn_tinygan.figure_8(view).values(), baseline_cgn_tinygan.figure_9(view)]
    stages = ["tinygan", "tinygan", "cgn", "counterfactuals"]
    for stage, figure in zip(stages, [*drawn, baseline_cgn_tinygan.figure_10(view)], strict=True):
        assert f"python experiments/baseline_cgn_tinygan.py --stage {stage}" in words(figure)
    assert baseline_cgn_tinygan.comparison(view).empty


def test_sources_of_counterfactuals_by_fidelity_and_size(make: Make) -> None:
    table = imagenet_ood.fidelity(View(make(baseline())))
    assert table.text.loc[("shape", "parameters"), "CGN"] == "1,234"
    assert table.text.loc[("shape", "weights (MB)"), "baseline"] == "1.50"
    assert table.text.loc[("texture", "parameters"), "CGN"] == "not measured"
    iou = table.text.loc[("shape", "mask IoU with the CGN's ↑")]
    assert iou.tolist() == ["reference", "0.25, n=1", "no target"]
    quantities = table.text.index.get_level_values("quantity")
    assert "Fréchet distance to real images ↓" not in quantities  # no real images
    assert not quantities.str.startswith("GPU memory").any()


def test_the_ensembles_table_and_figure(make: Make) -> None:
    heads = ("ensemble", "shape", "texture", "background")
    rows = []
    for seed in range(2):
        metrics = {f"{name}_{head}": 0.5 + 0.1 * seed for name in ("in9_mixed_rand", "bg_gap") for head in heads}
        more = {"source": "cgn", "images": "pictures: of a test", "dataset": "miniature", "stand_in": True}
        rows.append(run("imagenet_ood", "ensemble", seed, metrics, **more))
    view = View(make(rows))
    table = imagenet_ood.table(view)
    assert "stand-in: a miniature" in table.title
    assert table.text.loc[("IN-9 mixed-rand ↑", "all heads"), "ResNet-50, published"] == "78.9"
    assert table.text.loc[("BG gap ↓", "shape head"), "+ CGN"] == "55.0 [-8.5, 118.5], n=2"
    assert table.text.loc[("shape bias", "shape head"), "+ CGN"] == "no such decision"
    assert len(table.commands) == 3
    assert "python experiments/imagenet_ood.py --sources skdcgn" in table.commands
    assert any("pictures: of a test" in note for note in table.notes)
    figure = imagenet_ood.figure(view)
    assert len(style.cited(figure)) == 2
    for axes in figure.axes[:2]:
        heights = [bars.lines[0].get_ydata().tolist() for bars in axes.containers]
        assert heights == [pytest.approx([55.0])] * 4
    assert style.is_gap(imagenet_ood.figure(View(make(EMPTY))))


# --- searches


def study(confirmed: bool = True, width: bool = False) -> tuple[SimpleNamespace, str]:
    """A study of nine trials, the last of them pruned, and its confirmation."""
    numbers = np.arange(9)
    trials = pd.DataFrame({"number": numbers, "state": ["complete"] * 8 + ["pruned"]})
    trials["loss.kl"], trials["loss.kl_on"] = 10.0 ** (numbers / 4 - 1), "pixels"
    trials["loss.kl_direction"] = "teacher_student"
    trials["loss.lambda_1"], trials["loss.lambda_2"] = 0.2 * 2.0**numbers, 0.01 * 2.0 ** (numbers % 3)
    trials["iou"] = 0.5 + 0.04 * numbers
    trials.loc[8, "iou"] = 0.1
    reports = {number: {15: 0.4, 30: trials["iou"][number]} for number in range(8)} | {8: {15: 0.1}}
    objectives, directions = ("iou",), ("maximize",)
    if width:
        trials["parameters"] = 100 * (numbers + 1)
        objectives, directions = ("iou", "parameters"), ("maximize", "minimize")
    tags = {"kind": "study", "profile": "quick", "dataset": "double_colored", "mechanism": "shape", "teacher": "CGN"}
    found = {"trials": trials, "reports": reports, "objectives": objectives, "directions": directions, "front": (0, 7)}
    record = SimpleNamespace(run_id="r", name="a study", tags={**tags, "stand_in": "false"}, **found)
    rows = [("no KL", seed, 0.5 + seed / 100) for seed in (1, 2)] + [("best", seed, 0.7) for seed in (1, 2)]
    frame = pd.DataFrame(rows, columns=["setting", "seed", "iou"]).assign(run_id=list("abcd"))
    return record, frame.to_csv(index=False) if confirmed else ""


@pytest.fixture
def searched(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., View]:
    """Makes a store with one study."""

    def made(experiment: str, **options: bool) -> View:
        record, confirmation = study(**options)
        own = {"experiment": experiment, "name": record.name, "tags": dict(record.tags)}
        store = make([own])
        if confirmation:
            (run_id,) = [found.run_id for found in store.runs(experiment)]
            mlflow.MlflowClient(store.uri).log_text(run_id, confirmation, "confirmation.csv")
        monkeypatch.setattr(studies, "load_study", lambda *_: record)
        shares = [
            (method, resample, name, 0.5)
            for method in ("fANOVA", "PED-ANOVA")
            for resample in range(2)
            for name in ("loss.kl", "loss.kl_on")
        ]
        columns = ["method", "resample", "parameter", "share"]
        monkeypatch.setattr(studies, "importances", lambda *_: pd.DataFrame(shares, columns=columns))
        return View(store)

    return made


@pytest.mark.parametrize("module", [sweep_kl, sweep_lambdas])
def test_figures_of_a_search(searched: Callable[..., View], module: Any) -> None:
    view = searched(module.EXPERIMENT)
    drawn = module.figures(view)
    names = ("history", "importance", "response", "fresh_seeds")
    assert list(drawn) == [f"{module.EXPERIMENT}_{name}" for name in names]
    for figure in drawn.values():
        assert "shape student, double-colored MNIST" in words(figure)
        assert "Study a study (run r): 8 complete, 1 pruned; teacher: CGN." in words(figure)
        assert style.cited(figure)[0] == "r"
    assert "a thin line for each of 2 seeds" in words(drawn[f"{module.EXPERIMENT}_fresh_seeds"])
    assert style.cited(drawn[f"{module.EXPERIMENT}_fresh_seeds"]) == ["r", *"abcd"]


def test_what_a_search_lacks_is_said(searched: Callable[..., View], make: Make) -> None:
    unfinished = sweep_kl.figures(searched("sweep_kl", confirmed=False))
    assert "No finished study in the store." in words(unfinished["sweep_kl_fresh_seeds"])
    assert not style.is_gap(unfinished["sweep_kl_response"])
    for figure in sweep_lambdas.figures(View(make(EMPTY))).values():
        assert "python experiments/sweep_lambdas.py" in words(figure)
    assert sweeps.find(View(make(EMPTY)), "sweep_kl") is None


def test_a_pruned_trial_is_lifted_by_what_others_gained(searched: Callable[..., View]) -> None:
    found = sweeps.find(searched("sweep_kl"), "sweep_kl")
    gains = [0.5 + 0.04 * number - 0.4 for number in range(8)]
    assert found.trials["response"][8] == pytest.approx(0.1 + np.median(gains))
    assert found.trials["response"][:8].tolist() == found.trials["iou"][:8].tolist()
    assert found.ranked["number"].tolist() == list(range(7, -1, -1))


def test_the_best_trials_and_what_fresh_seeds_say(searched: Callable[..., View]) -> None:
    view = searched("sweep_kl")
    table = sweeps.best_trials_table(view, "sweep_kl", count=1)
    assert table.cells["number"].tolist() == [7, 0]
    assert table.cells["λ_KL"].tolist() == [f"{10**0.75:.4g}", "0.1"]
    # gains 0.19 and 0.18: 0.185 ± 12.706 * 0.00707 / sqrt(2)
    gain = "iou 0.7000 against 0.5150, gain +0.1850 [+0.1215, +0.2485], n=2 (95 % interval)."
    assert table.notes == (f"On fresh seeds the best trial is better than no KL: {gain}",)
    assert sweeps.best_trials_table(View(view.store, "full"), "sweep_kl").empty


def found_with(confirmed: pd.DataFrame, direction: str) -> Found:
    return Found(None, "sweep_kl", SimpleNamespace(objectives=("iou",), directions=(direction,)), confirmed)


def test_a_search_in_words() -> None:
    rows = [("best", seed, 0.8 + seed / 100) for seed in range(4)]
    rows += [("worse", seed, 0.7 + seed / 100 + seed % 2 / 1000) for seed in range(4)]
    rows += [("alike", seed, 0.8 + seed % 2 / 10) for seed in range(4)]
    confirmed = pd.DataFrame(rows, columns=["setting", "seed", "iou"])
    first, second = sweeps.verdict(found_with(confirmed, "maximize")).splitlines()
    assert "better than worse: iou 0.8150 against 0.7155, gain +0.0995 [+0.0986, +0.1004], n=4" in first
    assert "not told apart from alike" in second
    assert "worse than worse" in sweeps.verdict(found_with(confirmed, "minimize"))
    itself = confirmed.replace({"alike": "the paper's values"})
    itself.loc[itself["setting"] == "the paper's values", "iou"] = itself.loc[itself["setting"] == "best", "iou"].values
    assert "The best trial is the paper's values itself" in sweeps.verdict(found_with(itself, "maximize"))
    one = sweeps.verdict(found_with(confirmed[confirmed["seed"] == 0], "maximize"))
    assert "not told apart by one seed from worse" in one


def test_the_pareto_front_is_drawn_where_the_width_was_searched(searched: Callable[..., View]) -> None:
    view = searched("sweep_lambdas", width=True)
    figures = sweep_lambdas.figures(view)
    (axes,) = figures["sweep_lambdas_pareto"].axes
    assert axes.lines[0].get_xydata().tolist() == [[100.0, 0.5], [800.0, pytest.approx(0.78)]]
    assert style.is_gap(figures["sweep_lambdas_history"])  # of one objective there is none


def test_too_few_trials_give_no_surface(searched: Callable[..., View]) -> None:
    found = sweeps.find(searched("sweep_kl"), "sweep_kl")
    few = found.trials.head(5)
    assert sweep_kl.surrogate(found, few, ["loss.kl"]) is None
    mean, deviation = sweep_kl.surrogate(found, found.trials, ["loss.kl"])(np.zeros((1, 1)))
    assert mean.shape == deviation.shape == (1,)
    assert math.isfinite(mean[0])
