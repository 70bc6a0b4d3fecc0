"""Tables from the run store: as a DataFrame, as CSV and as LaTeX."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import ablation_losses as ablation_losses_figures
from analysis.ablation_losses import _COLUMNS, CONVERGENCE, _command, _images, _provenance, _titled, chosen
from analysis.frame import style, view
from analysis.frame.style import Block, interval_text
from analysis.frame.table import Table
from skdcgn.measure import statistics
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store

_GAIN = "KL of the paper − no KL"


def convergence(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Compare how fast students learn, and how far they come, with and without KL (Appendix D.2, Fig. 15).

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    tag, titles = ablation_losses_figures.ARMS[ablation_losses_figures.CONVERGENCE]
    chosen = ablation_losses_figures.chosen(store, ablation_losses_figures.CONVERGENCE, dataset, profile)
    arms = {title: arm for arm, title in titles.items()}
    cells = []
    for mechanism in Mechanism:
        shown = chosen[chosen["mechanism"] == mechanism]
        for metric in ("steps_to_target", "iou" if mechanism is Mechanism.SHAPE else "l1"):
            for title in (*arms, _GAIN):
                if title == _GAIN:
                    values = ablation_losses_figures.difference(shown, tag, "paper", "none", metric)
                else:
                    values = shown[shown[tag] == arms[title]].get(f"final/{metric}", pd.Series()).dropna().tolist()
                missing = shown.empty if title == _GAIN else not (shown[tag] == arms[title]).any()
                command = (
                    view.command(ablation_losses_figures.CONVERGENCE, dataset, mechanism, profile) if missing else ""
                )
                text = interval_text(values) if values else "no finished run" if missing else "never reached"
                interval = statistics.mean_interval(values)._asdict() if values else {"n": 0}
                place = {
                    "mechanism": mechanism.value,
                    "quantity": ablation_losses_figures.METRICS[metric],
                    "model": title,
                }
                cells.append(place | interval | {"command": command, "text": text})
    table = pd.DataFrame(cells)
    title = f"Convergence with and without KL, {view.dataset_title(dataset)}"
    notes = ["Means over seeds with their 95 % Student-t interval and n. The last column is paired by seed."]
    if not chosen.empty:
        first = chosen.iloc[0]
        notes.append(
            f"The target is a mask IoU of {first['param/target_iou']}, an L1 of {first['param/target_l1']}, on "
            f"held-out noise. Profile {first['profile']}, {view.steps(first):,} steps; teacher: {first['teacher']}."
        )
        remark = view.stand_in_note(first)
        title += f" ({remark})" if remark else ""
    return Table(title, table, tuple(notes))


def figure_15_mnist(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw the MNIST counterpart of Fig. 15: masks with KL after epoch 1 of 30, and without it after epoch 23.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Fig. 15 on MNIST: masks with KL after epoch 1, without after epoch 23, {view.dataset_title(dataset)}"
    shape = chosen(store, CONVERGENCE, dataset, profile).query("mechanism == 'shape'")
    if not {"none", "paper"} <= set(shape["kl"]):
        return style.gap(title, _command(CONVERGENCE, dataset, profile))
    by_kl = shape.drop_duplicates("kl").set_index("kl")
    rows = {}
    for kl, epoch in (("paper", 1), ("none", 1), ("paper", 23), ("none", 23)):
        teacher, student = _images(store, by_kl.loc[kl], Mechanism.SHAPE, epoch)
        rows |= {"teacher": teacher, f"{'KL' if kl == 'paper' else 'no KL'}, ep. {epoch}": student}
    shown = shape[shape["kl"].isin(["none", "paper"])].drop_duplicates("kl")
    caption = (
        "The paper shows the first and the last of the students' rows (of ImageNet masks); the two between show the "
        f"other objective after the same epoch, a 30th of the training. Same noise and labels, never seen in training. "
        f"{_provenance(shown)}"
    )
    sheet = style.sheet([Block(rows, {"label": range(_COLUMNS)})], _titled(title, shown.iloc[0]), caption)
    return style.cite(sheet, shown["run_id"])
