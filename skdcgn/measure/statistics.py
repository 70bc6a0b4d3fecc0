"""Means over seeds and their intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return mean and Student-t interval (standard deviation with ddof = 1) of values over seeds.

    With a single value there is no interval: low and high are NaN.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values to take a mean of")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half), len(values))
