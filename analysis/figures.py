"""The paper's MNIST figures, drawn from the run store."""

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from analysis import runs, style
from analysis.style import Block
from skdcgn.mechanisms import Mechanism
from skdcgn.students import fit_resolution
from skdcgn.tracking import Store

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
    finished = runs.finished_runs(store, runs.MNIST_KD)
    figures = {}
    for mechanism in Mechanism:
        name = runs.dataset_title(dataset)
        title = f"Fig. 7{_LETTERS[mechanism]}: {mechanism} mechanism, CGN teacher over SKDCGN student, {name}"
        chosen = runs.latest(finished, dataset, mechanism, profile)
        if chosen.empty:
            figures[mechanism] = style.gap(title, runs.command("mnist_kd", dataset, mechanism, profile))
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
    title = f"Fig. 11: noise in the CGN teacher's own outputs, {runs.dataset_title(dataset)}"
    shown, tensors = _counterfactuals(store, dataset, profile)
    if shown.empty:
        return style.gap(title, runs.command("mnist_kd", dataset, None, profile))
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
    title = f"Fig. 6 on MNIST: counterfactuals, SKDCGN over CGN, {runs.dataset_title(dataset)}"
    shown, tensors = _counterfactuals(store, dataset, profile)
    if shown.empty:
        return style.gap(title, runs.command("mnist_kd", dataset, None, profile))
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
    finished = runs.finished_runs(store, runs.MNIST_KD)
    figures = {}
    for mechanism in Mechanism:
        title = f"Learning curves: {mechanism} student, {runs.dataset_title(dataset)}"
        chosen = runs.latest(finished, dataset, mechanism, profile)
        if chosen.empty:
            figures[mechanism] = style.gap(title, runs.command("mnist_kd", dataset, mechanism, profile))
            continue
        metrics = {"heldout/iou": "held-out mask IoU ↑"} if mechanism is Mechanism.SHAPE else {}
        metrics["heldout/l1"] = "held-out L1 ↓"
        history = pd.concat(
            runs.metric_history(store, run["run_id"], [*metrics, "loss/"]).assign(seed=run["seed"])
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
    groups = runs.finished_groups(store, runs.MNIST_KD)
    groups = groups[groups["dataset"] == dataset]
    kept = [
        any(file.path == "counterfactuals.safetensors" for file in store.client.list_artifacts(run_id))
        for run_id in groups["run_id"]
    ]
    groups = runs.widest(groups[pd.Series(kept, index=groups.index, dtype=bool)], profile)
    newest = groups.sort_values("start_time", ascending=False, kind="stable").iloc[:1]
    return newest, {} if newest.empty else store.load_tensors(newest["run_id"].item(), "counterfactuals")


def _titled(title: str, run: pd.Series) -> str:
    note = runs.stand_in_note(run)
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
        parts += [f"{runs.steps(first):,} steps", f"seed{several} {', '.join(map(str, shown['seed']))}"]
    stand_in = " (stand-in)" if first["stand_in"] else ""
    return f"{', '.join(parts)}; teacher: {first['teacher']}{stand_in}."
