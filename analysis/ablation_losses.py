"""Appendix D from the run store: Figures 12 to 16, curves, tables and verdicts of the ablations."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from analysis.frame import style, view
from analysis.frame.style import Block, write_interval
from analysis.frame.table import Listing
from skdcgn.measure import statistics
from skdcgn.measure.statistics import mean_interval
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store
from skdcgn.tinygan.variants import APPENDIX_D, KL_TERMS


def ablation_verdicts(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Listing:
    """Return the paired differences of Appendix D's objectives, of KL and of the noise pairing, with their verdicts."""
    found = verdicts(store, dataset, profile)
    interval = ["mean", "low", "high", "n"]
    rows = (statistics.Interval(*row) for row in found[interval].itertuples(index=False))
    texts = [write_interval(row, "+.3g") if row.n else "" for row in rows]
    found.insert(found.columns.get_loc("mean"), "over seeds", texts)
    title = f"Differences between objectives, paired by seed, {view.dataset_title(dataset)}"
    note = "Over seeds: the mean of the differences, its 95 % Student-t interval, and n."
    return Listing(title, found, (note,), hidden=tuple(interval))


def ablation_means(store: Store, experiment: str, dataset: str | None = None, profile: str | None = None) -> Listing:
    """Return the final metrics of an ablation: a row for each mechanism and arm."""
    dataset = dataset or view.main_dataset(store, experiment)
    title = f"Final held-out metrics of {experiment}, {view.dataset_title(dataset)}"
    shown = means(store, experiment, dataset, profile).reset_index()
    return Listing(title, shown, ("Mean over seeds, its 95 % Student-t interval, and n.",))


ABLATION = "ablation_losses"
CONVERGENCE = "kl_convergence"
PAIRING = "noise_pairing"

ARMS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    ABLATION: ("variant", {name: preset.title for name, preset in APPENDIX_D.items()}),
    CONVERGENCE: ("kl", {name: preset.title for name, preset in KL_TERMS.items()}),
    PAIRING: ("pairing", {"exact": "exact noise", "published": "published pairing"}),
}
"""Experiment to the tag that tells what it compares, and the tag's values with their titles, the plain one first."""

METRICS = {
    "iou": "mask IoU ↑",
    "l1": "L1 ↓",
    "ssim": "SSIM ↑",
    "frechet": "Fréchet ↓",
    "noise_energy": "noise energy",
    "steps_to_target": "steps to target ↓",
    "noise_response": "noise response ↑",
    "seen_l1": "L1 on seen noise ↓",
    "seen_iou": "mask IoU on seen noise ↑",
}
"""Metrics of the tables, `final/` left out."""

_RISING = ("iou", "ssim", "noise_response", "seen_iou")  # more is better
_EPOCHS = 30  # of the paper's trainings, by which its figures count
_COLUMNS = 10  # images in a row: one for each digit


def chosen(store: Store, experiment: str, dataset: str = "double_colored", profile: str | None = None) -> pd.DataFrame:
    """Choose the runs that are compared: for each mechanism and arm the newest finished one of each seed.

    All runs of a mechanism agree in architecture, training and teacher, so that only the arm differs.

    Args:
        store: the run store.
        experiment: a key of `ARMS`.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    finished = view.finished_runs(store, experiment)
    tag, titles = ARMS[experiment]
    if tag not in finished:
        return finished.iloc[:0].assign(**{tag: None})
    finished = view.widest(finished[finished["dataset"] == dataset], profile)
    settings = [c for c in finished if re.match(r"param/(student|distill|heldout|evaluations)", c)]
    settings = [c for c in settings if c != "param/distill.published_code"] + ["teacher_sha256"]
    parts = []
    for mechanism in Mechanism:
        of_mechanism = finished[finished["mechanism"] == mechanism]
        if of_mechanism.empty:
            continue
        newest = view.latest(of_mechanism, dataset, mechanism, profile)[settings].iloc[0]
        same = of_mechanism[(of_mechanism[settings].eq(newest) | of_mechanism[settings].isna()).all(axis=1)]
        parts += [view.latest(same[same[tag] == arm], dataset, mechanism, profile) for arm in titles]
    return pd.concat(parts, ignore_index=True) if parts else finished


# --- figures


def figure_over_training(
    store: Store, number: int, variant: str, dataset: str = "double_colored", profile: str | None = None
) -> Figure:
    """Draw Fig. 12, 13 or 16: masks of the teacher over those of a variant's student, after epochs 2, 10 and 30 of 30.

    The captions of the paper name three mechanisms, its text the mask alone, which is what its pictures show.

    Args:
        store: the run store.
        number: of the paper's figure.
        variant: a key of `skdcgn.variants.APPENDIX_D`.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Fig. {number}: mask students, {APPENDIX_D[variant].title}, over training, {view.dataset_title(dataset)}"
    of_mechanism = chosen(store, ABLATION, dataset, profile).query("mechanism == 'shape' and variant == @variant")
    if of_mechanism.empty:
        return style.gap(title, _command(ABLATION, dataset, profile))
    run = of_mechanism.iloc[0]
    blocks = []
    for letter, epoch in zip("abc", (2, 10, 30), strict=True):
        teacher, student = _images(store, run, Mechanism.SHAPE, epoch)
        rows = {f"({letter}) teacher": teacher, f"epoch {epoch}": student}
        blocks.append(Block(rows, {} if blocks else {"label": range(_COLUMNS)}))
    caption = (
        f"Same noise and label in both rows, never seen in training; epochs are 30ths of the training. "
        f"{_measured(run)} {_provenance(of_mechanism.iloc[:1])}"
    )
    return style.cite(style.sheet(blocks, _titled(title, run), caption), [run["run_id"]])


def figure_14(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw Fig. 14: the students of D.2 at the end of training: texture, background and mask, each under its teacher.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    variant = "d2_kl_outputs"
    title = f"Fig. 14: students of {APPENDIX_D[variant].title}, epoch 30 of 30, {view.dataset_title(dataset)}"
    of_variant = chosen(store, ABLATION, dataset, profile).query("variant == @variant")
    order = {Mechanism.TEXTURE: "a", Mechanism.BACKGROUND: "b", Mechanism.SHAPE: "c"}
    if set(of_variant["mechanism"]) != set(order):
        return style.gap(title, _command(ABLATION, dataset, profile))
    first = of_variant.groupby("mechanism").first()
    blocks = []
    for mechanism, letter in order.items():
        teacher, student = _images(store, first.loc[mechanism.value], mechanism, 30)
        rows = {f"({letter}) teacher": teacher, mechanism.value: student}
        blocks.append(Block(rows, {} if blocks else {"label": range(_COLUMNS)}))
    shown = of_variant.drop_duplicates("mechanism")
    caption = f"Same noise and label in both rows, never seen in training. {_provenance(shown)}"
    return style.cite(style.sheet(blocks, _titled(title, shown.iloc[0]), caption), shown["run_id"])


def curves(
    store: Store,
    experiment: str,
    mechanism: Mechanism,
    dataset: str = "double_colored",
    profile: str | None = None,
    metrics: Sequence[str] = ("iou", "l1", "ssim", "frechet", "noise_energy"),
) -> Figure:
    """Draw held-out metrics of one mechanism by step: a line for each arm, the mean over seeds, with their range.

    Args:
        store: the run store.
        experiment: a key of `ARMS`.
        mechanism: whose students.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
        metrics: which ones, `heldout/` left out; those that were not measured are not drawn.
    """
    tag, titles = ARMS[experiment]
    name = {ABLATION: "Appendix D", CONVERGENCE: "With and without KL", PAIRING: "Noise pairing"}[experiment]
    title = f"{name}, held-out fidelity by step: {mechanism} students, {view.dataset_title(dataset)}"
    shown = chosen(store, experiment, dataset, profile).query("mechanism == @mechanism.value")
    if shown.empty:
        return style.gap(title, _command(experiment, dataset, profile))
    history = pd.concat(
        view.metric_history(store, run["run_id"], ["heldout/"]).assign(arm=run[tag], seed=run["seed"])
        for _, run in shown.iterrows()
    )
    present = [metric for metric in metrics if (history["key"] == f"heldout/{metric}").any()]
    caption = (
        "Lines: means over seeds. Bands: from the lowest to the highest seed. Noise energy: that of high frequencies, "
        f"over the teacher's. {_provenance(shown)}"
    )
    figure, panels = style.plots(len(present), _titled(title, shown.iloc[0]), caption, right=2.35)
    with style.style():
        for axes, metric in zip(panels, present, strict=True):
            values = history[history["key"] == f"heldout/{metric}"]
            for color, arm in zip(style.PALETTE, titles, strict=False):
                by_step = values[values["arm"] == arm].groupby("step")["value"]
                if len(by_step):
                    mean = by_step.mean()
                    axes.plot(mean.index, mean, color=color, marker="o", markersize=2.5, label=titles[arm])
                    axes.fill_between(mean.index, by_step.min(), by_step.max(), color=color, alpha=0.15, linewidth=0)
            axes.set_title(METRICS[metric], fontsize=9)
            axes.set(xlabel="step", xlim=(0, None))
            if metric in ("frechet", "noise_energy"):
                axes.set_yscale("log")
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return style.cite(figure, shown["run_id"])


def _images(store: Store, run: pd.Series, mechanism: Mechanism, epoch: int) -> tuple[Tensor, Tensor]:
    """Return teacher's and student's held-out images (10, 3, H, W), as logged nearest to an epoch of 30."""
    logged = {}
    for file in store.client.list_artifacts(run["run_id"], "images"):
        found = re.match(rf"images/{mechanism}~teacher over student\+step\+(\d+)\+.*\.png$", file.path)
        if found:
            logged[int(found[1])] = file.path
    wanted = view.steps(run) * epoch / _EPOCHS
    step = min(logged, key=lambda logged_step: (abs(logged_step - wanted), logged_step))
    with store.artifact(run["run_id"], logged[step]) as path, Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))[::2, ::2]  # logged at twice the size
    # Rows of five images, the teacher's and the student's in turn, 2 pixels around each image.
    cell = (pixels.shape[1] - 2) // 5
    images = pixels[2:, 2:].unfold(0, cell, cell).unfold(1, cell, cell)[..., :-2, :-2]  # (rows, 5, 3, H, W)
    images = images.float() / 127.5 - 1
    teacher, student = images[0::2].flatten(0, 1), images[1::2].flatten(0, 1)
    return teacher, student


# --- tables and verdicts


def means(store: Store, experiment: str, dataset: str = "double_colored", profile: str | None = None) -> pd.DataFrame:
    """Return a table as people read it: mean, 95 % Student-t interval and n for each mechanism, arm and final metric.

    Args:
        store: the run store.
        experiment: a key of `ARMS`.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    tag, titles = ARMS[experiment]
    shown = chosen(store, experiment, dataset, profile)
    present = [metric for metric in METRICS if f"final/{metric}" in shown]
    rows = []
    for mechanism in Mechanism:
        for arm, title in titles.items():
            group = shown[(shown["mechanism"] == mechanism) & (shown[tag] == arm)]
            if len(group):
                values = {metric: group[f"final/{metric}"].dropna().tolist() for metric in present}
                cells = {METRICS[metric]: style.interval_text(each) if each else "" for metric, each in values.items()}
                rows.append({"mechanism": mechanism.value, tag: title, **cells})
    return pd.DataFrame(rows, columns=["mechanism", tag, *map(METRICS.get, present)]).set_index(["mechanism", tag])


class Question(NamedTuple):
    """What the paper claims, as a difference between two arms of an experiment."""

    text: str
    experiment: str
    arm: str
    baseline: str
    metrics: Mapping[Mechanism, str]
    """The metric that decides, for each mechanism."""


_FIDELITY = {Mechanism.SHAPE: "iou", Mechanism.TEXTURE: "l1", Mechanism.BACKGROUND: "l1"}
_NOISE = dict.fromkeys(Mechanism, "noise_energy")
_SPEED = dict.fromkeys(Mechanism, "steps_to_target")
_RESPONSE = dict.fromkeys(Mechanism, "noise_response")

QUESTIONS = (
    Question("Is D.2 better than the plain loss?", ABLATION, "d2_kl_outputs", "tinygan", _FIDELITY),
    Question("Is D.1 better than the plain loss?", ABLATION, "d1_kl_layers", "tinygan", _FIDELITY),
    Question("Is cross entropy better than the plain loss?", ABLATION, "cross_entropy", "tinygan", _FIDELITY),
    Question("Is MSE (D.3) better than the plain loss?", ABLATION, "d3_mse", "tinygan", _FIDELITY),
    Question("Is MSE (D.3) noisier than the plain loss?", ABLATION, "d3_mse", "tinygan", _NOISE),
    Question("Is D.2 noisier than the plain loss?", ABLATION, "d2_kl_outputs", "tinygan", _NOISE),
    Question("Does the paper's KL speed convergence?", CONVERGENCE, "paper", "none", _SPEED),
    Question("Is the paper's KL better in the end?", CONVERGENCE, "paper", "none", _FIDELITY),
    Question("Would the released module's KL have sped it?", CONVERGENCE, "published_module", "none", _SPEED),
    Question(
        "Would the released module's KL be better in the end?", CONVERGENCE, "published_module", "none", _FIDELITY
    ),
    Question("What did the released code lose against D.2?", ABLATION, "published_code", "d2_kl_outputs", _FIDELITY),
    Question("Does right pairing cure the failure on random noise?", PAIRING, "exact", "published", _RESPONSE),
    Question("... and in fidelity?", PAIRING, "exact", "published", _FIDELITY),
)
"""What `verdicts` answers."""


def difference(shown: pd.DataFrame, tag: str, arm: str, baseline: str, metric: str) -> list[float]:
    """Return `arm - baseline` of a final metric for each seed that has both, in the order of the seeds."""
    if f"final/{metric}" not in shown:
        return []
    wide = shown.pivot(index="seed", columns=tag, values=f"final/{metric}").reindex(columns=[arm, baseline])
    return (wide[arm] - wide[baseline]).dropna().tolist()


def verdicts(store: Store, dataset: str = "double_colored", profile: str | None = None) -> pd.DataFrame:
    """Answer the paper's claims: paired differences over seeds, with their 95 % interval, and what they mean.

    A difference is called one only where its interval leaves out 0.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    selected = {experiment: chosen(store, experiment, dataset, profile) for experiment in ARMS}
    rows = []
    for question in QUESTIONS:
        tag, titles = ARMS[question.experiment]
        for mechanism, metric in question.metrics.items():
            shown = selected[question.experiment].query("mechanism == @mechanism.value")
            values = difference(shown, tag, question.arm, question.baseline, metric)
            row = {
                "question": question.text,
                "mechanism": mechanism.value,
                "difference": f"{titles[question.arm]} − {titles[question.baseline]}",
                "metric": metric,
            }
            if values:
                interval = mean_interval(values)
                row |= interval._asdict() | {"verdict": _verdict(metric, interval.low, interval.high)}
            else:
                row |= {"n": 0, "verdict": f"no pair of runs: {_command(question.experiment, dataset, profile)}"}
            rows.append(row)
    columns = ["question", "mechanism", "difference", "metric", "mean", "low", "high", "n", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _verdict(metric: str, low: float, high: float) -> str:
    """Put the interval of a difference into words."""
    if not (low > 0 or high < 0):
        return "one seed only" if np.isnan(low) else "no clear difference"
    more = bool(low > 0)
    if metric == "noise_energy":
        return "noisier" if more else "less noisy"
    if metric == "steps_to_target":
        return "slower" if more else "faster"
    return "better" if more == (metric in _RISING) else "worse"


def _command(experiment: str, dataset: str, profile: str | None) -> str:
    return view.command(experiment, dataset, None, profile)


def _titled(title: str, run: pd.Series) -> str:
    note = view.stand_in_note(run)
    return f"{title} ({note})" if note else title


def _measured(run: pd.Series) -> str:
    """The final held-out metrics of the run on show."""
    names = {"final/iou": "mask IoU", "final/l1": "L1", "final/noise_energy": "noise energy"}
    values = [f"{name} {run[key]:.3f}" for key, name in names.items() if pd.notna(run.get(key))]
    return f"On the whole held-out set, at the end: {', '.join(values)}." if values else ""


def _provenance(shown: pd.DataFrame) -> str:
    """Where a figure comes from: number of runs, profile, length of training, seeds, teacher."""
    first, count = shown.iloc[0], len(shown)
    steps = sorted({view.steps(run) for _, run in shown.iterrows()})
    seeds = sorted(shown["seed"].unique())
    name = f"Run {first['run_id'][:8]}" if count == 1 else f"{count} runs"
    parts = [name, f"profile {first['profile']}", f"{' and '.join(f'{step:,}' for step in steps)} steps"]
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    return f"{', '.join(parts)}; teacher: {first['teacher']}{' (stand-in)' if first['stand_in'] else ''}."
