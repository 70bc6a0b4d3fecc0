"""Out-of-distribution robustness: classifiers by the images that they learned from, beside published accuracies."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.frame import caption, style
from analysis.frame.published import CGN_PAPER, REPLICATION, ROBUSTNESS
from analysis.frame.style import Block
from analysis.frame.table import READING, Quantity, Table, cell, words
from analysis.frame.view import View, split, values
from skdcgn.images import to_float

EXPERIMENT = "ood_robustness"

SOURCES = {
    "original": "original",
    "gan": "GAN",
    "cgn": "CGN",
    "skdcgn": "SKDCGN",
    "skdcgn_slim": "slim SKDCGN",
    "skdcgn_published": "SKDCGN 64x64",
    "baseline": "baseline",
}
"""Sources of training images, and what they are called."""

TESTS = {
    "valid": "last 10,000 of MNIST-train",
    "test": "MNIST-test",
    "valid_drifted": "last 10,000, drifted",
    "test_drifted": "MNIST-test, drifted",
}
"""Test sets, and what they are called."""

_LOOK = {"valid": ("o", 0), "test": ("s", 2), "valid_drifted": ("^", 1), "test_drifted": ("v", 4)}
"""Test set to its marker and its color of the palette."""

_NOTES = (
    READING,
    "Accuracy in percent of the invariant classifier. Every source gives as many images. In the test sets colors or "
    "textures are random; the published accuracies are on the last 10,000 of MNIST-train. Where stroke and background "
    "of a test image have the same color, one in ten of double-colored MNIST, its digit cannot be seen.",
)

_DRIFT = (
    "Drifted: the CGN authors' loader adds each image's noise to the color table itself, so that colors wander, and "
    "stroke and background of the same color soon differ."
)


def table(view: View) -> Table:
    """Compare classifiers by the source of their training images, beside published accuracies."""
    shown = chosen(view)
    present = pd.concat(shown.values())
    profile = None if present.empty else present["profile"].iloc[0]
    drifting = bool(values(present, "final/test_drifted_accuracy"))
    tests = {name: title for name, title in TESTS.items() if drifting or not name.endswith("drifted")}
    cells = []
    for source, runs in shown.items():
        known = ROBUSTNESS.get((view.dataset(EXPERIMENT), source), {})
        for who in (CGN_PAPER, REPLICATION):
            place = {"source": SOURCES[source], "quantity": f"{who} (train / test)"}
            number = (f"{known[who].train:g} / {known[who].test:g}", known[who].test / 100) if who in known else ("–",)
            cells.append(words(*number, **place))
        command = view.command(EXPERIMENT, profile=profile or view.profile, sources=source)
        for name, title in {"train": "train", **tests}.items():
            quantity = Quantity(title, f"final/{name}_accuracy", ".1f", 100)
            cells.append(cell(runs, quantity, command, "–", source=SOURCES[source]))
    notes = (*_NOTES, *([_DRIFT] if drifting else []), *_origins(shown))
    return Table.of(
        _title(view, "Robustness by the source of training images", shown), cells, notes, ("source",), "quantity"
    )


def figure(view: View) -> Figure:
    """Draw test accuracies by source: ours with their intervals, published ones beside them; see `table`."""
    shown = chosen(view)
    title = _title(view, "Accuracy where colors are random, by the source of training images", shown)
    if not _run_ids(shown):
        return style.gap(title, view.command(EXPERIMENT))
    below = f"Mean over seeds, 95 % interval where there are several. {' '.join(_origins(shown))}"
    drawing, (axes,) = style.plots(1, title, below, right=2.6)
    with style.style():
        _draw_published(axes, view.dataset(EXPERIMENT))
        for index, (name, (marker, color)) in enumerate(_LOOK.items()):
            samples = [values(runs, f"final/{name}_accuracy") for runs in shown.values()]
            if any(samples):
                look = {"fmt": marker, "color": style.PALETTE[color], "markersize": 5, "label": f"ours, {TESTS[name]}"}
                style.intervals(axes, np.arange(len(samples)) + 0.12 * (index - 1.5), samples, 100, **look)
        names = [SOURCES[source] if len(runs) else f"{SOURCES[source]}\n(no run)" for source, runs in shown.items()]
        axes.axhline(10, color="0.6", linewidth=1, linestyle=":")
        axes.text(len(names) - 0.55, 10.8, "chance", ha="right", va="bottom", color="0.4", size=8.5)
        axes.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.5), ylim=(0, 100))
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return style.cite(drawing, _run_ids(shown))


def _draw_published(axes: Axes, dataset: str) -> None:
    """Draw the published test accuracies, hollow, left of ours."""
    look = {"s": 42, "facecolor": "none", "edgecolor": "0.2"}
    known = {place: ROBUSTNESS.get((dataset, source), {}) for place, source in enumerate(SOURCES)}
    for who, marker in ((CGN_PAPER, "D"), (REPLICATION, "P")):
        points = [(place - 0.32, accuracies[who].test) for place, accuracies in known.items() if who in accuracies]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, label=who, **look)


def class_figure(view: View) -> Figure:
    """Draw the accuracy on MNIST-test by digit and source, the mean over seeds."""
    shown = {source: runs for source, runs in chosen(view).items() if len(runs)}
    title = _title(view, "Accuracy by digit and source of training images", shown)
    if not shown:
        return style.gap(title, view.command(EXPERIMENT))
    load = view.store.load_tensors
    means = [
        torch.stack([load(run_id, "class_accuracy")["test"] for run_id in runs["run_id"]]).mean(dim=0)
        for runs in shown.values()
    ]
    accuracy = 100 * torch.stack(means).numpy()
    below = f"MNIST-test with random appearances, percent, mean over seeds. {' '.join(_origins(shown))}"
    drawing, (axes,) = style.plots(1, title, below, right=0.4)
    with style.style():
        axes.imshow(accuracy, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, column in np.ndindex(*accuracy.shape):
            color = "black" if accuracy[row, column] > 55 else "white"
            axes.text(column, row, f"{accuracy[row, column]:.0f}", ha="center", va="center", color=color)
        axes.set(xticks=range(accuracy.shape[1]), yticks=range(len(shown)), xlabel="digit")
        axes.set_yticklabels([SOURCES[source] for source in shown])
        axes.grid(visible=False)
    return style.cite(drawing, _run_ids(shown))


def image_sheet(view: View) -> Figure:
    """Draw what the classifiers of the lowest seed learned from: two images a class of each source."""
    shown = {source: runs for source, runs in chosen(view).items() if len(runs)}
    title = _title(view, "What the classifiers learn from", shown)
    if not shown:
        return style.gap(title, view.command(EXPERIMENT))
    blocks = []
    for source, runs in shown.items():
        samples = view.store.load_tensors(runs["run_id"].iloc[0], "samples")
        first, second = to_float(samples["pixels"]).chunk(2)
        header = {} if blocks else {"label": samples["labels"][: len(first)].tolist()}
        blocks.append(Block({SOURCES[source]: first, "": second}, header))
    below = f"Two images of each class, the first and the middle one of each training set. {' '.join(_origins(shown))}"
    return style.cite(style.sheet(blocks, title, below), _run_ids(shown))


def chosen(view: View) -> dict[str, pd.DataFrame]:
    """Return the runs that stand for each source, a row a seed, all of one profile."""
    return split(view.chosen(EXPERIMENT, by={"source": list(SOURCES)}, kind="classifier"), "source", SOURCES)


def _title(view: View, text: str, shown: Mapping[str, pd.DataFrame]) -> str:
    return caption.title(text, *shown.values(), dataset=view.dataset(EXPERIMENT))


def _run_ids(shown: Mapping[str, pd.DataFrame]) -> list[str]:
    return [run_id for runs in shown.values() for run_id in runs["run_id"]]


def _origins(shown: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say how the runs were made: what they share once, and what only some of them have."""
    named = {SOURCES[source]: runs for source, runs in shown.items()}
    lines = caption.origins(
        named,
        lambda runs: (
            f"{caption.number_range(runs, 'param/images')} images",
            f"{caption.number_range(runs, 'param/classifier.epochs')} epochs",
        ),
    )
    shared = [SOURCES[source] for source, runs in shown.items() if len(runs) and _shared(source, runs)]
    if shared:
        lines.append(
            f"{', '.join(shared)}: one trained generator for all seeds; the interval leaves out the chance in training "
            "it."
        )
    return lines


def _shared(source: str, runs: pd.DataFrame) -> bool:
    """Whether several seeds drew from one trained generator."""
    own = 1 if source == "skdcgn_published" else int(runs["param/generators"].iloc[0])
    return source not in ("original", "cgn") and own < len(runs)
