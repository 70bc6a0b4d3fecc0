"""The MNIST students beside the mechanisms that they learn (Sec. 4.3): Fig. 7, 11 and 6, learning curves, sizes.

The sheets of `imagenet_kd` are drawn by the same functions.
"""

from functools import cache

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from analysis.frame import caption, style
from analysis.frame.table import READING, Quantity, Table, cell, words
from analysis.frame.view import PROFILES, View, dataset_title
from skdcgn.configs.tinygan import PUBLISHED_MNIST
from skdcgn.images import fit_resolution
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism
from skdcgn.tinygan.networks import TinyGANGenerator

EXPERIMENT = "mnist_kd"

_SIZES = (
    (Quantity("parameters", "final/parameters", ",.0f", counted=True), "final/teacher_parameters"),
    (Quantity("MACs of one image (millions)", "final/macs", ".2f", 1e-6, counted=True), "final/teacher_macs"),
    (Quantity("latency, batch of 1 (ms)", "cost/latency_ms_batch_1", ".2f"), "cost/teacher_latency_ms_batch_1"),
    (Quantity("latency, batch of 64 (ms)", "cost/latency_ms_batch_64", ".1f"), "cost/teacher_latency_ms_batch_64"),
)
"""Rows of the compression table that a student shares with its teacher, and the metric of the teacher's value."""

_FIDELITY = (
    Quantity("mask IoU ↑", "final/iou", ".3f"),
    Quantity("L1 ↓", "final/l1", ".3f"),
    Quantity("SSIM ↑", "final/ssim", ".3f"),
    Quantity("Fréchet distance ↓", "final/frechet", ".2f"),
)
"""Rows in which the teacher is what the student is measured against."""

_NOTES = (
    READING,
    "Fidelity is that to the teacher on held-out noise; L1 is taken in the image range [-1, 1]. The teacher's latency "
    "was measured in the runs of our students. Parameters and MACs of the paper's student are those of its published "
    "architecture. Fréchet distances are taken on features of this project's own digit classifier: comparable with "
    "each other only.",
)


def compression(view: View) -> Table:
    """Compare size, speed and fidelity of the teacher's mechanisms, the paper's students and ours.

    Fidelity is measured against the teacher on held-out noise. A student of the paper is one of the published
    architecture trained with the profile `paper`; its size is known without a run.

    Args:
        view: of the runs. Our students are those of its profile, by default the widest one beside `paper`.
    """
    cells, origins = [], {}
    published = View(view.store, "paper", view.dataset(EXPERIMENT))
    for mechanism in Mechanism:
        tags = {"kind": "student", "mechanism": mechanism.value}
        theirs = published.chosen(EXPERIMENT, **tags)
        if not theirs.empty:  # runs of one setting, so of one size: any other one is no student of the paper's
            theirs = theirs[theirs["final/parameters"] == published_size()["final/parameters"]]
        profiles = [view.profile] if view.profile else [profile for profile in PROFILES if profile != "paper"]
        of_profiles = [view.chosen(EXPERIMENT, **tags, profile=profile) for profile in profiles]
        ours = next((runs for runs in of_profiles if len(runs)), of_profiles[0])
        models = {"teacher": theirs if ours.empty else ours, "paper's student": theirs, "ours": ours}
        cells += _mechanism_cells(view, mechanism, models)
        origins |= {f"{mechanism.capitalize()}, {model}": models[model] for model in ("ours", "paper's student")}
    title = caption.title("Compression of the CGN's mechanisms", *origins.values(), dataset=view.dataset(EXPERIMENT))
    return Table.of(title, cells, (*_NOTES, *caption.origins(origins, runs=True)))


def _mechanism_cells(view: View, mechanism: Mechanism, models: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Return the cells of one mechanism: its rows, and in each the teacher, the paper's student and ours."""
    own = view.command(EXPERIMENT, mechanism=mechanism)
    commands = {"teacher": own, "paper's student": view.command(EXPERIMENT, mechanism=mechanism, profile="paper")}
    cells = []
    for quantity, teachers in (*_SIZES, *((quantity, None) for quantity in _FIDELITY)):
        if quantity.metric == "final/iou" and mechanism is not Mechanism.SHAPE:
            continue
        row = []
        for model, shown in models.items():
            place = {"mechanism": mechanism.value, "model": model}
            described = {"quantity": quantity.title, "metric": quantity.metric, **place}
            if model == "teacher" and teachers is None:
                row.append(words("reference", **described))
            elif model == "paper's student" and quantity.metric in published_size():
                size = published_size()[quantity.metric]
                row.append(words(format(size * quantity.scale, quantity.form), float(size), **described))
            else:
                measured = quantity._replace(metric=teachers) if model == "teacher" else quantity
                made = cell(shown, measured, commands.get(model, own), **place)
                row.append(made | {"metric": quantity.metric})
        if quantity.metric in published_size() and row[0]["n"]:
            for student in row[1:]:
                if student["mean"] is not None:
                    student["text"] += f" ({caption.ratio(student['mean'], row[0]['mean'])})"
        cells += row
    return cells


@cache
def published_size() -> dict[str, int]:
    """Return parameters and MACs of the published MNIST student: facts about its architecture, no run needed."""
    with torch.device("meta"):  # shapes without numbers
        student = TinyGANGenerator(PUBLISHED_MNIST).eval()
        noise = torch.empty(1, PUBLISHED_MNIST.noise_dim)
        labels = torch.zeros(1, dtype=torch.long)
        return {
            "final/parameters": cost.parameters(student),
            "final/macs": cost.macs(lambda: student(noise, labels)),
        }


def figure_7(view: View) -> dict[str, Figure]:
    """Draw Fig. 7 a-c: each mechanism of the teacher over its student; see `mechanism_sheets`."""
    return mechanism_sheets(view, EXPERIMENT, "7", dataset_title(view.dataset(EXPERIMENT)))


def mechanism_sheets(view: View, experiment: str, number: str, domain: str) -> dict[str, Figure]:
    """Draw each mechanism of a teacher over its student, on the same noise, which no training saw.

    Args:
        view: of the runs.
        experiment: `mnist_kd` or `imagenet_kd`.
        number: of the paper's figure.
        domain: what the title calls the images.

    Returns:
        A figure for each mechanism by file name. Where there is no run, it shows the command that makes one.
    """
    figures = {}
    for mechanism, letter in zip(Mechanism, "abc", strict=True):
        name = f"figure_{number}{letter}_{mechanism}"
        title = f"Fig. {number}{letter}: {mechanism} mechanism, CGN teacher over SKDCGN student, {domain}"
        run = view.only(experiment, kind="student", mechanism=mechanism.value)
        if run is None:
            figures[name] = style.gap(title, view.command(experiment, mechanism=mechanism))
            continue
        samples = view.store.load_tensors(run["run_id"], "samples")
        rows = {row: mechanism.to_image(samples[row], 3) for row in ("teacher", "student")}
        below = (
            "Same noise and label in both rows, never seen in training. "
            f"{caption.fidelity(run, 'iou', 'l1', 'ssim')} {caption.provenance(run)}"
        )
        blocks = style.blocks(rows, {"label": samples["labels"]})
        figures[name] = style.cite(style.sheet(blocks, caption.title(title, run), below), [run["run_id"]])
    return figures


def figure_6_mnist(view: View) -> Figure:
    """Draw the MNIST counterpart of Fig. 6; see `counterfactual_sheet`."""
    domain = dataset_title(view.dataset(EXPERIMENT))
    return counterfactual_sheet(view, EXPERIMENT, f"Fig. 6 on MNIST: counterfactuals, SKDCGN over CGN, {domain}")


def counterfactual_sheet(view: View, experiment: str, title: str) -> Figure:
    """Draw counterfactuals of SKDCGN over those of the CGN, on the same noise and labels (Fig. 6)."""
    run, tensors = _counterfactuals(view, experiment)
    if run is None:
        return style.gap(title, view.command(experiment))
    students = fit_resolution(tensors["student"], tensors["teacher"].shape[-1])
    header = {mechanism.value: tensors[f"labels_{mechanism}"] for mechanism in Mechanism}
    blocks = style.blocks({"SKDCGN": students, "CGN": tensors["teacher"]}, header, limit=20)
    below = f"Same noise and labels in both rows; above, the label of each mechanism. {caption.provenance(run)}"
    return style.cite(style.sheet(blocks, caption.title(title, run), below), [run["run_id"]])


def figure_11(view: View) -> Figure:
    """Draw Fig. 11: the teacher's own outputs, large enough to see the noise that the paper blames on it.

    The caption quantifies that noise: the share of mask pixels that are neither on nor off, and the number of masks in
    several pieces.
    """
    title = f"Fig. 11: noise in the CGN teacher's own outputs, {dataset_title(view.dataset(EXPERIMENT))}"
    run, tensors = _counterfactuals(view, EXPERIMENT)
    if run is None:
        return style.gap(title, view.command(EXPERIMENT))
    masks = tensors["mask_teacher"]
    rows = {"mask": Mechanism.SHAPE.to_image(masks, 3), "composed": tensors["teacher"]}
    gray = ((masks > 0.1) & (masks < 0.9)).float().mean().item()
    torn = sum(ndimage.label(mask, np.ones((3, 3)))[1] > 1 for mask in (masks[:, 0] > 0.5).numpy())
    below = (
        f"Above masks, below the counterfactuals composed with them (Eq. 1). {100 * gray:.1f} % of the mask pixels lie "
        f"between 0.1 and 0.9, neither digit nor background; {torn} of {len(masks)} masks fall into several pieces. "
        f"A digit vanishes where texture and background have one color. {caption.provenance(run)}"
    )
    blocks = style.blocks(rows, {"shape": tensors["labels_shape"]}, columns=5, limit=10)
    return style.cite(style.sheet(blocks, caption.title(title, run), below), [run["run_id"]])


def _counterfactuals(view: View, experiment: str) -> tuple[pd.Series | None, dict[str, Tensor]]:
    """Return the run of three composed students to show, and the counterfactuals that it kept."""
    run = view.only(experiment, kind="skdcgn")
    return run, {} if run is None else view.store.load_tensors(run["run_id"], "counterfactuals")


def learning_curves(view: View) -> dict[str, Figure]:
    """Draw how each student learned: held-out IoU (shape) and L1 by step, and its loss terms.

    Returns:
        A figure for each mechanism by file name. Where there is no run, it shows the command that makes one.
    """
    figures = {}
    for mechanism in Mechanism:
        name = f"learning_curve_{mechanism}"
        title = f"Learning curves: {mechanism} student, {dataset_title(view.dataset(EXPERIMENT))}"
        shown = view.chosen(EXPERIMENT, kind="student", mechanism=mechanism.value)
        if shown.empty:
            figures[name] = style.gap(title, view.command(EXPERIMENT, mechanism=mechanism))
            continue
        metrics = {"heldout/iou": "held-out mask IoU ↑"} if mechanism is Mechanism.SHAPE else {}
        metrics["heldout/l1"] = "held-out L1 ↓"
        history = view.history(shown, *metrics, "loss/")
        below = (
            "Held out: a thin line for each seed, a thick one for their mean. Losses: weighted terms, mean over seeds. "
            f"{caption.provenance(shown)}"
        )
        figure, panels = style.plots(len(metrics) + 1, caption.title(title, shown), below, right=1.35)
        with style.style():
            for axes, (key, label) in zip(panels, metrics.items(), strict=False):
                _draw_heldout(axes, history[history["key"] == key], label)
            _draw_losses(panels[-1], history[history["key"].str.startswith("loss/")])
        figures[name] = style.cite(figure, shown["run_id"])
    return figures


def _draw_heldout(axes: Axes, history: pd.DataFrame, label: str) -> None:
    """Draw one held-out metric by step."""
    color = style.PALETTE[0]
    for _, seed in history.groupby("seed"):
        axes.plot(seed["step"], seed["value"], color=color, alpha=0.4, linewidth=1)
    mean = history.groupby("step")["value"].mean()
    axes.plot(mean.index, mean, color=color, marker="o", markersize=4, linewidth=2)
    axes.set(title=label, xlabel="step", xlim=(0, None))


def _draw_losses(axes: Axes, history: pd.DataFrame) -> None:
    """Draw the seed means of all loss terms by step; the discriminator's own loss is dashed."""
    mean = history.groupby(["key", "step"], as_index=False)["value"].mean()
    mean["term"] = mean["key"].str.removeprefix("loss/")
    terms = sorted(mean["term"].unique(), key=lambda term: (term != "total", term))
    dashes = {term: (3, 2) if term == "discriminator" else "" for term in terms}
    palette = dict(zip(terms, ["0.2", *style.PALETTE], strict=False))
    seaborn.lineplot(
        mean, x="step", y="value", hue="term", style="term", dashes=dashes, hue_order=terms, palette=palette, ax=axes
    )
    axes.set(title="loss terms", xlabel="step", ylabel="", xlim=(0, None))
    if (mean["value"] > 0).all():
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=0.01)  # adversarial terms change their sign
    axes.legend(title=None, loc="upper left", bbox_to_anchor=(1.0, 1.03))
