"""Table 1, Fig. 3 and the curve over transparency (Sec. 4.4, 4.5) from the run store, and what they come to."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.frame import published as published_numbers
from analysis.frame import style, view
from analysis.frame.published import robustness
from analysis.frame.style import Block, interval_text
from analysis.frame.table import Listing, Table
from skdcgn.images import to_float
from skdcgn.measure.statistics import mean_interval
from skdcgn.recipes.table1_shape_im import PAPER_STRENGTH
from skdcgn.runs.store import Store

EXPERIMENT = "table1_shape_im"

PAPER: Mapping[str, published_numbers.Accuracy] = {
    "none": robustness("double_colored", "cgn").cgn_paper,
    **published_numbers.TABLE_1,
}
"""Accuracies that the paper prints, in per cent, by intervention; the control's is that of the CGN paper."""

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
_CASE = ["when", "init", "labels", "intervention", "strength"]
_TABLE_ROWS = ("noise", "rotation", "transparency")
_ASIDE = 0.012  # that curves stand apart in their figure, so that their bars do not hide each other
_LEARNT = 0.8  # share of the published control that must be reached before numbers are compared
_MEMORISED = 1.5  # times that test accuracy must be exceeded, by train and by the control's test, to say so

_READING = (
    "Accuracies in per cent: mean over seeds, 95 % Student-t interval, n seeds. Train and test are the ten-way digit "
    "classifier's: over its last epoch of training, and on digits in random colours, of the last 10,000 of MNIST-train "
    "(the original's test set) and of MNIST-test. Two-way is the caption's task, real or counterfactual, on held-out "
    "images of both kinds; beside it the share of the test set, all of it real, that is taken for real. The last "
    "columns tell whether the CGN's masks are digits (IoU with the nearest real stroke of the class) and whether those "
    "of a class are all the same (IoU of two of them)."
)


class Protocol(NamedTuple):
    """One reading of how Table 1 came about."""

    when: str
    init: str
    labels: str

    def __str__(self) -> str:
        return f"mask modified {_WHEN[self.when]}{_INIT[self.init]}; {_LABELS[self.labels]}"


def chosen(store: Store, dataset: str = "double_colored", profile: str | None = None) -> pd.DataFrame:
    """Choose the runs on show: for each case the newest finished one of each seed, all of one setting.

    Args:
        store: the run store.
        dataset: what the CGNs and classifiers learnt from.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.

    Returns:
        Rows of `runs.finished_runs`, with the final metrics under their plain names.
    """
    finished = view.finished_runs(store, EXPERIMENT)
    if not {*_CASE, "level"} <= set(finished):
        return finished.iloc[:0].assign(**{name: None for name in (*_CASE, *_COLUMNS) if name not in finished})
    finished = view.widest(finished[(finished["level"] == "case") & (finished["dataset"] == dataset)], profile)
    parts = [view.newest(of_case, {"dataset": dataset}, profile) for _, of_case in finished.groupby(_CASE, sort=False)]
    shown = pd.concat(parts, ignore_index=True) if parts else finished
    return shown.rename(columns=lambda name: name.removeprefix("final/"))


def protocols(results: pd.DataFrame) -> list[Protocol]:
    """Return the readings that some results have, in the order of the table."""
    found = {Protocol(*row) for row in results[["when", "init", "labels"]].itertuples(index=False)}
    order = [list(_WHEN), list(_INIT), list(_LABELS)]
    return sorted(found, key=lambda protocol: [names.index(name) for names, name in zip(order, protocol, strict=True)])


def values(
    results: pd.DataFrame, protocol: Protocol, intervention: str, metric: str, strength: str = "paper"
) -> pd.Series:
    """Return a metric of a case by seed; empty where it was not run.

    The control is modified neither in training nor at sampling: where the CGN is trained, it is one for both.
    """
    when = "training" if (protocol.when, intervention) == ("both", "none") else protocol.when
    case = {**protocol._asdict(), "when": when, "intervention": intervention, "strength": strength}
    rows = results[(results[list(case)] == pd.Series(case)).all(axis=1)]
    return rows.set_index("seed")[metric].dropna().astype(float).sort_index()


def cells(results: pd.DataFrame, command: str = "") -> pd.DataFrame:
    """Return Table 1 as `tables.Table` takes it: a row for each protocol, intervention and column.

    Args:
        results: a row a case and seed: `when`, `init`, `labels`, `intervention`, `strength`, `seed`, and the metrics.
        command: what makes missing cases.
    """
    rows = []
    for protocol in protocols(results):
        for intervention, title in INTERVENTIONS.items():
            place = {"protocol": str(protocol), "intervention": title}
            published = PAPER.get(intervention)
            if published is None and values(results, protocol, intervention, "train_accuracy").empty:
                continue  # neither in the paper nor here
            text = f"{published.train:.4g} / {published.test:.4g}" if published else ""
            rows.append({**place, "quantity": "paper", "text": text, "n": 0, "command": ""})
            for metric, name in _COLUMNS.items():
                measured = values(results, protocol, intervention, metric)
                if measured.empty:
                    rows.append({**place, "quantity": name, "n": 0, "text": "no finished run", "command": command})
                    continue
                interval = mean_interval(measured.tolist())._asdict()
                text = interval_text(measured.tolist(), ".1f", 100)
                rows.append({**place, "quantity": name, **interval, "text": text, "command": ""})
    columns = ["protocol", "intervention", "quantity", "mean", "low", "high", "n", "command", "text"]
    return pd.DataFrame(rows, columns=columns)


def table_1(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Return Table 1: paper beside ours, for every protocol that has runs.

    Args:
        store: the run store.
        dataset: what the CGNs and classifiers learnt from.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    results = chosen(store, dataset, profile)
    title = f"Table 1: classifiers trained on counterfactuals with modified masks, {view.dataset_title(dataset)}"
    command = view.command(EXPERIMENT, dataset, None, profile)
    if results.empty:
        place = {"protocol": "any", "intervention": "any", "quantity": "test", "n": 0}
        filled = pd.DataFrame([{**place, "text": "no finished run", "command": command}])
        return Table(title, filled, (_READING,), ("protocol", "intervention"), "quantity")
    notes = (_READING, _provenance(results), *verdict(results))
    return Table(_titled(title, results), cells(results, command), notes, ("protocol", "intervention"), "quantity")


def figure_3(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw Fig. 3: masks with noise, rotation and transparency, and the images they compose.

    Modified at sampling, and as they come out of a CGN that was trained on modified masks.

    Args:
        store: the run store.
        dataset: what the CGNs learnt from.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Fig. 3: modified shape masks and the images that they compose, {view.dataset_title(dataset)}"
    results = chosen(store, dataset, profile)
    results = results[
        (results["labels"] == "permuted") & (results["strength"] == "paper") & (results["when"] != "both")
    ]
    if results.empty:
        return style.gap(title, view.command(EXPERIMENT, dataset, None, profile))
    names = {"none": "unmodified", "noise": "noise", "rotation": "rotation", "transparency": "× 0.75"}
    blocks, shown, lines = [], [], []
    for letter, protocol in zip("abc", protocols(results), strict=False):
        rows = {}
        for intervention, name in names.items():
            run = _first(results, protocol, intervention)
            if run is None:
                continue
            tensors = store.load_tensors(run["run_id"], "samples")
            rows[f"({letter}) {name}" if not rows else name] = to_float(tensors["mask"]).expand(-1, 3, -1, -1)
            rows[" " * len(rows)] = to_float(tensors["images"])
            shown.append(run)
        if rows:
            count = len(next(iter(rows.values())))
            blocks.append(Block(rows, {} if blocks else {"shape": range(count)}))
            lines.append(f"({letter}) masks modified {_WHEN[protocol.when]}{_INIT[protocol.init]}")
    caption = f"{'; '.join(lines)}. Same noise and labels within a column. {_provenance(pd.DataFrame(shown))}"
    return style.cite(style.sheet(blocks, _titled(title, results), caption), [run["run_id"] for run in shown])


def transparency_curve(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw what the classifier makes of masks at a quarter to the whole of their value (Sec. 4.4).

    Args:
        store: the run store.
        dataset: what the CGNs and classifiers learnt from.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = f"Classifier accuracy by transparency of the masks, {view.dataset_title(dataset)}"
    results = chosen(store, dataset, profile)
    curves = [
        (protocol, list(transparencies(results, protocol)))
        for protocol in protocols(results)
        if protocol.labels == "permuted"
    ]
    curves = [(protocol, points) for protocol, points in curves if len(points) > 1]
    if not curves:
        return style.gap(title, view.command(EXPERIMENT, dataset, None, profile))
    drawn = results[results["run_id"].isin({run_id for _, points in curves for _, rows in points for run_id in rows})]
    caption = (
        "Factor on the mask: 1 is the unmodified CGN. Points: means over seeds, set side by side; bars: 95 % Student-t "
        f"intervals. Stars: the paper's Table 1 at 0.75, the CGN paper at 1. {_provenance(drawn)}"
    )
    figure, panels = style.plots(2, _titled(title, results), caption, right=2.9)
    by_run = results.set_index("run_id")
    panel_of = zip(panels, ("valid_accuracy", "train_accuracy"), ("test", "train"), strict=True)
    with style.style():
        for axes, metric, name in panel_of:
            for number, (color, (protocol, points)) in enumerate(zip(style.PALETTE, curves, strict=False)):
                intervals = [mean_interval(by_run.loc[rows, metric].astype(float).tolist()) for _, rows in points]
                means, low, high = (100 * np.array(each) for each in list(zip(*intervals, strict=True))[:3])
                errors = np.nan_to_num(np.stack([means - low, high - means]))
                label = f"{_WHEN[protocol.when]}{_INIT[protocol.init]}"
                aside = _ASIDE * (number - (len(curves) - 1) / 2)
                x = [strength + aside for strength, _ in points]
                axes.errorbar(x, means, errors, color=color, marker="o", markersize=4, capsize=3, label=label)
            stars = [getattr(PAPER[intervention], name) for intervention in ("transparency", "none")]
            axes.plot([PAPER_STRENGTH, 1], stars, "*", color="0.2", markersize=9, label="published", zorder=3)
            axes.axhline(10, color="0.5", linestyle=":", linewidth=1)
            axes.set(title=f"{name} accuracy, %", xlabel="factor on the mask", ylim=(0, 103))
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), title="masks modified", alignment="left")
    return style.cite(figure, drawn["run_id"])


def transparencies(results: pd.DataFrame, protocol: Protocol) -> Iterator[tuple[float, list[str]]]:
    """Yield each transparency that a protocol has, from low to 1, with the ids of its runs."""
    own = results[(results["init"] == protocol.init) & (results["labels"] == protocol.labels)]
    modified = own[(own["when"] == protocol.when) & (own["intervention"] == "transparency")]
    strengths = modified["strength"].replace("paper", str(PAPER_STRENGTH)).astype(float)
    for strength in sorted(strengths.unique()):
        yield strength, modified.loc[strengths == strength, "run_id"].tolist()
    control = own[own["intervention"] == "none"]
    control = control[control["when"] == ("training" if protocol.when == "both" else protocol.when)]
    if len(modified) and len(control):
        yield 1.0, control["run_id"].tolist()


# --- in words


def verdicts(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Listing:
    """Return what Table 1 comes to, a sentence a row; see `verdict`.

    Args:
        store: the run store.
        dataset: what the CGNs and classifiers learnt from.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    results = chosen(store, dataset, profile)
    sentences = verdict(results) or [f"No finished run: {view.command(EXPERIMENT, dataset, None, profile)}"]
    title = f"What Table 1 comes to, {view.dataset_title(dataset)}"
    return Listing(_titled(title, results) if len(results) else title, pd.DataFrame({"verdict": sentences}))


def verdict(results: pd.DataFrame) -> list[str]:
    """Say which protocol gives the pattern of Table 1, and what each modification does when.

    Every sentence follows from the numbers; differences count where their 95 % interval over seeds leaves out 0.

    Args:
        results: see `cells`.
    """
    said = [*_patterns(results), *_by_time(results), *_transparency(results), *_two_way(results)]
    return [sentence for sentence in said if sentence]


def _patterns(results: pd.DataFrame) -> Iterator[str]:
    """Hold each protocol against Table 1: its pattern, which does not depend on scale, and its numbers, which do."""
    published = {name: (PAPER[name].train, PAPER[name].test) for name in ("none", *_TABLE_ROWS)}
    whole, distances, controls = [], {}, {}
    for protocol in protocols(results):
        ours = {name: _means(results, protocol, name) for name in published}
        if any(means is None for means in ours.values()):
            continue
        control = ours["none"][1]
        controls[protocol] = control
        memorised = [
            name
            for name in ("noise", "rotation")
            if ours[name][0] > _MEMORISED * ours[name][1] and control > _MEMORISED * ours[name][1]
        ]
        between = max(ours["noise"][1], ours["rotation"][1]) < ours["transparency"][1] < control
        distances[protocol] = np.mean([np.abs(np.subtract(ours[name], published[name])) for name in published])
        if between and len(memorised) == 2:
            whole.append(protocol)
        yield (
            f"{str(protocol).capitalize()}: {_rows(ours)}. Memorised: {' and '.join(memorised) or 'neither'}; "
            f"transparency {'' if between else 'not '}in between. {distances[protocol]:.0f} points off in the mean."
        )
    if distances:
        nearest = min(distances, key=distances.__getitem__)
        yield (
            f"The paper's pattern (train / test, %: {_rows(published)}) is that noise and rotation are memorised, with "
            f"train more than {_MEMORISED} times test and the control's test more than {_MEMORISED} times theirs, and "
            f"that transparency lies between them and the control. It is given by: "
            f"{'; '.join(map(str, whole)) or 'none of these'}. Nearest in numbers: {nearest}."
        )
        learnt = max((control for each, control in controls.items() if each.labels == "permuted"), default=None)
        if learnt is not None and learnt < _LEARNT * PAPER["none"].test:
            yield (
                f"At this scale no control learns what it could from permuted labels ({learnt:.1f} % in test at best, "
                f"{PAPER['none'].test:.1f} % published): the numbers cannot be held against the paper's."
            )


def _rows(accuracies: Mapping[str, tuple[float, float]]) -> str:
    names = {"none": "control"}
    return ", ".join(f"{names.get(name, name)} {train:.1f} / {test:.1f}" for name, (train, test) in accuracies.items())


def _by_time(results: pd.DataFrame) -> Iterator[str]:
    """Compare each modification in training with the same one at sampling, labels permuted."""
    plain = Protocol("sampling", "none", "permuted")
    for intervention in ("noise", "rotation"):
        at_sampling = values(results, plain, intervention, "valid_accuracy")
        if at_sampling.empty:
            continue
        said = f"at sampling {_percent(at_sampling)}"
        for protocol in protocols(results):
            trained = values(results, protocol, intervention, "valid_accuracy")
            if protocol.when == "sampling" or protocol.labels != "permuted" or trained.empty:
                continue
            said += f"; {_WHEN[protocol.when]}{_INIT[protocol.init]} {_percent(trained)}"
            said += f" ({_difference(trained - at_sampling)})"
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
                f"Sec. 4.4, mask at 0.75 against the whole one, {_WHEN[protocol.when]}{_INIT[protocol.init]}: "
                f"test accuracy {_percent(ours)} against {_percent(control)}: {_difference(ours - control)}."
            )


def _two_way(results: pd.DataFrame) -> Iterator[str]:
    """Say whether the caption's task could have given the numbers of Table 1."""
    for protocol in protocols(results):
        said = []
        for intervention in _TABLE_ROWS:
            held_out = values(results, protocol, intervention, "two_way_accuracy")
            test = values(results, protocol, intervention, "two_way_test_accuracy")
            if len(held_out) and protocol.labels == "permuted":
                said.append(f"{intervention} {100 * held_out.mean():.1f} / {100 * test.mean():.1f}")
        if said:
            yield f"Real or counterfactual (held out / test set taken for real), {protocol}: {', '.join(said)}."


def _means(results: pd.DataFrame, protocol: Protocol, intervention: str) -> tuple[float, float] | None:
    """Mean accuracy in training and in test, in per cent; None where there is no run."""
    measured = [values(results, protocol, intervention, metric) for metric in ("train_accuracy", "valid_accuracy")]
    return None if any(each.empty for each in measured) else (100 * measured[0].mean(), 100 * measured[1].mean())


def _percent(measured: pd.Series) -> str:
    return f"{100 * measured.mean():.1f} %"


def _difference(paired: pd.Series) -> str:
    """Put a difference, paired by seed, into words."""
    if paired.dropna().empty:
        return "no pair of seeds"
    mean, low, high, n = mean_interval((100 * paired.dropna()).tolist())
    if n == 1:
        return f"{mean:+.1f} points, one seed only"
    word = "not told apart" if low <= 0 <= high else "higher" if mean > 0 else "lower"
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}], n={n}: {word}"


def _first(results: pd.DataFrame, protocol: Protocol, intervention: str) -> pd.Series | None:
    """Return the run of the lowest seed; None where there is none."""
    case = {**protocol._asdict(), "intervention": intervention}
    rows = results[(results[list(case)] == pd.Series(case)).all(axis=1)].sort_values("seed")
    return None if rows.empty else rows.iloc[0]


def _titled(title: str, results: pd.DataFrame) -> str:
    note = view.stand_in_note(results.iloc[0])
    return f"{title} ({note})" if note else title


def _provenance(shown: pd.DataFrame) -> str:
    """Where numbers come from: profile, sizes, seeds, teacher."""
    first = shown.iloc[0]
    seeds = sorted(shown["seed"].unique())
    parts = [f"{len(shown)} runs, profile {first['profile']}", f"{_numbers(shown, 'images')} counterfactuals a case"]
    steps = _numbers(shown, "training.steps")
    parts += [f"CGNs trained for {steps} steps"] if steps else []
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    stand_in = " (stand-in)" if first["stand_in"] else ""
    return f"{', '.join(parts)}; teacher: {first['teacher']}{stand_in}."


def _numbers(shown: pd.DataFrame, parameter: str) -> str:
    """Name the values that a parameter has among some runs."""
    found = pd.to_numeric(shown.get(f"param/{parameter}", pd.Series(dtype=float)), errors="coerce").dropna()
    return " or ".join(f"{int(value):,}" for value in sorted(found.unique()))
