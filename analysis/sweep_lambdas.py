"""The search for the loss weights λ1 and λ2 (Eq. 7): its response surface, and fidelity against size.

What it shares with `sweep_kl` is in `sweeps` and `responses`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import sweeps
from analysis.frame import style
from analysis.frame.view import View
from analysis.responses import draw_band, logarithmic, mark, surrogate
from analysis.sweeps import LABELS, NAMES, Found, Plot, draw_trials

EXPERIMENT = "sweep_lambdas"


def figures(view: View) -> dict[str, Figure]:
    """Draw the search, see `sweeps.figures`; and, where one varied the student's width too, fidelity against size."""
    shown = sweeps.figures(view, EXPERIMENT, "search for λ1 and λ2", _RESPONSE)
    found = sweeps.find(view, EXPERIMENT, objectives=2)
    return shown if found is None else {**shown, f"{EXPERIMENT}_pareto": sweeps.drawn(view, EXPERIMENT, _PARETO, found)}


def _response(found: Found, panels: Sequence[Axes]) -> None:
    """Draw the objective over lambda_1 and lambda_2: a slice of each, and the contour over both."""
    columns = ["loss.lambda_1", "loss.lambda_2"]
    *slices, both = panels
    fit = surrogate(found, found.trials, columns)
    for axes, column in zip(slices, columns, strict=True):
        draw_trials(axes, found, found.trials, column, style.PALETTE[0], "response")
        if fit is not None:
            points = np.repeat(np.log10(found.trials[columns].median().to_numpy(float))[None], 80, axis=0)
            points[:, columns.index(column)] = np.log10(logarithmic(found.trials[column]))
            draw_band(axes, logarithmic(found.trials[column]), fit(points))
        mark(axes, found, [column, found.metric])
        axes.set(xscale="log", xlabel=NAMES[column], ylabel="", ylim=found.limits)
    slices[0].set_ylabel(LABELS[found.metric])
    if fit is not None:
        x, y = (logarithmic(found.trials[column]) for column in columns)
        mesh = np.log10(np.stack(np.meshgrid(x, y), axis=-1))
        surface = fit(mesh.reshape(-1, 2))[0].reshape(mesh.shape[:2])
        levels = np.linspace(*found.limits, 15)
        contour = both.contourf(x, y, surface, levels, cmap="viridis", extend="both", alpha=0.85)
        bar = both.figure.colorbar(contour, cax=both.inset_axes((1.04, 0, 0.05, 1)), format="%.3f")
        bar.ax.grid(False)
    both.scatter(found.trials[columns[0]], found.trials[columns[1]], s=12, color="white", edgecolor="black")
    mark(both, found, columns)
    both.set(xscale="log", yscale="log", xlabel=NAMES[columns[0]], ylabel=NAMES[columns[1]])
    both.grid(False)


_RESPONSE = Plot(
    "Response to λ1 and λ2",
    "Dots: trials (hollow: stopped early, lifted by what completed trials gained from there on). Star: the paper's "
    "values; diamond: the best trial. Lines and contours: a Gaussian process fitted to the trials, stopped ones "
    "counting less; bands: 95 % interval of its mean, the other weight at its median over the trials.",
    3,
    _response,
    right=0.9,
)


def _pareto(found: Found, panels: Sequence[Axes]) -> None:
    """Draw the trials by size, and the front as a line."""
    (axes,) = panels
    draw_trials(axes, found, found.trials, "parameters", style.PALETTE[0])
    front = found.trials[found.trials["number"].isin(found.study.front)].sort_values("parameters")
    axes.step(front["parameters"], front[found.metric], where="post", color=style.PALETTE[1], marker="o")
    axes.set(xlabel=LABELS["parameters"], ylabel=LABELS[found.metric], ylim=found.limits)


_PARETO = Plot("Fidelity against size", "Dots: completed trials; line: the Pareto front.", 1, _pareto)
