"""The claims of the paper, held against the run store.

How a verdict is reached. A claim comes down to predictions about numbers: a mean lies above or below a bound, or a
difference, paired by seed, above or below 0. A prediction holds where the whole 95 % Student-t interval over seeds lies
on its side, fails where it lies on the other, and is undecided otherwise: with one seed always. All hold: confirmed.
Some do: partly. None does, and one fails: refuted. Otherwise: not shown. A smoke test decides nothing.
"""

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

import pandas as pd

from analysis.frame import style
from skdcgn.measure import statistics

Side = Literal["above", "below"]


class Status(StrEnum):
    """What the runs say about a claim."""

    CONFIRMED = "confirmed"
    PARTLY = "partly"
    REFUTED = "refuted"
    OPEN = "not shown"
    NOT_TESTABLE = "not testable here"
    NO_RUN = "no run"


class Finding(NamedTuple):
    """One prediction of a claim against the runs that test it."""

    text: str
    """The number, with its interval and n, or what is missing."""
    holds: bool | None
    """Whether the prediction holds; None where the runs do not decide."""
    run_ids: tuple[str, ...] = ()
    scale: str = ""
    """Profile, length of training, n, teacher."""
    smoke: bool = False
    stand_in: bool = False
    command: str = ""
    """What makes missing runs."""
    decides: bool = True
    """Whether it counts: what stands beside the claim, for comparison, does not."""


def judge(
    name: str, values: Iterable[float], shown: pd.DataFrame, side: Side, bound: float, form: str = ".3g"
) -> Finding:
    """Ask whether the mean of values over seeds lies above or below a bound.

    Args:
        name: of the number.
        values: one for each seed; NaN counts for none.
        shown: the runs that they come from.
        side: the prediction.
        bound: that of the prediction.
        form: how the number is written.
    """
    present = [value for value in values if not math.isnan(value)]
    if not present:
        return Finding(f"{name}: not reached, or not measured", None, **_origin(shown, 0))
    text = f"{name} {style.interval_text(present, form)}"
    return Finding(text, _holds(present, side, bound), **_origin(shown, len(present)))


def _holds(values: Sequence[float], side: Side, bound: float) -> bool | None:
    """Whether the whole interval of a mean lies on one side of a bound; None where it reaches over it, or n = 1."""
    interval = statistics.mean_interval(values)
    above, below = bool(interval.low > bound), bool(interval.high < bound)
    return (side == "above") == above if above or below else None


def _column(shown: pd.DataFrame, metric: str) -> pd.Series:
    """Return a metric by seed; NaN where it was not measured."""
    return shown.set_index("seed").reindex(columns=[metric])[metric].astype(float)


def _origin(shown: pd.DataFrame, n: int) -> dict[str, object]:
    """What a finding rests on: the fields of `Finding` beside its text and its outcome."""
    first = shown.iloc[0]
    teacher = "" if first["teacher"] in (None, "none") or pd.isna(first["teacher"]) else f", {first['teacher']}"
    return {
        "run_ids": tuple(shown["run_id"]),
        "scale": f"{first['profile']}, n={n}{teacher}",
        "smoke": bool(first["profile"] == "smoke"),
        "stand_in": bool(first["stand_in"] or first["dataset"] == "digits"),
    }
