"""Table 1, Fig. 3 and the curve over transparency (Sec. 4.4, 4.5), and what they show, in words."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.frame import caption, style
from analysis.frame.judge import judge, say
from analysis.frame.published import CGN_PAPER, ROBUSTNESS, TABLE_1, Accuracy
from analysis.frame.style import Block
from analysis.frame.table import READING, Listing, Quantity, Table, cell, words
from analysis.frame.view import View, where
from skdcgn.counterfactuals.readings import PAPER_STRENGTH
from skdcgn.images import to_float

EXPERIMENT = "table1_shape_im"

PAPER: Mapping[str, Accuracy] = {"none": ROBUSTNESS["double_colored", "cgn"][CGN_PAPER], **TABLE_1}
"""Accuracies that the paper prints, in percent, by intervention; the control's is that of the CGN paper."""

INTERVENTIONS = {
    "none": "none (control)",
    "noise": "unit Gaussian noise",
    "rotation": "rotation ±180°",
    "transparency": "transparency 0.75",
    "rotation_transparency": "rotation, then 0.75 (as released)",
}
"""Modifications of the mask with their titles, in the order of the table."""

_WHEN = {
    "sampling": "at sampling, teacher unchanged",
    "training": "while training",
    "both": "while training and at sampling",
}

_INIT = {"none": "", "scratch": " from scratch", "pretrained": " on from the teacher"}

_LABELS = {"permuted": "permuted labels", "unpermuted": "the digit's labels"}

_COLUMNS = {
    "train_accuracy": "train",
    "valid_accuracy": "test (MNIST-train's last)",
    "test_accuracy": "MNIST-test",
    "two_way_accuracy": "two-way",
    "two_way_test_accuracy": "two-way, test set",
    "stroke_iou": "mask IoU with strokes",
    "mask_sameness": "mask IoU within class",
}

_ASIDE = 0.012  # that curves stand apart in their figure, so that their bars do not hide each other

_LEARNED = 0.8  # share of the published control that must be reached before numbers are compared

_MEMORIZED = 1.5  # times that test accuracy must be exceeded, by train and by the control's test, to say so

_NOTES = (
    READING,
    "Accuracies in percent. Train and test are the ten-way digit classifier's: over its last epoch of training, and on "
    "digits in random colors, of the last 10,000 of MNIST-train (the original's test set) and of MNIST-test. Two-way "
    "is the caption's task, real or counterfactual, on held-out images of both kinds; beside it the share of the test "
    "set, all of it real, that is taken for real. The last columns tell whether the CGN's masks are digits (IoU with "
    "the nearest real stroke of the class) and whether those of a class are all the same (IoU of two of them).",
)


class Protocol(NamedTuple):
    """One reading of how Table 1 came about."""

    when: str
    init: str
    labels: str

    def __str__(self) -> str:
        return f"mask modified {self.time}; {_LABELS[self.labels]}"

    @property
    def time(self) -> str:
        """When the mask is modified, in words."""
        return f"{_WHEN[self.when]}{_INIT[self.init]}"


def chosen(view: View) -> pd.DataFrame:
    """Choose the runs on show: for each case the newest finished one of each seed, all of one setting.

    Returns:
        Rows of `View.chosen`, with the final metrics under their plain names.
    """
    by = dict.fromkeys((*Protocol._fields, "intervention", "strength"))
    shown = view.chosen(EXPERIMENT, by=by, kind="classifier")
    return shown.rename(columns=lambda name: name.removeprefix("final/"))


def protocols(results: pd.DataFrame) -> list[Protocol]:
    """Return the readings that some results have, in the order of the table."""
    found = {Protocol(*row) for row in results[list(Protocol._fields)].itertuples(index=False)}
    order = {name: place for place, name in enumerate((*_WHEN, *_INIT, *_LABELS))}
    return sorted(found, key=lambda protocol: [order[name] for name in protocol])


def case(results: pd.DataFrame, protocol: Protocol, intervention: str) -> pd.DataFrame:
    """Return the runs of a case, a row a seed; none where it was not run.

    The control is modified neither in training nor at sampling: where the CGN is trained, it is one for both.
    """
    when = "training" if (protocol.when, intervention) == ("both", "none") else protocol.when
    tags = {**protocol._asdict(), "when": when, "intervention": intervention, "strength": "paper"}
    return where(results, tags).sort_values("seed")


def values(results: pd.DataFrame, protocol: Protocol, intervention: str, metric: str) -> pd.Series:
    """Return a metric of a case by seed; empty where it was not run or measured."""
    runs = case(results, protocol, intervention).set_index("seed")
    return runs.reindex(columns=[metric])[metric].dropna().astype(float)


def table_1(view: View) -> Table:
    """Return Table 1: paper beside ours, for every protocol that has runs."""
    results = chosen(view)
    title = "Table 1: classifiers trained on counterfactuals with modified masks"
    title = caption.title(title, results, dataset=view.dataset(EXPERIMENT))
    if results.empty:
        quantity, command = Quantity("test", "valid_accuracy"), view.command(EXPERIMENT)
        made, notes = [cell(results, quantity, command, protocol="any", intervention="any")], _NOTES
    else:
        made, notes = cells(results, view.command(EXPERIMENT)), (*_NOTES, _provenance(view, results), *verdict(results))
    return Table.of(title, made, notes, ("protocol", "intervention"), "quantity")


def cells(results: pd.DataFrame, command: str = "") -> Iterator[dict[str, object]]:
    """Yield the cells of Table 1: a row for each protocol and intervention, in each the paper's number and ours.

    Args:
        results: a row a case and seed: `when`, `init`, `labels`, `intervention`, `strength`, `seed`, and the metrics.
        command: what makes missing cases.
    """
    for protocol in protocols(results):
        for intervention, title in INTERVENTIONS.items():
            runs, known = case(results, protocol, intervention), PAPER.get(intervention)
            if known is None and runs.empty:
                continue  # neither in the paper nor here
            place = {"protocol": str(protocol), "intervention": title}
            yield words(f"{known.train:.4g} / {known.test:.4g}" if known else "", **place, quantity="paper")
            for metric, name in _COLUMNS.items():
                yield cell(runs, Quantity(name, metric, ".1f", 100), command, **place)


def figure_3(view: View) -> Figure:
    """Draw Fig. 3: masks with noise, rotation and transparency, and the images they compose.

    Modified at sampling, and as they come out of a CGN that was trained on modified masks.
    """
    title = "Fig. 3: modified shape masks and the images that they compose"
    title = caption.title(title, dataset=view.dataset(EXPERIMENT))
    results = chosen(view).query("labels == 'permuted' and strength == 'paper' and when != 'both'")
    if results.empty:
        return style.gap(title, view.command(EXPERIMENT))
    names = {"none": "unmodified", "noise": "noise", "rotation": "rotation", "transparency": "× 0.75"}
    blocks, shown, lines = [], [], []
    for letter, protocol in zip("abc", protocols(results), strict=False):
        rows = {}
        for intervention, name in names.items():
            for run_id in case(results, protocol, intervention)["run_id"].head(1):  # the lowest seed, if there is any
                tensors = view.store.load_tensors(run_id, "samples")
                rows[name if rows else f"({letter}) {name}"] = to_float(tensors["mask"])
                rows[" " * len(rows)] = to_float(tensors["images"])
                shown.append(run_id)
        if rows:
            blocks.append(Block(rows, {} if blocks else {"shape": range(style.COLUMNS)}))
            lines.append(f"({letter}) masks modified {protocol.time}")
    drawn = results.set_index("run_id", drop=False).loc[shown]
    below = f"{'; '.join(lines)}. Same noise and labels within a column. {_provenance(view, drawn)}"
    return style.cite(style.sheet(blocks, caption.title(title, drawn), below), drawn["run_id"])


def transparency_curve(view: View) -> Figure:
    """Draw classifier accuracy on masks at a quarter to the whole of their value (Sec. 4.4)."""
    title = caption.title("Classifier accuracy by transparency of the masks", dataset=view.dataset(EXPERIMENT))
    results = chosen(view)
    found = {protocol: transparencies(results, protocol) for protocol in protocols(results)}
    curves = {each: points for each, points in found.items() if each.labels == "permuted" and len(points) > 1}
    if not curves:
        return style.gap(title, view.command(EXPERIMENT))
    drawn = pd.concat(runs for points in curves.values() for runs in points.values()).drop_duplicates("run_id")
    below = (
        "Factor on the mask: 1 is the unmodified CGN. Points: means over seeds, set side by side; bars: 95 % Student-t "
        f"intervals. Stars: the paper's Table 1 at 0.75, the CGN paper at 1. {_provenance(view, drawn)}"
    )
    figure, panels = style.plots(2, caption.title(title, drawn), below, right=2.9)
    with style.style():
        for axes, metric, name in zip(panels, ("valid_accuracy", "train_accuracy"), ("test", "train"), strict=True):
            for number, (color, (protocol, points)) in enumerate(zip(style.PALETTE, curves.items(), strict=False)):
                aside = _ASIDE * (number - (len(curves) - 1) / 2)
                samples = [runs[metric].dropna().tolist() for runs in points.values()]
                look = {"color": color, "fmt": "o-", "markersize": 4, "label": protocol.time}
                style.intervals(axes, [strength + aside for strength in points], samples, 100, **look)
            stars = [getattr(PAPER[intervention], name) for intervention in ("transparency", "none")]
            axes.plot([PAPER_STRENGTH, 1], stars, "*", color="0.2", markersize=9, label="published", zorder=3)
            axes.axhline(10, color="0.5", linestyle=":", linewidth=1)
            axes.set(title=f"{name} accuracy, %", xlabel="factor on the mask", ylim=(0, 103))
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), title="masks modified", alignment="left")
    return style.cite(figure, drawn["run_id"])


def transparencies(results: pd.DataFrame, protocol: Protocol) -> dict[float, pd.DataFrame]:
    """Return each transparency that a protocol has, from low to 1 (the control), with its runs."""
    control = case(results, protocol, "none")
    modified = where(results, {**protocol._asdict(), "intervention": "transparency"})
    strengths = modified["strength"].replace("paper", str(PAPER_STRENGTH)).astype(float)
    found = {strength: modified[strengths == strength] for strength in sorted(strengths.unique())}
    return found | ({1.0: control} if found and len(control) else {})


# --- in words


def verdicts(view: View) -> Listing:
    """Return what Table 1 shows, a sentence a row; see `verdict`."""
    results = chosen(view)
    sentences = verdict(results) or [f"No finished run: {view.command(EXPERIMENT)}"]
    title = caption.title("What Table 1 shows", results, dataset=view.dataset(EXPERIMENT))
    return Listing(title, pd.DataFrame({"verdict": sentences}))


def verdict(results: pd.DataFrame) -> list[str]:
    """Say which protocol gives the pattern of Table 1, and what each modification does when.

    Every sentence follows from the numbers; differences count where the judge says so.

    Args:
        results: see `cells`.
    """
    return [*_patterns(results), *_by_time(results), *_transparency(results), *_two_way(results)]


def _patterns(results: pd.DataFrame) -> Iterator[str]:
    """Compare each protocol with Table 1: its pattern, which does not depend on scale, and its numbers, which do."""
    published = {name: (PAPER[name].train, PAPER[name].test) for name in ("none", *TABLE_1)}
    whole, distances, controls = [], {}, {}
    for protocol in protocols(results):
        ours = {name: _means(results, protocol, name) for name in published}
        if any(means is None for means in ours.values()):
            continue
        control = controls[protocol] = ours["none"][1]
        memorized = [
            name
            for name in ("noise", "rotation")
            if ours[name][0] > _MEMORIZED * ours[name][1] and control > _MEMORIZED * ours[name][1]
        ]
        between = max(ours["noise"][1], ours["rotation"][1]) < ours["transparency"][1] < control
        distances[protocol] = np.mean([np.abs(np.subtract(ours[name], published[name])) for name in published])
        if between and len(memorized) == 2:
            whole.append(protocol)
        yield (
            f"{str(protocol).capitalize()}: {_rows(ours)}. Memorized: {' and '.join(memorized) or 'neither'}; "
            f"transparency {'' if between else 'not '}in between. {distances[protocol]:.0f} points off on average."
        )
    if distances:
        nearest = min(distances, key=distances.__getitem__)
        yield (
            f"The paper's pattern (train / test, %: {_rows(published)}) is that noise and rotation are memorized, with "
            f"train more than {_MEMORIZED} times test and the control's test more than {_MEMORIZED} times theirs, and "
            f"that transparency lies between them and the control. It is given by: "
            f"{'; '.join(map(str, whole)) or 'none of these'}. Nearest in numbers: {nearest}."
        )
        learned = max((control for each, control in controls.items() if each.labels == "permuted"), default=None)
        if learned is not None and learned < _LEARNED * PAPER["none"].test:
            yield (
                f"At this scale no control learns what it could from permuted labels ({learned:.1f} % in test at best, "
                f"{PAPER['none'].test:.1f} % published): the numbers cannot be compared with the paper's."
            )


def _rows(accuracies: Mapping[str, tuple[float, float]]) -> str:
    named = ((name.replace("none", "control"), *both) for name, both in accuracies.items())
    return ", ".join(f"{name} {train:.1f} / {test:.1f}" for name, train, test in named)


def _by_time(results: pd.DataFrame) -> Iterator[str]:
    """Compare each modification in training with the same one at sampling, labels permuted."""
    plain = Protocol("sampling", "none", "permuted")
    for intervention in ("noise", "rotation"):
        at_sampling = values(results, plain, intervention, "valid_accuracy")
        if at_sampling.empty:
            continue
        said = f"at sampling {100 * at_sampling.mean():.1f} %"
        for protocol in protocols(results):
            trained = values(results, protocol, intervention, "valid_accuracy")
            if protocol.when == "sampling" or protocol.labels != "permuted" or trained.empty:
                continue
            said += f"; {protocol.time} {100 * trained.mean():.1f} % ({_difference(trained - at_sampling)})"
            same = values(results, protocol, intervention, "mask_sameness")
            digits = values(results, protocol, intervention, "stroke_iou")
            if protocol.when == "training" and len(same):
                before = values(results, plain, "none", "mask_sameness")
                usual = f", {before.mean():.2f} for the teacher's" if len(before) else ""
                said += f", its masks overlapping by {same.mean():.2f} within a class{usual}"
                said += f", and by {digits.mean():.2f} with the nearest real stroke"
        yield f"{intervention.capitalize()}, permuted labels, test accuracy: {said}."


def _transparency(results: pd.DataFrame) -> Iterator[str]:
    """Test Sec. 4.4: does a mask at 3/4 train a better classifier than the CGN's own?"""
    for protocol in protocols(results):
        ours = values(results, protocol, "transparency", "valid_accuracy")
        control = values(results, protocol, "none", "valid_accuracy")
        if protocol.labels == "permuted" and len(ours) and len(control):
            yield (
                f"Sec. 4.4, mask at 0.75 against the whole one, {protocol.time}: test accuracy "
                f"{100 * ours.mean():.1f} % against {100 * control.mean():.1f} %: {_difference(ours - control)}."
            )


def _two_way(results: pd.DataFrame) -> Iterator[str]:
    """Say whether the caption's task could have given the numbers of Table 1."""
    for protocol in protocols(results):
        said = []
        for intervention in TABLE_1 if protocol.labels == "permuted" else ():
            held_out = values(results, protocol, intervention, "two_way_accuracy")
            test = values(results, protocol, intervention, "two_way_test_accuracy")
            if len(held_out):
                said.append(f"{intervention} {100 * held_out.mean():.1f} / {100 * test.mean():.1f}")
        if said:
            yield f"Real or counterfactual (held out / test set taken for real), {protocol}: {', '.join(said)}."


def _means(results: pd.DataFrame, protocol: Protocol, intervention: str) -> tuple[float, float] | None:
    """Mean accuracy in training and in test, in percent; None where there is no run."""
    train, test = (values(results, protocol, intervention, f"{name}_accuracy") for name in ("train", "valid"))
    return None if train.empty or test.empty else (100 * train.mean(), 100 * test.mean())


def _difference(paired: pd.Series) -> str:
    """Put a difference in percentage points, paired by seed, into words."""
    judgment = judge(paired.dropna().tolist(), form="+.1f", scale=100)
    return f"in points {judgment.text}: {say(judgment)}" if judgment.interval else say(judgment)


def _provenance(view: View, shown: pd.DataFrame) -> str:
    """Say where numbers come from: profile, sizes, seeds, teacher."""
    cgns = view.chosen(EXPERIMENT, by={"init": None, "intervention": None}, kind="cgn")
    images = caption.number_range(shown, "param/images")
    steps = caption.number_range(cgns[cgns["init"].isin(shown["init"])], "param/training.steps")
    trained = f"CGNs trained for {steps} steps" if steps else ""
    return caption.provenance(shown, f"{images} counterfactuals a case", trained)
