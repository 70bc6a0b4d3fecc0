"""What the searches `sweep_lambdas` and `sweep_kl` share: their studies, history, importance, fresh seeds, in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.frame import caption, style
from analysis.frame.judge import Words, judge, say
from analysis.frame.table import Listing
from analysis.frame.view import View
from skdcgn.runs.search import studies
from skdcgn.runs.search.studies import StudyRecord
from skdcgn.runs.store import Store

LABELS = {"iou": "held-out mask IoU ↑", "l1": "held-out L1 ↓", "parameters": "student's parameters ↓"}
NAMES = {
    "loss.lambda_1": "λ1 (pixel)",
    "loss.lambda_2": "λ2 (adversarial)",
    "loss.lambda_1_decay": "decay of λ1",
    "loss.n_critic": "n_critic",
    "loss.kl": "λ_KL",
    "loss.kl_on": "KL on",
    "loss.kl_direction": "direction",
    "loss.temperature": "temperature",
    "student.width": "student's width",
}
ENOUGH = 6  # completed trials below which a fit would be fiction
_SPAN = 0.15  # of the values' range, kept around them
_RESAMPLES = 30  # of the trials, for the importances
_WORDS = Words("better than", "worse than", "not told apart from", "not told apart by one seed from")


@dataclass(frozen=True)
class Found:
    """A study of the store, and what came of it."""

    store: Store
    experiment: str
    study: StudyRecord
    confirmed: pd.DataFrame | None
    """Settings on fresh seeds: columns setting, seed, run_id and the metric; None until the study has finished."""

    @property
    def metric(self) -> str:
        """The first objective."""
        return self.study.objectives[0]

    @property
    def direction(self) -> str:
        """Whether to maximize or to minimize it."""
        return self.study.directions[0]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The study's trials, with `response`: the metric that a trial had, or would have had, at its end.

        A trial that was stopped early is given what completed trials gained, in the median, from its last report to
        their ends: its last value itself would only say that it was not trained as long as these.
        """
        trials, reports = self.study.trials, self.study.reports
        completed, response = trials[trials["state"] == "complete"], trials[self.metric].copy()
        for index, number in trials.loc[trials["state"] == "pruned", "number"].items():
            step = max(reports[number])
            response[index] += np.median(
                [row[self.metric] - reports[row["number"]][step] for _, row in completed.iterrows()]
            )
        return trials.assign(response=response)

    @property
    def completed(self) -> pd.DataFrame:
        """The trials that ran to their end."""
        return self.trials[self.trials["state"] == "complete"]

    @property
    def ranked(self) -> pd.DataFrame:
        """The completed trials, the best one first."""
        return self.completed.sort_values(self.metric, ascending=self.direction == "minimize", kind="stable")

    @property
    def fresh(self) -> pd.DataFrame:
        """The confirmation: a row for each fresh seed, a column for each setting."""
        by_seed = self.confirmed.pivot(index="seed", columns="setting", values=self.metric)
        return by_seed[list(self.confirmed["setting"].unique())]

    @property
    def gains(self) -> dict[str, list[float]]:
        """What the best trial gains over each other setting on fresh seeds, paired by seed: above 0 is better."""
        sign = 1 if self.direction == "maximize" else -1
        fresh = self.fresh
        return {name: (sign * (fresh["best"] - fresh[name])).tolist() for name in fresh if name != "best"}

    @property
    def limits(self) -> tuple[float, float]:
        """The values that matter: the first trial's and those of the better nine tenths of the completed ones."""
        values, first = self.completed[self.metric], self.trials[self.metric].iloc[0]
        worst, best = (0.1, 1.0) if self.direction == "maximize" else (0.0, 0.9)
        low, high = min(values.quantile(worst), first), max(values.quantile(best), first)
        margin = max(_SPAN * (high - low), 1e-6)
        return low - margin, high + margin

    def title(self, text: str) -> str:
        """Return a figure's title: what was searched for, and in what way it is less than the paper's experiment."""
        row = self.row
        return caption.title(f"{text}: {row['mechanism']} student", row, dataset=row["dataset"])

    @property
    def row(self) -> pd.Series:
        """The study's tags as those of a run of a view."""
        tags = self.study.tags
        return pd.Series({**tags, "run_id": self.study.run_id, "stand_in": tags["stand_in"] == "true"})

    @property
    def provenance(self) -> str:
        """Where a figure comes from: study, trials, teacher."""
        states = self.trials["state"].value_counts()
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        study = self.study
        return f"Study {study.name} (run {study.run_id[:8]}): {counts}; teacher: {study.tags['teacher']}."


def find(view: View, experiment: str, objectives: int = 1) -> Found | None:
    """Return the newest study of an experiment with a completed trial, of the widest profile; None without one.

    Studies of a profile's own settings are preferred to those that override some.

    Args:
        view: of the runs.
        experiment: the search.
        objectives: how many of them the study has.
    """
    for record in view.records(experiment, kind="study"):
        study = studies.load_study(view.store, experiment, record.name)
        states = study.trials.get("state", pd.Series(dtype=object))
        if len(study.objectives) != objectives or not (states == "complete").any():
            continue
        confirmed = None
        if "confirmation.csv" in view.store.files(record.run_id):
            with view.store.artifact(record.run_id, "confirmation.csv") as path:
                confirmed = pd.read_csv(path)
        return Found(view.store, experiment, study, confirmed)
    return None


class Plot(NamedTuple):
    """A figure of a study."""

    title: str
    """With a place for what is searched, if it is to name that."""
    caption: str
    """What it shows; `found` may be formatted into it."""
    panels: int
    draw: Callable[[Found, Sequence[Axes]], None]
    right: float = 0.2
    """Inches for a legend."""
    lacks: Callable[[Found], str] = lambda found: ""
    """Says what a study lacks to be drawn so; nothing where it lacks nothing."""
    cited: Callable[[Found], Sequence[str]] = lambda found: ()
    """Runs that it is drawn from beside the study's own."""


def figures(view: View, experiment: str, searched: str, response: Plot) -> dict[str, Figure]:
    """Draw a search: its trials in order, its parameters' importance, the response to them, the best on fresh seeds.

    Args:
        view: of the runs.
        experiment: the search.
        searched: what it is called.
        response: the figure of the objective over the parameters.

    Returns:
        Figures by file name. Where there is no study, they show the command that makes one.
    """
    found = find(view, experiment)
    plots = {"history": _HISTORY, "importance": _IMPORTANCE, "response": response, "fresh_seeds": _FRESH_SEEDS}
    titled = {name: plot._replace(title=plot.title.format(searched)) for name, plot in plots.items()}
    return {f"{experiment}_{name}": drawn(view, experiment, plot, found) for name, plot in titled.items()}


def drawn(view: View, experiment: str, plot: Plot, found: Found | None) -> Figure:
    """Draw one figure, or what is missing for it."""
    missing = "No study in the store." if found is None else plot.lacks(found)
    if missing:
        return style.gap(f"{plot.title} ({experiment})", view.command(experiment), missing)
    below = f"{plot.caption.format(found=found)} {found.provenance}"
    figure, panels = style.plots(plot.panels, found.title(plot.title), below, right=plot.right)
    with style.style():
        plot.draw(found, panels)
    return style.cite(figure, [found.study.run_id, *plot.cited(found)])


def _history(found: Found, panels: Sequence[Axes]) -> None:
    """Draw the objective of every trial in order, and the best so far."""
    (axes,) = panels
    draw_trials(axes, found, found.trials, "number", style.PALETTE[0])
    values = found.completed[found.metric]
    best = values.cummax() if found.direction == "maximize" else values.cummin()
    axes.step(found.completed["number"], best, where="post", color=style.PALETTE[1], label="best so far")
    axes.axhline(found.trials[found.metric].iloc[0], color="0.4", linestyle="--", linewidth=1)
    axes.set(xlabel="trial", ylabel=LABELS[found.metric], ylim=found.limits)
    failed = found.trials[~found.trials["state"].isin(["complete", "pruned", "running", "waiting"])]
    axes.plot(failed["number"], [axes.get_ylim()[0]] * len(failed), "x", color=style.PALETTE[3], clip_on=False)
    axes.legend(loc="lower right")


_HISTORY = Plot(
    "Optimization history, {}",
    "Filled: completed; hollow: stopped early, at its last value; cross: failed, or its process died (drawn at the "
    "bottom). Dashed: the first trial, with the paper's values.",
    1,
    _history,
)


def _importance(found: Found, panels: Sequence[Axes]) -> None:
    """Draw how much of the objective's variation each parameter explains, and how sure that is."""
    (axes,) = panels
    values = studies.importances(found.store, found.experiment, found.study.name, _RESAMPLES)
    names = values.groupby("parameter")["share"].mean().sort_values(ascending=False).index
    look = {"width": 0.72, "gap": 0.05, "capsize": 0.07, "saturation": 1, "err_kws": {"linewidth": 1, "color": "black"}}
    colors = dict(zip(values["method"].unique(), style.PALETTE, strict=False))
    seaborn.barplot(
        values,
        x="parameter",
        y="share",
        hue="method",
        order=names,
        palette=colors,
        errorbar=("pi", 95),
        ax=axes,
        **look,
    )
    axes.set_xticks(range(len(names)), [NAMES.get(name, name) for name in names])
    axes.set(xlabel="", ylabel="share of the variation", ylim=(0, 1))
    axes.grid(False, axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


_IMPORTANCE = Plot(
    "Importance of the parameters, {}",
    f"Bars: mean over {_RESAMPLES} bootstrap resamples of the completed trials, each with another seed of the random "
    "forest; lines: their 95 % range. fANOVA explains the variation over the whole space, PED-ANOVA what sets the best "
    "trials apart.",
    1,
    _importance,
    right=1.3,
    lacks=lambda found: (
        f"Only {len(found.completed)} completed trials in the store." if len(found.completed) < ENOUGH else ""
    ),
)


def _fresh_seeds(found: Found, panels: Sequence[Axes]) -> None:
    """Draw the best trial against the reference settings, on seeds that the search has not seen."""
    left, right = panels
    fresh, look = found.fresh, {"fmt": "o", "color": style.PALETTE[0], "capsize": 4, "linewidth": 2}
    for _, row in fresh.iterrows():
        left.plot(range(len(row)), row, color="0.6", linewidth=0.8)
    style.intervals(left, range(fresh.shape[1]), [fresh[name].tolist() for name in fresh], **look)
    left.set_xticks(range(fresh.shape[1]), fresh.columns)
    left.set(title=LABELS[found.metric], xlim=(-0.5, fresh.shape[1] - 0.5))
    style.intervals(right, range(len(found.gains)), list(found.gains.values()), **look)
    right.axhline(0, color="0.4", linewidth=1)
    right.set_xticks(range(len(found.gains)), [f"over {name}" for name in found.gains])
    right.set(title="gain of the best trial (above 0: better)", xlim=(-0.5, len(found.gains) - 0.5))


_FRESH_SEEDS = Plot(
    "The best trial on fresh seeds, {}",
    "Left: a thin line for each of {found.fresh.shape[0]} seeds, all settings on the same initial weights and training "
    "noise; dots: mean and 95 % interval. Right: what the best trial gains over each other setting, paired by seed, "
    "with 95 % intervals. On the search's own seed the best of many trials looks better than it is.",
    2,
    _fresh_seeds,
    lacks=lambda found: "No finished study in the store." if found.confirmed is None else "",
    cited=lambda found: found.confirmed["run_id"].tolist(),
)


def best_trials_table(view: View, experiment: str, count: int = 5) -> Listing:
    """Return the best trials of a search beside the first one, with the paper's values; the note is the verdict."""
    found, title = find(view, experiment), f"Best trials of {experiment}, and the first, which has the paper's values"
    if found is None:
        return Listing(title, pd.DataFrame(), (f"No finished study of {experiment} in the store.",))
    shown = pd.concat([found.ranked.head(count), found.trials.iloc[:1]]).drop_duplicates("number")
    columns = ["number", *found.study.objectives, *(name for name in NAMES if name in shown)]
    cells = shown[columns].rename(columns=NAMES).reset_index(drop=True)
    cells = cells.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)
    return Listing(title, cells, (verdict(found),))


def verdict(found: Found) -> str:
    """Say in words how the best trial does on fresh seeds, a line for each setting that it is compared with."""
    if found.confirmed is None:
        return f"No finished study of {found.experiment} in the store."
    means, lines = found.fresh.mean(), []
    for other, gains in found.gains.items():
        if not any(gains):
            lines.append(f"The best trial is {other} itself: {found.metric} {means['best']:.4f} on fresh seeds.")
            continue
        judgment = judge(gains, form="+.4f")
        lines.append(
            f"On fresh seeds the best trial is {say(judgment, _WORDS)} {other}: {found.metric} {means['best']:.4f} "
            f"against {means[other]:.4f}, gain {judgment.text} (95 % interval)."
        )
    return "\n".join(lines)


def draw_trials(
    axes: Axes, found: Found, shown: pd.DataFrame, column: str, color: tuple[float, ...], value: str | None = None
) -> None:
    """Draw trials: completed ones filled, pruned ones hollow."""
    for state, face in (("complete", color), ("pruned", "none")):
        chosen = shown[shown["state"] == state]
        axes.scatter(chosen[column], chosen[value or found.metric], s=18, facecolor=face, edgecolor=color, linewidth=1)
