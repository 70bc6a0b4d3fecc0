"""CGN's invariant ensemble: what its heads look at, by source of counterfactuals; and how good these sources are."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import baseline_cgn_tinygan as baseline_cgn_tinygan_figures
from analysis.frame import style, view
from analysis.frame.table import Table
from skdcgn.measure.statistics import mean_interval
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store

EXPERIMENT = "imagenet_ood"

SOURCES = {
    "original": "real images alone",
    "cgn": "+ CGN",
    "skdcgn": "+ SKDCGN",
    "baseline": "+ baseline",
}
"""What an ensemble learnt from, and what it is called."""

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
    """Of a ResNet-50 trained on ImageNet, in per cent, by IN-9's authors (their repository's table)."""


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
_READING = (
    "All in per cent: means over seeds with their 95 % Student-t interval and n. The seeds decide initial weights and "
    "the order of images; the counterfactuals of a source are the same for all. BG gap: accuracy on mixed-same less "
    "that on mixed-rand. Shape bias: share of the shape among decisions for shape or texture of cue-conflict stimuli; "
    "below it, how many decisions these are.",
    "Published: a ResNet-50 trained on ImageNet alone, as IN-9's authors (Xiao et al., 2021) report it.",
)


def table(store: Store, profile: str | None = None) -> Table:
    """Compare the ensemble by the source of its counterfactuals: accuracy, background gap, shape bias.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any, the same for all sources.
    """
    shown = chosen(store, profile)
    cells = []
    for measure in _MEASURES:
        for head in measure.heads:
            place = {"quantity": measure.title, "head": HEADS[head], "metric": f"final/{measure.metric}_{head}"}
            cells += [place | _cell(shown[source], place["metric"], source, profile) for source in SOURCES]
            known = measure.published if head == "ensemble" else None
            text = "" if known is None else f"{known:g}"
            mean = {} if known is None else {"mean": known / 100}
            cells.append(place | mean | {"source": _PUBLISHED, "n": 0, "command": "", "text": text})
    notes = (*_READING, *_origins(shown))
    title = f"Robustness of CGN's invariant ensemble by the source of counterfactuals{_remark(shown)}"
    return Table(title, pd.DataFrame(cells), notes, ("quantity", "head"), "source")


def figure(store: Store, profile: str | None = None) -> Figure:
    """Draw accuracy on random backgrounds, background gap and shape bias by source, a colour for each head."""
    shown = chosen(store, profile)
    title = "What the heads of CGN's invariant ensemble look at, by the source of counterfactuals"
    if all(of_runs.empty for of_runs in shown.values()):
        return style.gap(title, view.command(EXPERIMENT, profile=profile))
    caption = f"Mean over seeds, 95 % interval where there are several. {' '.join(_origins(shown))}"
    panels = {
        "in9_mixed_rand": ("IN-9 mixed-rand: accuracy ↑", "%"),
        "bg_gap": ("IN-9: background gap ↓", "percentage points"),
        "shape_bias": ("cue conflict: shape bias", "%"),
    }
    drawing, axes = style.plots(len(panels), title + _remark(shown), caption, right=1.8)
    with style.style():
        for plot, (metric, (name, unit)) in zip(axes, panels.items(), strict=True):
            for offset, head in zip(np.linspace(-0.24, 0.24, len(_SINGLE)), _SINGLE, strict=True):
                _draw(plot, shown, f"final/{metric}_{head}", offset, head)
            names = [_TICKS[source] if len(r) else f"{_TICKS[source]}\n(no run)" for source, r in shown.items()]
            plot.set(title=name, ylabel=unit, xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5))
            plot.set_xticklabels(names, fontsize=8)
            plot.grid(axis="x", visible=False)
            low = min(0.0, plot.get_ylim()[0])
            plot.set_ylim(low, None if metric == "bg_gap" else 102)
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.03))
    return style.cite(drawing, [run_id for of_runs in shown.values() for run_id in of_runs["run_id"]])


def chosen(store: Store, profile: str | None = None) -> dict[str, pd.DataFrame]:
    """Return the runs of each source that table and figure show, all of one profile, ordered by seed."""
    finished = view.finished_runs(store, EXPERIMENT)
    if not finished.empty:
        finished = view.widest(finished, profile)
        if (finished["dataset"] == "imagenet").any():  # the real one, where it was ever run
            finished = finished[finished["dataset"] == "imagenet"]
    return {source: view.newest(finished, {"source": source}, profile) for source in SOURCES}


def _cell(shown: pd.DataFrame, metric: str, source: str, profile: str | None) -> dict[str, object]:
    """Fill one cell of the table from the runs of a source, or say what is missing."""
    cell = {"source": SOURCES[source], "n": 0, "command": ""}
    values = shown[metric].dropna().tolist() if metric in shown else []
    if values:
        return cell | mean_interval(values)._asdict() | {"text": style.interval_text(values, ".1f", 100)}
    if shown.empty:
        command = f"{view.command(EXPERIMENT, profile=profile)} --sources {source}"
        return cell | {"command": command, "text": "no finished run"}
    return cell | {"text": "no such decision" if "shape_bias" in metric else "not measured"}


def _draw(axes: Axes, shown: Mapping[str, pd.DataFrame], metric: str, offset: float, head: str) -> None:
    """Draw one head's means with their intervals, a little beside those of the others."""
    color = style.PALETTE[_SINGLE.index(head)]
    label: str | None = HEADS[head]
    for position, of_runs in enumerate(shown.values()):
        values = of_runs[metric].dropna().tolist() if metric in of_runs else []
        if values:
            mean, low, high, n = (100 * each for each in mean_interval(values))
            lengths = [[mean - low], [high - mean]] if n > 100 else None
            axes.errorbar(position + offset, mean, lengths, fmt="o", color=color, capsize=3, markersize=5, label=label)
            label = None


def _remark(shown: Mapping[str, pd.DataFrame]) -> str:
    """Say for a title in what way the runs are less than the real experiment."""
    notes = [view.stand_in_note(of_runs.iloc[0]) for of_runs in shown.values() if len(of_runs)]
    notes = [note for note in dict.fromkeys(notes) if note]
    return f" ({'; '.join(notes)})" if notes else ""


def _origins(shown: Mapping[str, pd.DataFrame]) -> list[str]:
    """Where the numbers come from: profile, seeds and pictures, one sentence for each kind of run."""
    sentences: dict[str, list[str]] = {}
    for source, of_runs in shown.items():
        if len(of_runs):
            first = of_runs.iloc[0]
            seeds = f"seed{'s' if len(of_runs) > 1 else ''} {', '.join(map(str, of_runs['seed']))}"
            sentence = f"profile {first['profile']}, {seeds}; teacher: {first['teacher']}; {first['images']}."
            sentences.setdefault(sentence, []).append(SOURCES[source])
    return [f"{', '.join(names)}: {sentence}" for sentence, names in sentences.items()]


_FIDELITY = {
    "frechet": ("Fréchet distance to the CGN's ↓", ".2f", 1.0),
    "variation": ("variation within a class, by features", ".2f", 1.0),
    "parameters": ("parameters", ",.0f", 1.0),
    "macs": ("MACs of one image (millions)", ",.1f", 1e-6),
    "megabytes": ("weights (MB)", ",.2f", 1.0),
    "peak_megabytes": ("GPU memory, batch of 32 (MB)", ",.0f", 1.0),
    "images_per_second": ("images per second, batch of 32 ↑", ",.0f", 1.0),
}
_COUNTED = ("parameters", "macs", "megabytes")


def fidelity(store: Store, profile: str | None = None) -> Table:
    """Compare the sources of counterfactuals themselves, the teacher beside the students: fidelity, size, speed.

    Args:
        store: the run store; stage `counterfactuals` of `baseline_cgn_tinygan` measures the sources, `imagenet_kd` the
            masks of the students.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    finished = view.finished_runs(store, baseline_cgn_tinygan_figures.EXPERIMENT)
    shown = {
        source: view.newest(finished, {"stage": "counterfactuals", "source": source}, profile)
        for source in baseline_cgn_tinygan_figures.SOURCES
    }
    rows = [("counterfactuals", "frechet_counterfactual", *_FIDELITY["frechet"])]
    rows += [("counterfactuals", "frechet_real", "Fréchet distance to real images ↓", ".2f", 1.0)]
    rows += [("counterfactuals", "inception_score", "Inception score ↑", ".2f", 1.0)]
    rows += [("counterfactuals", "variation_counterfactual", *_FIDELITY["variation"])]
    for mechanism in Mechanism:
        rows += [(mechanism.value, f"{name}_{mechanism}", *described) for name, described in _FIDELITY.items()]
    cells = []
    for part, metric, title, form, scale in rows:
        found = {source: _values(of_runs, f"final/{metric}") for source, of_runs in shown.items()}
        if not any(found.values()) and metric.startswith(("peak", "frechet_real")):
            continue  # measured on a GPU only, and where there are real images
        for source, values in found.items():
            place = {
                "part": part,
                "quantity": title,
                "metric": metric,
                "source": baseline_cgn_tinygan_figures.SOURCES[source],
            }
            cell = {"n": 0, "command": "", "text": "not measured"}
            if values and metric.startswith(_COUNTED):
                cell |= {"mean": values[0], "n": len(values), "text": format(values[0] * scale, form)}
            elif values:
                cell |= mean_interval(values)._asdict() | {"text": style.interval_text(values, form, scale)}
            elif shown[source].empty:
                cell |= {
                    "command": baseline_cgn_tinygan_figures.command("counterfactuals", profile),
                    "text": "no finished run",
                }
            cells.append(place | cell)
    cells += _mask_iou(store, profile)
    measured = [of_runs.iloc[0] for of_runs in shown.values() if len(of_runs)]
    remark = f" ({note})" if measured and (note := _stand_in(measured[0])) else ""
    notes = (
        "Means over seeds with their 95 % Student-t interval and n; sizes are counted. The CGN's outputs that all are "
        "held against have another noise, so that its own distance shows what chance alone makes. Features: Inception "
        "(pytorch-fid's), or for 32x32 the project's own digit classifier; logits for the Inception score come from "
        "the same network, so that scores of the two are not to be compared.",
    )
    return Table(
        f"Sources of counterfactuals beside their teacher{remark}",
        pd.DataFrame(cells),
        notes,
        ("part", "quantity"),
        "source",
    )


def _mask_iou(store: Store, profile: str | None) -> list[dict[str, object]]:
    """The row of the students' masks: only they have a target."""
    finished = view.finished_runs(store, "imagenet_kd")
    students = view.newest(finished, {"mechanism": Mechanism.SHAPE.value}, profile)
    values = _values(students, "final/iou")
    place = {"part": Mechanism.SHAPE.value, "quantity": "mask IoU with the CGN's ↑", "metric": "iou"}
    missing = {"n": 0, "command": view.command("imagenet_kd", profile=profile), "text": "no finished run"}
    measured = missing if not values else mean_interval(values)._asdict() | {"text": style.interval_text(values)}
    texts = {"cgn": "reference", "baseline": "no target"}
    return [
        place | {"source": title, "n": 0, "command": "", "text": texts.get(source, "")}
        if source in texts
        else place | {"source": title, "command": ""} | measured
        for source, title in baseline_cgn_tinygan_figures.SOURCES.items()
    ]


def _values(shown: pd.DataFrame, metric: str) -> list[float]:
    return shown[metric].dropna().tolist() if metric in shown else []


def _stand_in(run: pd.Series) -> str:
    return "stand-in: a miniature at 32x32, not ImageNet" if run["stand_in"] else view.stand_in_note(run)
