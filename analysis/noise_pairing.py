"""Appendix D from the run store: Figures 12 to 16, curves, tables and verdicts of the ablations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.ablation_losses import PAIRING, _command, _provenance, _titled, chosen
from analysis.frame import style, view
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store


def pairing_figure(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw what the published teacher set costs: noise response, and L1 on seen and unseen noise, for each mechanism.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Noise pairing: exact against published teacher sets, {view.dataset_title(dataset)}"
    shown = chosen(store, PAIRING, dataset, profile)
    if shown.empty:
        return style.gap(title, _command(PAIRING, dataset, profile))
    baseline = _class_means(store, dataset, shown.iloc[0])
    caption = (
        "Points: seeds, bars: their mean. Noise response is the correlation of student's and teacher's deviations from "
        "their class means, on unseen noise. Dotted: a student that knows the class means and ignores its noise. "
        f"{_provenance(shown)}"
    )
    figure, panels = style.plots(1 + len(Mechanism), _titled(title, shown.iloc[0]), caption, right=2.2)
    bars = [
        ("exact", "final/l1"),
        ("exact", "final/seen_l1"),
        ("published", "final/l1"),
        ("published", "final/seen_l1"),
    ]
    colors = dict(zip(bars, [style.PALETTE[0], "lightsteelblue", style.PALETTE[1], "navajowhite"], strict=True))
    with style.style():
        for place, mechanism in enumerate(Mechanism):
            for offset, pairing in ((-0.2, "exact"), (0.2, "published")):
                values = _values(shown, mechanism, pairing, "final/noise_response")
                _draw_bar(panels[0], place + offset, values, 0.38, colors[pairing, "final/l1"], None)
            axes = panels[1 + place]
            for position, (pairing, metric) in enumerate(bars):
                values = _values(shown, mechanism, pairing, metric)
                label = f"{pairing}, {'seen' if 'seen' in metric else 'unseen'} noise"
                _draw_bar(axes, position, values, 0.8, colors[pairing, metric], label)
            if f"baseline/{mechanism}_l1" in baseline:
                axes.axhline(baseline[f"baseline/{mechanism}_l1"], color="0.2", linestyle=":", label="class means")
            axes.set(title=f"{mechanism}: L1 ↓", xticks=[])
        panels[0].axhline(0, color="0.2", linewidth=0.8)
        panels[0].set(title="noise response ↑", xticks=range(len(Mechanism)), ylim=(None, 1))
        panels[0].set_xticklabels([mechanism.value for mechanism in Mechanism], rotation=20)
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return style.cite(figure, shown["run_id"])


def _draw_bar(
    axes: Axes, position: float, values: Sequence[float], width: float, color: object, label: str | None
) -> None:
    """Draw the mean of some values as a bar, and each as a point; nothing where there are none."""
    if values:
        axes.bar(position, np.mean(values), width, color=color, label=label)
        axes.scatter([position] * len(values), values, s=8, color="0.2", zorder=3)


def _values(shown: pd.DataFrame, mechanism: Mechanism, arm: str, metric: str) -> list[float]:
    return shown.loc[(shown["mechanism"] == mechanism) & (shown["pairing"] == arm), metric].dropna().tolist()


def _class_means(store: Store, dataset: str, run: pd.Series) -> dict[str, float]:
    """What `noise_pairing` measured for class means; nothing where its group run is not finished."""
    for group in store.search(PAIRING):
        tags, metrics = group.data.tags, group.data.metrics
        same = tags.get("dataset") == dataset and tags.get("teacher_sha256") == run["teacher_sha256"]
        if same and any(key.startswith("baseline/") for key in metrics):
            return {key: value for key, value in metrics.items() if key.startswith("baseline/")}
    return {}
