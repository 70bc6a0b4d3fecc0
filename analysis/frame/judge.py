"""The one judge: what values over seeds say about a prediction.

A prediction holds where the whole 95 % Student-t interval over seeds lies on its side of a bound, fails where it lies
on the other, and is undecided otherwise: with one seed always. Claims, questions about objectives, searches and Table 1
all ask here, so that no two places of a report can answer differently.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from analysis.frame import caption, style
from skdcgn.measure.statistics import Interval, mean_interval

Side = Literal["above", "below"]


class Judgment(NamedTuple):
    """What values over seeds say about a prediction."""

    interval: Interval | None
    """Mean and 95 % interval; None without a value."""
    holds: bool | None
    """Whether the prediction holds; None where the values do not decide."""
    text: str
    """The mean with its interval and n; empty without a value."""


@dataclass(frozen=True)
class Finding:
    """One prediction of a claim against the runs that test it."""

    text: str
    """The number, with its interval and n, or what is missing."""
    holds: bool | None
    """Whether the prediction holds; None where the runs do not decide."""
    run_ids: tuple[str, ...] = ()
    scale: str = ""
    """Profile, n, teacher."""
    smoke: bool = False
    stand_in: bool = False
    command: str = ""
    """What makes missing runs."""
    decides: bool = True
    """Whether it counts: what stands beside the claim, for comparison, does not."""


class Words(NamedTuple):
    """What a judgment about "above" is called."""

    above: str = "higher"
    below: str = "lower"
    undecided: str = "not told apart"
    single: str = "one seed only"
    none: str = "no pair of seeds"


def judge(
    values: Iterable[float], side: Side = "above", bound: float = 0.0, form: str = ".3g", scale: float = 1.0
) -> Judgment:
    """Ask whether the mean of values over seeds lies above or below a bound.

    Args:
        values: one for each seed; NaN counts for none.
        side: the prediction.
        bound: that of the prediction, in the unit of the values.
        form: how numbers are written.
        scale: factor on numbers before they are written.
    """
    present = [float(value) for value in values if not math.isnan(value)]
    if not present:
        return Judgment(None, None, "")
    interval = mean_interval(present)
    above, below = bool(interval.low > bound), bool(interval.high < bound)
    holds = (side == "above") == above if above or below else None
    return Judgment(interval, holds, style.write_interval(interval, form, scale))


_WORDS = Words()


def say(judgment: Judgment, words: Words = _WORDS) -> str:
    """Return the word for a judgment about "above"."""
    if judgment.interval is None:
        return words.none
    if judgment.holds is None:
        return words.single if judgment.interval.n == 1 else words.undecided
    return words.above if judgment.holds else words.below


def comparison(metric: str) -> Words:
    """Return what a difference of a metric is called, by whether more of it is better."""
    undecided = "no clear difference"
    if metric == "noise_energy":
        return Words("noisier", "less noisy", undecided)
    if metric == "steps_to_target":
        return Words("slower", "faster", undecided)
    above, below = ("better", "worse") if caption.METRICS[metric].endswith("↑") else ("worse", "better")
    return Words(above, below, undecided)


def paired(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> list[float]:
    """Return ours - theirs for each seed that has both, in the order of the seeds.

    Args:
        ours: runs, a row a seed.
        theirs: likewise.
        metric: a column; one that is missing was not measured.
    """
    arms = [runs.set_index("seed").reindex(columns=[metric])[metric].astype(float) for runs in (ours, theirs)]
    return (arms[0] - arms[1]).dropna().sort_index().tolist()


def difference(shown: pd.DataFrame, column: str, arm: str, baseline: str, metric: str) -> list[float]:
    """Return arm - baseline for each seed that has both; see `paired`.

    Args:
        shown: runs, a row for each case and seed.
        column: that tells the cases apart.
        arm: a value of it.
        baseline: another one.
        metric: a column.
    """
    return paired(shown[shown[column] == arm], shown[shown[column] == baseline], metric)


def found(name: str, judgment: Judgment, shown: pd.DataFrame) -> Finding:
    """Put a judgment beside the runs that it rests on.

    Args:
        name: of the number.
        judgment: what the values of the runs say.
        shown: the runs.
    """
    text = f"{name} {judgment.text}" if judgment.interval else f"{name}: not reached, or not measured"
    return resting_on(shown, judgment.interval.n if judgment.interval else 0, text, judgment.holds)


def resting_on(shown: pd.DataFrame, n: int, text: str, holds: bool | None) -> Finding:
    """Make a finding of the runs that it rests on.

    Args:
        shown: the runs.
        n: how many values it was made of.
        text: what it says.
        holds: whether the prediction holds.
    """
    first = shown.iloc[0]
    teacher = "" if first["teacher"] in (None, "none") or pd.isna(first["teacher"]) else f", {first['teacher']}"
    return Finding(
        text,
        holds,
        tuple(shown["run_id"]),
        f"{first['profile']}, n={n}{teacher}",
        smoke=bool(first["profile"] == "smoke"),
        stand_in=bool(first["stand_in"] or first["dataset"] == "digits"),
    )
