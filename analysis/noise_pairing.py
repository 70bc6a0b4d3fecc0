"""What the published teacher sets cost, which pair images with other noise than their own (Sec. 4.3)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.ablation_losses import PAIRING, chosen
from analysis.frame import caption, style
from analysis.frame.view import View, values
from skdcgn.mechanisms import Mechanism

_PAIRINGS = ("exact", "published")

_METRICS = {"final/l1": "unseen noise", "final/seen_l1": "seen noise"}

_COLORS = {
    ("exact", "final/l1"): style.PALETTE[0],
    ("exact", "final/seen_l1"): "lightsteelblue",
    ("published", "final/l1"): style.PALETTE[1],
    ("published", "final/seen_l1"): "navajowhite",
}


def pairing_figure(view: View) -> Figure:
    """Draw noise response, and L1 on seen and unseen noise, by mechanism and pairing."""
    shown, title = chosen(view, PAIRING), "Noise pairing: exact against published teacher sets"
    title = caption.title(title, shown, dataset=view.dataset(PAIRING))
    if shown.empty:
        return style.gap(title, view.command(PAIRING))
    below = (
        "Points: seeds, bars: their mean. Noise response is the correlation of the student's and the teacher's "
        "deviations from their class means, on unseen noise. Dotted: a student that knows the class means and ignores "
        f"its noise. {caption.provenance(shown)}"
    )
    figure, (responses, *panels) = style.plots(1 + len(Mechanism), title, below, right=2.2)
    with style.style():
        for place, (mechanism, axes) in enumerate(zip(Mechanism, panels, strict=True)):
            students = {
                pairing: shown[(shown["mechanism"] == mechanism) & (shown["pairing"] == pairing)]
                for pairing in _PAIRINGS
            }
            for offset, (pairing, runs) in zip((-0.2, 0.2), students.items(), strict=True):
                color = _COLORS[pairing, "final/l1"]
                _draw_bar(responses, place + offset, values(runs, "final/noise_response"), 0.38, color, None)
            for position, ((pairing, metric), color) in enumerate(_COLORS.items()):
                label = f"{pairing}, {_METRICS[metric]}"
                _draw_bar(axes, position, values(students[pairing], metric), 0.8, color, label)
            tags = {"mechanism": mechanism.value, "teacher_sha256": shown["teacher_sha256"].iloc[0]}
            means = view.only(PAIRING, kind="class_means", **tags)
            if means is not None:
                axes.axhline(means["final/l1"], color="0.2", linestyle=":", label="class means")
            axes.set(title=f"{mechanism}: L1 ↓", xticks=[])
        responses.axhline(0, color="0.2", linewidth=0.8)
        responses.set(title="noise response ↑", xticks=range(len(Mechanism)), ylim=(None, 1))
        responses.set_xticklabels([mechanism.value for mechanism in Mechanism], rotation=20)
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return style.cite(figure, shown["run_id"])


def _draw_bar(
    axes: Axes, position: float, measured: Sequence[float], width: float, color: object, label: str | None
) -> None:
    """Draw the mean of some values as a bar, and each as a point; nothing where there are none."""
    if measured:
        axes.bar(position, np.mean(measured), width, color=color, label=label)
        axes.scatter([position] * len(measured), measured, s=8, color="0.2", zorder=3)
