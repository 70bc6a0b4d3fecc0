"""CGN's invariant ensemble: what its heads look at, by source of counterfactuals; and how good these sources are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import baseline_cgn_tinygan
from analysis.frame import caption, style
from analysis.frame.table import READING, Quantity, Table, cell, words
from analysis.frame.view import View, split, values
from skdcgn.mechanisms import Mechanism

EXPERIMENT = "imagenet_ood"

SOURCES = {
    "original": "real images alone",
    "cgn": "+ CGN",
    "skdcgn": "+ SKDCGN",
    "baseline": "+ baseline",
}
"""What an ensemble learned from, and what it is called."""

_TICKS = {"original": "real\nalone", "cgn": "CGN", "skdcgn": "SKDCGN", "baseline": "baseline"}

HEADS = {
    "ensemble": "all heads",
    "shape": "shape head",
    "texture": "texture head",
    "background": "background head",
    "shape_texture": "shape and texture heads",
}
"""What an ensemble predicts with, and what it is called."""

_SINGLE = ("ensemble", "shape", "texture", "background")
_WITHOUT_BACKGROUND = ("ensemble", "shape_texture")
_ALL = tuple(HEADS)


class _Measure(NamedTuple):
    """A block of the table's rows."""

    title: str
    metric: str
    heads: Sequence[str]
    published: float | None = None
    """Of a ResNet-50 trained on ImageNet, in percent, by IN-9's authors (their repository's table)."""


_MEASURES = (
    _Measure("ImageNet-val, top-1 ↑", "top1", _SINGLE),
    _Measure("ImageNet-val, top-5 ↑", "top5", ("ensemble",)),
    _Measure("IN-9 original ↑", "in9_original", _WITHOUT_BACKGROUND, 95.6),
    _Measure("IN-9 mixed-same ↑", "in9_mixed_same", _WITHOUT_BACKGROUND, 86.2),
    _Measure("IN-9 mixed-rand ↑", "in9_mixed_rand", _ALL, 78.9),
    _Measure("BG gap ↓", "bg_gap", _ALL, 7.3),
    _Measure("shape bias", "shape_bias", _SINGLE),
    _Measure("decisions for shape or texture", "cue_accuracy", _SINGLE),
)
_PUBLISHED = "ResNet-50, published"
_NOTES = (
    READING,
    "All in percent. The seeds decide initial weights and the order of images; the counterfactuals of a source are the "
    "same for all. BG gap: accuracy on mixed-same less that on mixed-rand. Shape bias: share of the shape among "
    "decisions for shape or texture of cue-conflict stimuli; below it, how many decisions these are.",
    "Published: a ResNet-50 trained on ImageNet alone, as IN-9's authors (Xiao et al., 2021) report it.",
)
_PANELS = {
    "in9_mixed_rand": ("IN-9 mixed-rand: accuracy ↑", "%"),
    "bg_gap": ("IN-9: background gap ↓", "percentage points"),
    "shape_bias": ("cue conflict: shape bias", "%"),
}


def table(view: View) -> Table:
    """Compare the ensemble by the source of its counterfactuals: accuracy, background gap, shape bias."""
    shown = chosen(view)
    cells = []
    for measure in _MEASURES:
        absent = "no such decision" if measure.metric == "shape_bias" else "not measured"
        for head in measure.heads:
            quantity = Quantity(measure.title, f"final/{measure.metric}_{head}", ".1f", 100)
            for source, runs in shown.items():
                command = view.command(EXPERIMENT, sources=source)
                cells.append(cell(runs, quantity, command, absent, head=HEADS[head], source=SOURCES[source]))
            place = {"quantity": measure.title, "head": HEADS[head], "source": _PUBLISHED, "metric": quantity.metric}
            known = measure.published if head == "ensemble" else None
            cells.append(words("", **place) if known is None else words(f"{known:g}", known / 100, **place))
    title = "Robustness of CGN's invariant ensemble by the source of counterfactuals"
    notes = (*_NOTES, *_origins(shown))
    return Table.of(caption.title(title, *shown.values()), cells, notes, ("quantity", "head"), "source")


def figure(view: View) -> Figure:
    """Draw accuracy on random backgrounds, background gap and shape bias by source, a color for each head."""
    shown = chosen(view)
    run_ids = [run_id for runs in shown.values() for run_id in runs["run_id"]]
    title = "What the heads of CGN's invariant ensemble look at, by the source of counterfactuals"
    if not run_ids:
        return style.gap(title, view.command(EXPERIMENT))
    below = f"Mean over seeds, 95 % interval where there are several. {' '.join(_origins(shown))}"
    drawing, panels = style.plots(len(_PANELS), caption.title(title, *shown.values()), below, right=1.8)
    with style.style():
        for axes, (metric, (name, unit)) in zip(panels, _PANELS.items(), strict=True):
            _draw(axes, metric, shown)
            axes.set(title=name, ylabel=unit, ylim=(min(0.0, axes.get_ylim()[0]), None if metric == "bg_gap" else 102))
        panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.02, 1.03))
    return style.cite(drawing, run_ids)


def _draw(axes: Axes, metric: str, shown: Mapping[str, pd.DataFrame]) -> None:
    """Draw the means of each head with their intervals, a little beside those of the others."""
    for offset, color, head in zip(np.linspace(-0.24, 0.24, len(_SINGLE)), style.PALETTE, _SINGLE, strict=False):
        samples = [values(runs, f"final/{metric}_{head}") for runs in shown.values()]
        style.intervals(axes, np.arange(len(samples)) + offset, samples, 100, color=color, label=HEADS[head])
    names = [_TICKS[source] if len(runs) else f"{_TICKS[source]}\n(no run)" for source, runs in shown.items()]
    axes.set(xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5))
    axes.set_xticklabels(names, fontsize=8)
    axes.grid(axis="x", visible=False)


def chosen(view: View) -> dict[str, pd.DataFrame]:
    """Return the runs of each source that table and figure show, all of one profile, ordered by seed."""
    return split(view.chosen(EXPERIMENT, by={"source": list(SOURCES)}, kind="ensemble"), "source", SOURCES)


def _origins(shown: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say where the numbers come from: profile, seeds and pictures, one sentence for each kind of run."""
    named = {SOURCES[source]: runs for source, runs in shown.items()}
    return caption.origins(named, lambda runs: (runs["images"].iloc[0],))


_SOURCE_QUANTITIES = (
    Quantity("Fréchet distance to the CGN's ↓", "final/frechet_counterfactual", ".2f"),
    Quantity("Fréchet distance to real images ↓", "final/frechet_real", ".2f"),
    Quantity("Inception score ↑", "final/inception_score", ".2f"),
    Quantity("variation within a class, by features", "final/variation_counterfactual", ".2f"),
)
"""Of counterfactuals."""

_MECHANISM_QUANTITIES = (
    Quantity("Fréchet distance to the CGN's ↓", "frechet", ".2f"),
    Quantity("variation within a class, by features", "variation", ".2f"),
    Quantity("parameters", "parameters", ",.0f", counted=True),
    Quantity("MACs of one image (millions)", "macs", ",.1f", 1e-6, counted=True),
    Quantity("weights (MB)", "megabytes", ",.2f", counted=True),
    Quantity("GPU memory, batch of 32 (MB)", "peak_megabytes", ",.0f"),
    Quantity("images per second, batch of 32 ↑", "images_per_second", ",.0f"),
)
"""Of each mechanism."""

_OPTIONAL = ("final/frechet_real", "final/peak_megabytes")  # measured where there are real images, and on a GPU


def fidelity(view: View) -> Table:
    """Compare the sources of counterfactuals themselves, the teacher beside the students: fidelity, size, speed.

    Args:
        view: of the runs; those of `baseline_cgn_tinygan` measure the sources, `imagenet_kd` the students' masks.
    """
    shown = baseline_cgn_tinygan.counterfactuals(view)
    parts = [("counterfactuals", quantity) for quantity in _SOURCE_QUANTITIES]
    parts += [
        (mechanism.value, quantity._replace(metric=f"final/{quantity.metric}_{mechanism}"))
        for mechanism in Mechanism
        for quantity in _MECHANISM_QUANTITIES
    ]
    command = view.command(baseline_cgn_tinygan.EXPERIMENT, stage="counterfactuals")
    cells = [
        cell(runs, quantity, command, part=part, source=baseline_cgn_tinygan.SOURCES[source])
        for part, quantity in parts
        if not quantity.metric.startswith(_OPTIONAL) or any(values(runs, quantity.metric) for runs in shown.values())
        for source, runs in shown.items()
    ]
    notes = (
        READING,
        "Sizes are counted. The CGN's outputs that all are compared with have another noise, so that its own distance "
        "shows what chance alone makes. Features: Inception (pytorch-fid's), or for 32x32 the project's own digit "
        "classifier; logits for the Inception score come from the same network, so that scores of the two cannot be "
        "compared.",
        *caption.origins({baseline_cgn_tinygan.SOURCES[source]: runs for source, runs in shown.items()}),
    )
    title = caption.title("Sources of counterfactuals beside their teacher", *shown.values())
    return Table.of(title, [*cells, *_mask_iou(view)], notes, ("part", "quantity"), "source")


def _mask_iou(view: View) -> Iterator[dict[str, object]]:
    """Yield the row of the students' masks: only they have a target."""
    students = view.chosen("imagenet_kd", kind="student", mechanism="shape")
    quantity = Quantity("mask IoU with the CGN's ↑", "final/iou")
    texts = {"cgn": "reference", "baseline": "no target"}
    for source, title in baseline_cgn_tinygan.SOURCES.items():
        place = {"part": Mechanism.SHAPE.value, "quantity": quantity.title, "source": title}
        if source in texts:
            yield words(texts[source], **place)
        else:
            yield cell(students, quantity, view.command("imagenet_kd"), **place)
