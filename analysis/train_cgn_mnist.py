"""CGNs that were trained here: a teacher beside its authors' own, and the baseline with TinyGAN generators."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from analysis.frame import caption, style
from analysis.frame.style import Block
from analysis.frame.table import READING, Quantity, Table, cell
from analysis.frame.view import View
from skdcgn.mechanisms import Mechanism

EXPERIMENTS = {"ours": "train_cgn_mnist", "baseline": "baseline_mnist"}
"""Whose CGN: the experiment that trains it. The authors' own is measured along with ours."""

_TITLES = {"authors": "the authors' CGN", "ours": "our CGN", "baseline": "CGN with TinyGANs (baseline)"}

_QUANTITIES = (
    Quantity("classifier from its counterfactuals, last 10,000 of MNIST-train (%) ↑", "valid_accuracy", ".1f", 100),
    Quantity("the same, MNIST-test (%) ↑", "test_accuracy", ".1f", 100),
    Quantity("IoU of masks with the nearest real stroke ↑", "stroke_iou", ".3f"),
    Quantity("the same of held-out real strokes", "stroke_iou_of_real", ".3f"),
)
"""Rows of the table; their metrics without what tells whose they are."""

_ROWS = {
    "mask": "mask",
    "texture": "texture",
    "background": "background",
    "image": "image",
    "counterfactual": "permuted",
}
"""Tensors of a run, and what their row is called."""


def table(view: View) -> Table:
    """Compare CGNs by the classifiers that learn from their counterfactuals, and by their masks."""
    found = {who: chosen(view, who) for who in EXPERIMENTS}
    cells = []
    for quantity in _QUANTITIES:
        for who, title in _TITLES.items():
            trained, prefix = ("ours", "final/authors_") if who == "authors" else (who, "final/")
            measured = quantity._replace(metric=f"{prefix}{quantity.metric}")
            command = view.command(EXPERIMENTS[trained])
            cells.append(cell(found[trained], measured, command, cgn=title))
    named = {_TITLES[who]: runs for who, runs in found.items()}
    notes = (
        READING,
        "The authors' weights are one CGN: there n counts sets of counterfactuals and classifiers.",
        *caption.origins(named, _settings, runs=True),
    )
    title = "CGNs trained here beside the authors' own"
    title = caption.title(title, *found.values(), dataset=view.dataset(EXPERIMENTS["ours"]))
    return Table.of(title, cells, notes, ("quantity",), "cgn")


def _settings(runs: pd.DataFrame) -> tuple[str, ...]:
    """Say how CGNs and their classifiers were trained."""
    return (
        f"{caption.number_range(runs, 'param/training.steps')} steps",
        f"perceptual loss: {runs['perceptual'].iloc[0]}",
        f"classifier on {caption.number_range(runs, 'param/counterfactuals')} counterfactuals, "
        f"{caption.number_range(runs, 'param/classifier.epochs')} epochs",
    )


def figure(view: View) -> dict[str, Figure]:
    """Draw samples of each mechanism: the authors' CGN and ours on the same noise, and the baseline.

    Returns:
        Figures `our_teacher` and `our_baseline`; a gap where there is no run.
    """
    figures = {}
    for who, experiment in EXPERIMENTS.items():
        name = "our_teacher" if who == "ours" else f"our_{who}"
        runs, title = chosen(view, who), f"{_TITLES[who][0].upper()}{_TITLES[who][1:]}, trained here"
        title = caption.title(title, runs, dataset=view.dataset(EXPERIMENTS["ours"]))
        if runs.empty:
            figures[name] = style.gap(title, view.command(experiment))
            continue
        run = runs.iloc[0]  # the lowest seed, not the best one
        tensors = view.store.load_tensors(run["run_id"], "samples")
        prefixes = {"ours": "ours_", "authors": "authors_"} if who == "ours" else {"baseline": ""}
        blocks = [
            Block(_rows(tensors, prefix), {whose: range(style.COLUMNS)})
            for whose, prefix in prefixes.items()
            if f"{prefix}mask" in tensors
        ]
        below = (
            "One sample of each class; in the last row the labels of texture and background are permuted. "
            f"{caption.provenance(run, *_settings(runs)[:1])}"
        )
        figures[name] = style.cite(style.sheet(blocks, title, below), [run["run_id"]])
    return figures


def chosen(view: View, who: str) -> pd.DataFrame:
    """Return the runs that stand for one of `EXPERIMENTS`, a row a seed."""
    return view.chosen(EXPERIMENTS[who], kind="cgn", dataset=view.dataset(EXPERIMENTS["ours"]))


def _rows(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the rows of one CGN's images."""
    rows = {title: tensors[f"{prefix}{name}"][: style.COLUMNS] for name, title in _ROWS.items()}
    return rows | {"mask": Mechanism.SHAPE.to_image(rows["mask"], 3)}
