"""The response of a search's objective to its parameters: a Gaussian process fitted to the trials, and drawn."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from analysis.frame import style
from analysis.sweeps import ENOUGH, Found


def mark(axes: Axes, found: Found, columns: Sequence[str], among: pd.Series | None = None) -> None:
    """Mark the paper's values and the best trial."""
    for row, marker, size in ((found.trials.iloc[0], "*", 150), (found.ranked.iloc[0], "D", 45)):
        if among is None or row["number"] in set(among):
            x, y = row[list(columns)]
            axes.scatter([x], [y], marker=marker, s=size, color=style.PALETTE[3], edgecolor="black", zorder=4)


def surrogate(
    found: Found, trials: pd.DataFrame, columns: Sequence[str]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """Fit a Gaussian process over the logarithms of columns to trials.

    Those stopped early count less: how they would have ended is a guess.

    Returns:
        A function from (N, columns) logarithms to mean and standard deviation of the response (N,), without noise;
        None where there are too few trials.
    """
    trials = trials[trials["state"].isin(["complete", "pruned"])]
    if (trials["state"] == "complete").sum() < ENOUGH:
        return None
    x = np.log10(trials[list(columns)].to_numpy(float))
    # A bad trial may be so much worse than all others that it would leave the fit nothing to say about these.
    y = trials["response"].clip(*found.limits).to_numpy(float)
    center, scale = y.mean(), y.std() or 1.0
    kernel = ConstantKernel(1.0, (0.05, 20)) * RBF([1.0] * len(columns), (0.7, 20)) + WhiteKernel(0.1, (1e-2, 2))
    doubt = np.where(trials["state"] == "pruned", 1.0, 1e-10)
    process = GaussianProcessRegressor(kernel, alpha=doubt, n_restarts_optimizer=3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: that parameter does nothing
        process.fit(x, (y - center) / scale)
    noise = process.kernel_.k2.noise_level

    def predict(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = process.predict(points, return_std=True)
        return center + scale * mean, scale * np.sqrt(np.maximum(deviation**2 - noise, 0))

    return predict


def draw_band(axes: Axes, x: np.ndarray, response: tuple[np.ndarray, np.ndarray]) -> None:
    """Draw mean and 95 % interval of a fit; see `surrogate`."""
    mean, deviation = response
    low, high = mean - 1.96 * deviation, mean + 1.96 * deviation
    axes.plot(x, mean, color=style.PALETTE[2], linewidth=2)
    axes.fill_between(x, low, high, color=style.PALETTE[2], alpha=0.2, linewidth=0)


def ends(values: pd.Series) -> tuple[float, float]:
    """Return the ends of a logarithmic axis around some values."""
    return values.min() / 1.3, values.max() * 1.3


def logarithmic(values: pd.Series) -> np.ndarray:
    """Return points of such an axis, evenly spread."""
    return np.geomspace(*ends(values), 80)
