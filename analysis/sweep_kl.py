"""The search for the KL term (Eq. 6): where it applies, its direction, weight and temperature.

What it shares with `sweep_lambdas` is in `sweeps` and `responses`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import sweeps
from analysis.frame import style
from analysis.frame.view import View
from analysis.responses import draw_band, ends, logarithmic, mark, surrogate
from analysis.sweeps import ENOUGH, LABELS, NAMES, Found, Plot, draw_trials
from skdcgn.measure.statistics import mean_interval

EXPERIMENT = "sweep_kl"

_DIRECTIONS = {"teacher_student": "KL(T‖S), Eq. 6", "student_teacher": "KL(S‖T)"}


def figures(view: View) -> dict[str, Figure]:
    """Draw the search; see `sweeps.figures`."""
    return sweeps.figures(view, EXPERIMENT, "search for the KL term", _RESPONSE)


def _response(found: Found, panels: Sequence[Axes]) -> None:
    """Draw the objective over lambda_KL, for each place where the KL applies, with intervals."""
    column, response = "loss.kl", found.trials["response"]
    margin = 0.05 * (response.max() - response.min())
    for axes, place in zip(panels, ("pixels", "image", "activations"), strict=True):
        shown = found.trials[found.trials["loss.kl_on"] == place]
        for color, (direction, label) in zip(style.PALETTE, _DIRECTIONS.items(), strict=False):
            draw_trials(axes, found, shown[shown["loss.kl_direction"] == direction], column, color, "response")
            axes.plot([], [], "o", color=color, label=label)
        fit = surrogate(found, shown, [column])
        if fit is not None:
            x = logarithmic(shown[column])
            draw_band(axes, x, fit(np.log10(x)[:, None]))
        if found.confirmed is not None:
            none = mean_interval(found.fresh["no KL"].tolist())
            axes.axhspan(none.low, none.high, color="0.5", alpha=0.2, linewidth=0)
            axes.axhline(none.mean, color="0.4", linewidth=1, linestyle="--")
        mark(axes, found, [column, found.metric], shown["number"])
        axes.set(xscale="log", xlim=ends(found.trials[column]), xlabel=NAMES[column], title=f"KL on {place}")
        axes.set_ylim(response.min() - margin, response.max() + margin)
    panels[0].set_ylabel(LABELS[found.metric])
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


_RESPONSE = Plot(
    "Response to the KL term",
    "Dots: trials (hollow: stopped early, lifted by what completed trials gained from there on); directions and "
    f"temperatures vary along a line. Line and band: a Gaussian process where {ENOUGH} trials or more were "
    "completed (stopped ones count less), with the 95 % interval of its mean. Gray: no KL, mean and 95 % interval "
    "over fresh seeds. Star: Eq. 6 as the paper has it; diamond: the best trial.",
    3,
    _response,
    right=1.5,
)
