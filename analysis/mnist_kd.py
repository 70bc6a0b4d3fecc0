"""The paper's MNIST figures, drawn from the run store."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from analysis.frame import style, view
from analysis.frame.style import Block, interval_text
from analysis.frame.table import Table
from skdcgn.images import fit_resolution
from skdcgn.measure import cost, statistics
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store
from skdcgn.tinygan.networks import PUBLISHED_MNIST, TinyGANGenerator


class _Quantity(NamedTuple):
    """A row of the compression table."""

    title: str
    key: str
    teacher_key: str | None
    """Metric of the teacher's value; None where the teacher is what the student is measured against."""
    form: str
    """How a value is written."""
    scale: float = 1.0
    """Factor on a value before it is written."""


_QUANTITIES = (
    _Quantity("parameters", "final/parameters", "final/teacher_parameters", ",.0f"),
    _Quantity("MACs of one image (millions)", "final/macs", "final/teacher_macs", ".2f", 1e-6),
    _Quantity("latency, batch of 1 (ms)", "cost/latency_ms_batch_1", "cost/teacher_latency_ms_batch_1", ".2f"),
    _Quantity("latency, batch of 64 (ms)", "cost/latency_ms_batch_64", "cost/teacher_latency_ms_batch_64", ".1f"),
    _Quantity("mask IoU ↑", "final/iou", None, ".3f"),
    _Quantity("L1 ↓", "final/l1", None, ".3f"),
    _Quantity("SSIM ↑", "final/ssim", None, ".3f"),
    _Quantity("Fréchet distance ↓", "final/frechet", None, ".2f"),
)

_READING = (
    "Measured values are means over seeds with their 95 % Student-t interval and n, the number of seeds. Fidelity is "
    "that to the teacher on held-out noise; L1 is taken in the image range [-1, 1]. The teacher's latency was measured "
    "in the runs of our students. Parameters and MACs of the paper's student are those of its published architecture. "
    "Fréchet distances are taken on features of this project's own digit classifier: comparable with each other only."
)


def compression(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Compare size, speed and fidelity of the teacher's mechanisms, the paper's students and ours.

    Fidelity is measured against the teacher on held-out noise. A student of the paper is one of the published
    architecture trained with the profile `paper`; its size is known without a run.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of our students; by default the widest one that has runs, `paper` aside.
    """
    finished = view.finished_runs(store, view.MNIST_KD)
    cells, notes, stand_ins = [], [], []
    for mechanism in Mechanism:
        theirs = view.latest(finished, dataset, mechanism, "paper")
        if not theirs.empty:  # runs of one setting, so of one size: any other one is no student of the paper's
            theirs = theirs[theirs["final/parameters"] == published_size()["final/parameters"]]
        ours = view.latest(
            finished if profile else finished[finished["profile"] != "paper"], dataset, mechanism, profile
        )
        chosen = {"teacher": theirs if ours.empty else ours, "paper's student": theirs, "ours": ours}
        own_command = view.command("mnist_kd", dataset, mechanism, profile)
        published_command = view.command("mnist_kd", dataset, mechanism, "paper")
        commands = {"teacher": own_command, "paper's student": published_command, "ours": own_command}
        for quantity in _QUANTITIES:
            if quantity.key == "final/iou" and mechanism is not Mechanism.SHAPE:
                continue
            for model in chosen:
                cell = _cell(quantity, model, chosen[model], commands[model])
                place = {
                    "mechanism": mechanism.value,
                    "metric": quantity.key,
                    "quantity": quantity.title,
                    "model": model,
                }
                cells.append(place | cell)
        for model in ("ours", "paper's student"):
            if not chosen[model].empty:
                notes.append(_origin(mechanism, model, chosen[model]))
                stand_ins.append(view.stand_in_note(chosen[model].iloc[0]))
    table = pd.DataFrame(cells)
    _compare_sizes(table)
    remarks = [note for note in dict.fromkeys(stand_ins) if note]
    title = f"Compression of the CGN's mechanisms, {view.dataset_title(dataset)}"
    title += f" ({'; '.join(remarks)})" if remarks else ""
    return Table(title, table, (_READING, *notes))


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


def _cell(quantity: _Quantity, model: str, chosen: pd.DataFrame, command: str) -> dict[str, object]:
    """Fill one cell from the runs chosen for it, or say what is missing."""
    key = quantity.teacher_key if model == "teacher" else quantity.key
    empty = {"mean": None, "low": None, "high": None, "n": 0, "command": ""}
    if key is None:
        return empty | {"text": "reference"}
    if model == "paper's student" and key in published_size():
        size = published_size()[key]
        return empty | {"mean": float(size), "text": format(size * quantity.scale, quantity.form)}
    if chosen.empty:
        return empty | {"text": "no finished run", "command": command}
    values = chosen[key].dropna().tolist() if key in chosen else []
    if not values:
        return empty | {"text": "not measured"}
    if quantity.key in published_size():  # counted, not measured
        text = format(values[0] * quantity.scale, quantity.form)
    else:
        text = interval_text(values, quantity.form, quantity.scale)
    return statistics.mean_interval(values)._asdict() | {"text": text, "command": ""}


def _compare_sizes(cells: pd.DataFrame) -> None:
    """Add to parameters and MACs of the students how they stand to the teacher's."""
    for _, rows in cells[cells["metric"].isin(published_size())].groupby(["mechanism", "metric"]):
        teacher = rows.loc[rows["model"] == "teacher", "mean"].item()
        if pd.isna(teacher):
            continue
        for index, row in rows[(rows["model"] != "teacher") & rows["mean"].notna()].iterrows():
            larger = row["mean"] > teacher
            ratio = row["mean"] / teacher if larger else teacher / row["mean"]
            cells.loc[index, "text"] += f" ({ratio:.1f}× {'larger' if larger else 'smaller'})"


def _origin(mechanism: Mechanism, model: str, chosen: pd.DataFrame) -> str:
    """Where the numbers of a mechanism and model come from."""
    first = chosen.iloc[0]
    seeds = f"seed{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen['seed']))}"
    run_ids = ", ".join(chosen["run_id"].str[:8])
    hardware = " and ".join(dict.fromkeys(chosen["hardware"]))
    return (
        f"{mechanism.capitalize()}, {model}: profile {first['profile']}, {view.steps(first):,} steps, {seeds} "
        f"(runs {run_ids}); teacher: {first['teacher']}; on {hardware}."
    )


_COLUMNS = 10  # images in a row of a sheet: one for each digit
_LETTERS = dict(zip(Mechanism, "abc", strict=True))


def figure_7(store: Store, dataset: str = "double_colored", profile: str | None = None) -> dict[Mechanism, Figure]:
    """Draw Fig. 7 a-c: each mechanism of the teacher over its student, on the same noise, which no training saw.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.

    Returns:
        A figure for each mechanism. Where there is no run, it shows the command that makes one.
    """
    finished = view.finished_runs(store, view.MNIST_KD)
    figures = {}
    for mechanism in Mechanism:
        name = view.dataset_title(dataset)
        title = f"Fig. 7{_LETTERS[mechanism]}: {mechanism} mechanism, CGN teacher over SKDCGN student, {name}"
        chosen = view.latest(finished, dataset, mechanism, profile)
        if chosen.empty:
            figures[mechanism] = style.gap(title, view.command("mnist_kd", dataset, mechanism, profile))
            continue
        run = chosen.iloc[0]  # the lowest seed, not the best one
        samples = store.load_tensors(run["run_id"], "samples")
        rows = {name: mechanism.to_image(samples[name], 3) for name in ("teacher", "student")}
        blocks = _blocks(rows, {"label": samples["labels"]})
        caption = (
            f"Same noise and label in both rows, never seen in training. {_measured(run)} "
            f"{_provenance(chosen.iloc[:1])}"
        )
        figures[mechanism] = style.cite(style.sheet(blocks, _titled(title, run), caption), [run["run_id"]])
    return figures


def figure_11(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw Fig. 11: the teacher's own outputs, large enough to see the noise that the paper blames on it.

    The caption gives that noise numbers: the share of mask pixels that are neither on nor off, and how many masks
    are torn.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Fig. 11: noise in the CGN teacher's own outputs, {view.dataset_title(dataset)}"
    shown, tensors = _counterfactuals(store, dataset, profile)
    if shown.empty:
        return style.gap(title, view.command("mnist_kd", dataset, None, profile))
    masks = tensors["mask_teacher"]
    rows = {"mask": Mechanism.SHAPE.to_image(masks, 3), "composed": tensors["teacher"]}
    grey = ((masks > 0.1) & (masks < 0.9)).float().mean().item()
    torn = sum(ndimage.label(mask, np.ones((3, 3)))[1] > 1 for mask in (masks[:, 0] > 0.5).numpy())
    caption = (
        f"Above masks, below the counterfactuals composed with them (Eq. 1). {100 * grey:.1f} % of the mask pixels lie "
        f"between 0.1 and 0.9, neither digit nor background; {torn} of {len(masks)} masks fall into several pieces. "
        f"A digit vanishes where texture and background have one colour. {_provenance(shown)}"
    )
    blocks = _blocks(rows, {"shape": tensors["labels_shape"]}, columns=_COLUMNS // 2)[:2]
    return style.cite(style.sheet(blocks, _titled(title, shown.iloc[0]), caption), shown["run_id"])


def figure_6_mnist(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw the MNIST counterpart of Fig. 6: counterfactuals of SKDCGN over those of the CGN, on the same noise.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Fig. 6 on MNIST: counterfactuals, SKDCGN over CGN, {view.dataset_title(dataset)}"
    shown, tensors = _counterfactuals(store, dataset, profile)
    if shown.empty:
        return style.gap(title, view.command("mnist_kd", dataset, None, profile))
    students = fit_resolution(tensors["student"], tensors["teacher"].shape[-1])
    rows = {"SKDCGN": students, "CGN": tensors["teacher"]}
    header = {mechanism.value: tensors[f"labels_{mechanism}"] for mechanism in Mechanism}
    caption = f"Same noise and labels in both rows; above, the label of each mechanism. {_provenance(shown)}"
    return style.cite(style.sheet(_blocks(rows, header), _titled(title, shown.iloc[0]), caption), shown["run_id"])


def learning_curves(
    store: Store, dataset: str = "double_colored", profile: str | None = None
) -> dict[Mechanism, Figure]:
    """Draw how each student learnt: held-out IoU (shape) and L1 by step, and its loss terms.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.

    Returns:
        A figure for each mechanism. Where there is no run, it shows the command that makes one.
    """
    finished = view.finished_runs(store, view.MNIST_KD)
    figures = {}
    for mechanism in Mechanism:
        title = f"Learning curves: {mechanism} student, {view.dataset_title(dataset)}"
        chosen = view.latest(finished, dataset, mechanism, profile)
        if chosen.empty:
            figures[mechanism] = style.gap(title, view.command("mnist_kd", dataset, mechanism, profile))
            continue
        metrics = {"heldout/iou": "held-out mask IoU ↑"} if mechanism is Mechanism.SHAPE else {}
        metrics["heldout/l1"] = "held-out L1 ↓"
        history = pd.concat(
            view.metric_history(store, run["run_id"], [*metrics, "loss/"]).assign(seed=run["seed"])
            for _, run in chosen.iterrows()
        )
        caption = (
            "Held out: a thin line for each seed, a thick one for their mean. Losses: weighted terms, seed mean. "
            f"{_provenance(chosen)}"
        )
        figure, panels = style.plots(len(metrics) + 1, _titled(title, chosen.iloc[0]), caption, right=1.35)
        with style.style():
            for axes, (key, label) in zip(panels, metrics.items(), strict=False):
                _draw_heldout(axes, history[history["key"] == key], label)
            _draw_losses(panels[-1], history[history["key"].str.startswith("loss/")])
        figures[mechanism] = style.cite(figure, chosen["run_id"])
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


def _blocks(rows: dict[str, Tensor], header: dict[str, Tensor], columns: int = _COLUMNS) -> list[Block]:
    """Break rows of images, and the entries above them, into blocks of `columns`."""
    count = len(next(iter(rows.values())))
    return [
        Block(
            {name: images[start : start + columns] for name, images in rows.items()},
            {name: entries[start : start + columns].tolist() for name, entries in header.items()},
        )
        for start in range(0, count, columns)
    ]


def _counterfactuals(store: Store, dataset: str, profile: str | None) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Return the newest run of the widest profile that kept counterfactuals (one row or none), and these."""
    groups = view.finished_groups(store, view.MNIST_KD)
    groups = groups[groups["dataset"] == dataset]
    kept = [
        any(file.path == "counterfactuals.safetensors" for file in store.client.list_artifacts(run_id))
        for run_id in groups["run_id"]
    ]
    groups = view.widest(groups[pd.Series(kept, index=groups.index, dtype=bool)], profile)
    newest = groups.sort_values("start_time", ascending=False, kind="stable").iloc[:1]
    return newest, {} if newest.empty else store.load_tensors(newest["run_id"].item(), "counterfactuals")


def _titled(title: str, run: pd.Series) -> str:
    note = view.stand_in_note(run)
    return f"{title} ({note})" if note else title


def _measured(run: pd.Series) -> str:
    """The held-out metrics of the run on show."""
    names = {"final/iou": "mask IoU", "final/l1": "L1", "final/ssim": "SSIM"}
    values = [f"{name} {run[key]:.3f}" for key, name in names.items() if pd.notna(run.get(key))]
    return f"On the whole held-out set: {', '.join(values)}." if values else ""


def _provenance(shown: pd.DataFrame) -> str:
    """Where a figure comes from: runs, profile, length of training, seeds, teacher."""
    first = shown.iloc[0]
    several = "s" if len(shown) > 1 else ""
    parts = [f"Run{several} {', '.join(shown['run_id'].str[:8])}", f"profile {first['profile']}"]
    if pd.notna(first["mechanism"]):
        parts += [f"{view.steps(first):,} steps", f"seed{several} {', '.join(map(str, shown['seed']))}"]
    stand_in = " (stand-in)" if first["stand_in"] else ""
    return f"{', '.join(parts)}; teacher: {first['teacher']}{stand_in}."
