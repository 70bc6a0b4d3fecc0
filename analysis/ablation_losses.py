"""Appendix D: the compared objectives and their students; Fig. 12, 13, 14 and 16, curves, means, and what they decide.

The convergence with and without KL (`kl_convergence`) and the noise pairing (`noise_pairing`) are compared alike.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.frame import caption, style
from analysis.frame.caption import METRICS
from analysis.frame.judge import comparison, difference, judge, say
from analysis.frame.style import Block
from analysis.frame.table import Listing
from analysis.frame.view import View, values
from skdcgn.mechanisms import Mechanism
from skdcgn.tinygan.variants import APPENDIX_D, KL_TERMS

ABLATION = "ablation_losses"

CONVERGENCE = "kl_convergence"

PAIRING = "noise_pairing"

ARMS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    ABLATION: ("variant", {name: preset.title for name, preset in APPENDIX_D.items()}),
    CONVERGENCE: ("kl", {name: preset.title for name, preset in KL_TERMS.items()}),
    PAIRING: ("pairing", {"exact": "exact noise", "published": "published pairing"}),
}
"""Experiment to the tag that tells what it compares, and the tag's values with their titles, the plain one first."""

_CURVES = {ABLATION: "Appendix D", CONVERGENCE: "With and without KL", PAIRING: "Noise pairing"}

_DRAWN = ("iou", "l1", "ssim", "frechet", "noise_energy")  # metrics of the curves

_LOGARITHMIC = ("frechet", "noise_energy")

_ALIKE = r"student\.|distill\.(?!published_code)|heldout|evaluations"
"""Parameters that compared students share."""


def chosen(view: View, experiment: str) -> pd.DataFrame:
    """Choose the runs that are compared: for each mechanism and arm the newest finished one of each seed.

    All runs of a mechanism agree in architecture, training and teacher, so that only the arm differs.

    Args:
        view: of the runs.
        experiment: a key of `ARMS`.
    """
    tag, titles = ARMS[experiment]
    by = {"mechanism": [mechanism.value for mechanism in Mechanism], tag: list(titles)}
    return view.chosen(experiment, by=by, alike=_ALIKE, kind="student")


def figure_over_training(view: View, number: int, variant: str) -> Figure:
    """Draw Fig. 12, 13 or 16: masks of the teacher over those of a variant's student, after epochs 2, 10, 30 of 30.

    The captions of the paper name three mechanisms; its text names the mask alone, which is what its pictures show.

    Args:
        view: of the runs.
        number: of the paper's figure.
        variant: a key of `skdcgn.tinygan.variants.APPENDIX_D`.
    """
    shown = chosen(view, ABLATION).query("mechanism == 'shape' and variant == @variant")
    title = f"Fig. {number}: mask students, {APPENDIX_D[variant].title}, over training"
    title = caption.title(title, shown, dataset=view.dataset(ABLATION))
    if shown.empty:
        return style.gap(title, view.command(ABLATION))
    run = shown.iloc[0]  # the lowest seed, not the best one
    blocks = [
        _block(view, run, letter, epoch, f"epoch {epoch}") for letter, epoch in zip("abc", (2, 10, 30), strict=True)
    ]
    fidelity = caption.fidelity(run, "iou", "l1", "noise_energy", when="On the whole held-out set, at the end")
    below = (
        "Same noise and label in both rows, never seen in training; epochs are 30ths of the training. "
        f"{fidelity} {caption.provenance(run)}"
    )
    return style.cite(style.sheet(blocks, title, below), [run["run_id"]])


def figure_14(view: View) -> Figure:
    """Draw Fig. 14: the students of D.2 at the end: texture, background and mask, each under its teacher."""
    variant = "d2_kl_outputs"
    title = f"Fig. 14: students of {APPENDIX_D[variant].title}, epoch 30 of 30"
    title = caption.title(title, dataset=view.dataset(ABLATION))
    order = {"texture": "a", "background": "b", "shape": "c"}
    shown = chosen(view, ABLATION).query("variant == @variant").drop_duplicates("mechanism")
    if set(shown["mechanism"]) != set(order):
        return style.gap(title, view.command(ABLATION))
    runs = shown.set_index("mechanism", drop=False)
    blocks = [_block(view, runs.loc[name], letter, 30, name) for name, letter in order.items()]
    below = f"Same noise and label in both rows, never seen in training. {caption.provenance(shown)}"
    return style.cite(style.sheet(blocks, caption.title(title, shown), below), shown["run_id"])


def _block(view: View, run: pd.Series, letter: str, epoch: int, name: str) -> Block:
    """Return the held-out images of the teacher over those of a student after an epoch of 30."""
    teacher, student = view.held_out(run, epoch)
    header = {"label": range(style.COLUMNS)} if letter == "a" else {}
    return Block({f"({letter}) teacher": teacher, name: student}, header)


def curves(view: View, experiment: str) -> dict[str, Figure]:
    """Draw held-out metrics by step: a line for each arm, the mean over seeds, with their range.

    Args:
        view: of the runs.
        experiment: a key of `ARMS`.

    Returns:
        A figure for each mechanism by file name; metrics that were not measured are not drawn.
    """
    tag, titles = ARMS[experiment]
    compared = chosen(view, experiment)
    figures = {}
    for mechanism in Mechanism:
        name = f"{experiment}_{mechanism}"
        shown = compared[compared["mechanism"] == mechanism]
        title = f"{_CURVES[experiment]}, held-out fidelity by step: {mechanism} students"
        title = caption.title(title, shown, dataset=view.dataset(experiment))
        if shown.empty:
            figures[name] = style.gap(title, view.command(experiment))
            continue
        history = view.history(shown, "heldout/")
        present = [metric for metric in _DRAWN if (history["key"] == f"heldout/{metric}").any()]
        below = (
            "Lines: means over seeds. Bands: from the lowest to the highest seed. Noise energy: that of high "
            f"frequencies, over the teacher's. {caption.provenance(shown)}"
        )
        figure, panels = style.plots(len(present), title, below, right=2.35)
        with style.style():
            for axes, metric in zip(panels, present, strict=True):
                _draw_curves(axes, metric, history[history["key"] == f"heldout/{metric}"], tag, titles)
            panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03))
        figures[name] = style.cite(figure, shown["run_id"])
    return figures


def _draw_curves(axes: Axes, metric: str, history: pd.DataFrame, tag: str, titles: Mapping[str, str]) -> None:
    """Draw one metric by step."""
    for color, (arm, title) in zip(style.PALETTE, titles.items(), strict=False):
        by_step = history[history[tag] == arm].groupby("step")["value"]
        if len(by_step):
            mean = by_step.mean()
            axes.plot(mean.index, mean, color=color, marker="o", markersize=2.5, label=title)
            axes.fill_between(mean.index, by_step.min(), by_step.max(), color=color, alpha=0.15, linewidth=0)
    axes.set_title(METRICS[metric], fontsize=9)
    axes.set(xlabel="step", xlim=(0, None))
    if metric in _LOGARITHMIC:
        axes.set_yscale("log")


def ablation_means(view: View, experiment: str) -> Listing:
    """Return the final metrics of a comparison: a row for each mechanism and arm.

    Args:
        view: of the runs.
        experiment: a key of `ARMS`.
    """
    tag, titles = ARMS[experiment]
    shown = chosen(view, experiment)
    present = {metric: title for metric, title in METRICS.items() if f"final/{metric}" in shown}
    rows = []
    for mechanism in Mechanism:
        for arm, title in titles.items():
            runs = shown[(shown["mechanism"] == mechanism) & (shown[tag] == arm)]
            if len(runs):
                texts = {name: judge(values(runs, f"final/{metric}")).text for metric, name in present.items()}
                rows.append({"mechanism": mechanism.value, tag: title, **texts})
    title = caption.title(f"Final held-out metrics of {experiment}", shown, dataset=view.dataset(experiment))
    cells = pd.DataFrame(rows, columns=["mechanism", tag, *present.values()])
    return Listing(title, cells, ("Mean over seeds, its 95 % Student-t interval, and n.",))


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
"""What `ablation_verdicts` answers."""


def ablation_verdicts(view: View) -> Listing:
    """Answer `QUESTIONS`: paired differences over seeds, with their 95 % interval, and what they mean.

    A difference is called one only where its interval excludes 0.
    """
    compared = {experiment: chosen(view, experiment) for experiment in ARMS}
    rows = []
    for question in QUESTIONS:
        tag, titles = ARMS[question.experiment]
        for mechanism, metric in question.metrics.items():
            shown = compared[question.experiment].query("mechanism == @mechanism.value")
            gains = difference(shown, tag, question.arm, question.baseline, f"final/{metric}")
            judgment = judge(gains, form="+.3g")
            numbers = judgment.interval._asdict() if gains else {"n": 0}
            missing = f"no pair of runs: {view.command(question.experiment)}"
            rows.append(
                {
                    "question": question.text,
                    "mechanism": mechanism.value,
                    "difference": f"{titles[question.arm]} − {titles[question.baseline]}",
                    "metric": metric,
                    "over seeds": judgment.text if gains else "",
                    **numbers,
                    "verdict": say(judgment, comparison(metric)) if gains else missing,
                }
            )
    interval = ("mean", "low", "high", "n")
    columns = ["question", "mechanism", "difference", "metric", "over seeds", *interval, "verdict"]
    title = "Differences between objectives, paired by seed"
    title = caption.title(title, *compared.values(), dataset=view.dataset(ABLATION))
    note = "Over seeds: the mean of the differences, its 95 % Student-t interval, and n."
    return Listing(title, pd.DataFrame(rows, columns=columns), (note,), hidden=interval)
