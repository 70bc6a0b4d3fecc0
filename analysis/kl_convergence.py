"""Convergence with and without KL (Appendix D.2): Fig. 15, and a table of how fast and how far students come."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis.ablation_losses import ARMS, CONVERGENCE, chosen
from analysis.frame import caption, style
from analysis.frame.caption import METRICS
from analysis.frame.judge import difference
from analysis.frame.style import Block
from analysis.frame.table import READING, Quantity, Table, cell, number
from analysis.frame.view import View
from skdcgn.mechanisms import Mechanism

_GAIN = "KL of the paper − no KL"


def convergence(view: View) -> Table:
    """Compare how fast students learn, and how far they come, with and without KL (Appendix D.2, Fig. 15)."""
    tag, titles = ARMS[CONVERGENCE]
    compared = chosen(view, CONVERGENCE)
    cells = []
    for mechanism in Mechanism:
        shown = compared[compared["mechanism"] == mechanism]
        command = view.command(CONVERGENCE, mechanism=mechanism)
        for metric in ("steps_to_target", "iou" if mechanism is Mechanism.SHAPE else "l1"):
            quantity = Quantity(METRICS[metric], f"final/{metric}")
            absent, place = "never reached", {"mechanism": mechanism.value}
            for arm, title in titles.items():
                cells.append(cell(shown[shown[tag] == arm], quantity, command, absent, **place, model=title))
            gains = difference(shown, tag, "paper", "none", quantity.metric)
            gain = number(gains, quantity, absent, **place, model=_GAIN)
            cells.append(cell(shown, quantity, command, **place, model=_GAIN) if shown.empty else gain)
    notes = [READING, "The last column is paired by seed."]
    if not compared.empty:
        first = compared.iloc[0]
        notes.append(
            f"The target is a mask IoU of {first['param/target_iou']}, an L1 of {first['param/target_l1']}, on "
            f"held-out noise. {caption.provenance(compared)}"
        )
    title = caption.title("Convergence with and without KL", compared, dataset=view.dataset(CONVERGENCE))
    return Table.of(title, cells, tuple(notes))


def figure_15_mnist(view: View) -> Figure:
    """Draw the MNIST counterpart of Fig. 15; see `masks_by_epoch`."""
    title = "Fig. 15 on MNIST: masks with KL after epoch 1, without after epoch 23"
    title = caption.title(title, dataset=view.dataset(CONVERGENCE))
    shape = chosen(view, CONVERGENCE).query("mechanism == 'shape' and kl in ('paper', 'none')")
    return masks_by_epoch(view, CONVERGENCE, title, shape, "kl", ("paper", "none"), {"label": range(style.COLUMNS)})


def masks_by_epoch(
    view: View,
    experiment: str,
    title: str,
    shown: pd.DataFrame,
    tag: str,
    arms: tuple[str, str],
    header: Mapping[str, Sequence[object]],
) -> Figure:
    """Draw masks with KL after epoch 1 of 30 and without it after epoch 23, and the two the other way round (Fig. 15).

    Args:
        view: of the runs.
        experiment: theirs.
        title: of the figure.
        shown: students of both arms; those of the lowest seeds are drawn.
        tag: the column that tells the arms apart.
        arms: its values with and without KL.
        header: lines above the columns.
    """
    if not set(arms) <= set(shown[tag]):
        return style.gap(title, view.command(experiment, mechanism=Mechanism.SHAPE))
    drawn = shown.drop_duplicates(tag).set_index(tag, drop=False).loc[list(arms)]
    rows = {}
    for epoch in (1, 23):
        for (_, run), name in zip(drawn.iterrows(), ("KL", "no KL"), strict=True):
            teacher, student = view.held_out(run, epoch)
            rows |= {"teacher": teacher, f"{name}, ep. {epoch}": student}
    iou = " and ".join(f"{value:.3f}" for value in drawn["final/iou"])
    below = (
        "The paper shows the first and the last of the students' rows (of ImageNet masks); the two between show the "
        "other objective after the same epoch, a 30th of the training. Same noise and labels, never seen in training. "
        f"Final mask IoU with and without KL: {iou}. {caption.provenance(drawn)}"
    )
    return style.cite(style.sheet([Block(rows, header)], caption.title(title, drawn), below), drawn["run_id"])
