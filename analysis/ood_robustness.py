"""Out-of-distribution robustness: classifiers by the images that they learnt from, beside published accuracies."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.frame import published as published_numbers
from analysis.frame import style, view
from analysis.frame.style import Block, interval_text
from analysis.frame.table import Table
from skdcgn.images import to_float
from skdcgn.measure.statistics import mean_interval
from skdcgn.runs.store import Store

EXPERIMENT = "ood_robustness"

SOURCES = {
    "original": "original",
    "gan": "GAN",
    "cgn": "CGN",
    "skdcgn": "SKDCGN",
    "skdcgn_published": "SKDCGN 64x64",
    "baseline": "baseline",
}
"""Sources of training images, and what they are called."""

TESTS = {
    "valid": "last 10,000 of MNIST-train",
    "test": "MNIST-test",
    "valid_drifted": "last 10,000, drifted",
    "test_drifted": "MNIST-test, drifted",
}
"""Test sets, and what they are called."""

_PUBLISHED = {"cgn_paper": "CGN paper (train / test)", "replication": "replication (train / test)"}
_READING = (
    "Accuracy in per cent of the invariant classifier: means over seeds with their 95 % Student-t interval and n, the "
    "number of seeds. Every source gives as many images. In the test sets colours or textures are random; the "
    "published accuracies are on the last 10,000 of MNIST-train. Where stroke and background of a test image have one "
    "colour, one in ten of double-colored MNIST, its digit cannot be seen."
)
_DRIFT = (
    "Drifted: the CGN authors' loader adds each image's noise to the colour table itself, so that colours wander, and "
    "stroke and background of one colour soon differ."
)


def table(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Compare classifiers by the source of their training images, beside published accuracies.

    Args:
        store: the run store.
        dataset: the MNIST variant.
        profile: of the runs; by default the first of `runs.PROFILES` that has any, the same for all sources.
    """
    shown = chosen(store, dataset, profile)
    of_profile = profile or next((of_runs["profile"].iloc[0] for of_runs in shown.values() if len(of_runs)), None)
    drifting = any("final/test_drifted_accuracy" in of_runs for of_runs in shown.values())
    tests = {name: title for name, title in TESTS.items() if drifting or not name.endswith("drifted")}
    cells = []
    for source, of_runs in shown.items():
        for who, title in _PUBLISHED.items():
            accuracy = getattr(published_numbers.robustness(dataset, source), who)
            text = "–" if accuracy is None else f"{accuracy.train:g} / {accuracy.test:g}"
            place = {"source": SOURCES[source], "quantity": title, "metric": "", "n": 0, "command": "", "text": text}
            cells.append(place | ({} if accuracy is None else {"mean": accuracy.test / 100}))
        for name, title in {"train": "train", **tests}.items():
            metric = f"final/{name}_accuracy"
            values = of_runs[metric].dropna().tolist() if metric in of_runs else []
            text = interval_text(values, ".1f", 100) if values else "no finished run" if of_runs.empty else "–"
            numbers = mean_interval(values)._asdict() if values else {"n": 0}
            missing = command(dataset, source, of_profile) if of_runs.empty else ""
            place = {"source": SOURCES[source], "quantity": title, "metric": metric, "command": missing, "text": text}
            cells.append(place | numbers)
    notes = (_READING, *([_DRIFT] if drifting else []), *_origins(shown))
    title = f"Robustness by the source of training images, {view.dataset_title(dataset)}{_remark(shown)}"
    return Table(title, pd.DataFrame(cells), notes, ("source",), "quantity")


def figure(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw test accuracies by source: ours with their intervals, published ones beside them; see `table`."""
    shown = chosen(store, dataset, profile)
    title = f"Accuracy where colours are random, by the source of training images: {view.dataset_title(dataset)}"
    if all(of_runs.empty for of_runs in shown.values()):
        return style.gap(title, command(dataset, None, profile))
    caption = f"Mean over seeds, 95 % interval where there are several. {' '.join(_origins(shown))}"
    drawing, (axes,) = style.plots(1, title + _remark(shown), caption, right=2.6)
    with style.style():
        _draw_published(axes, dataset, shown)
        for index, (name, label) in enumerate(TESTS.items()):
            metric = f"final/{name}_accuracy"
            measured = {
                position: [100 * value for value in of_runs[metric].dropna()]
                for position, of_runs in enumerate(shown.values())
                if metric in of_runs
            }
            _draw_measured(axes, measured, label, index)
        names = [
            f"{SOURCES[source]}\n(no run)" if of_runs.empty else SOURCES[source] for source, of_runs in shown.items()
        ]
        axes.axhline(10, color="0.6", linewidth=1, linestyle=":")
        axes.text(len(names) - 0.55, 10.8, "chance", ha="right", va="bottom", color="0.4", size=8.5)
        axes.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.5), ylim=(0, 100))
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return style.cite(drawing, _run_ids(shown))


def _draw_measured(axes: Axes, measured: Mapping[int, list[float]], label: str, index: int) -> None:
    """Draw the means of one test set with their intervals, a little beside those of the others."""
    positions = [position for position, values in measured.items() if values]
    if not positions:
        return
    intervals = [mean_interval(measured[position]) for position in positions]
    means = np.array([interval.mean for interval in intervals])
    lengths = np.nan_to_num([[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]])
    offset = 0.12 * (index - 1.5)
    axes.errorbar(
        np.array(positions) + offset,
        means,
        yerr=lengths,
        label=f"ours, {label}",
        fmt="os^v"[index],
        color=style.PALETTE[(0, 2, 1, 4)[index]],
        markersize=5,
        capsize=3,
    )


def _draw_published(axes: Axes, dataset: str, shown: Mapping[str, pd.DataFrame]) -> None:
    """Draw the published test accuracies, hollow, left of ours."""
    for who, marker, label in (("cgn_paper", "D", "CGN paper"), ("replication", "P", "its replication")):
        points = [
            (position - 0.32, accuracy.test)
            for position, source in enumerate(shown)
            if (accuracy := getattr(published_numbers.robustness(dataset, source), who)) is not None
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True), marker=marker, s=42, facecolor="none", edgecolor="0.2", label=label
            )


def class_figure(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw the accuracy on MNIST-test by digit and source, the mean over seeds."""
    shown = {source: of_runs for source, of_runs in chosen(store, dataset, profile).items() if len(of_runs)}
    title = f"Accuracy by digit and source of training images: {view.dataset_title(dataset)}"
    if not shown:
        return style.gap(title, command(dataset, None, profile))
    means = [
        torch.stack([store.load_tensors(run_id, "class_accuracy")["test"] for run_id in of_runs["run_id"]]).mean(dim=0)
        for of_runs in shown.values()
    ]
    accuracy = 100 * torch.stack(means).numpy()
    caption = f"MNIST-test with random appearances, per cent, mean over seeds. {' '.join(_origins(shown))}"
    drawing, (axes,) = style.plots(1, title + _remark(shown), caption, right=0.4)
    with style.style():
        axes.imshow(accuracy, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, column in np.ndindex(*accuracy.shape):
            colour = "black" if accuracy[row, column] > 55 else "white"
            axes.text(column, row, f"{accuracy[row, column]:.0f}", ha="center", va="center", color=colour)
        axes.set(xticks=range(accuracy.shape[1]), yticks=range(len(shown)), xlabel="digit")
        axes.set_yticklabels([SOURCES[source] for source in shown])
        axes.grid(visible=False)
    return style.cite(drawing, _run_ids(shown))


def image_sheet(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Figure:
    """Draw what the classifiers of the lowest seed learnt from: two images a class of each source."""
    shown = {source: of_runs for source, of_runs in chosen(store, dataset, profile).items() if len(of_runs)}
    title = f"What the classifiers learn from: {view.dataset_title(dataset)}"
    if not shown:
        return style.gap(title, command(dataset, None, profile))
    blocks = []
    for source, of_runs in shown.items():
        samples = store.load_tensors(of_runs["run_id"].iloc[0], "samples")
        first, second = to_float(samples["pixels"]).chunk(2)
        header = {} if blocks else {"label": samples["labels"][: len(first)].tolist()}
        blocks.append(Block({SOURCES[source]: first, "": second}, header))
    caption = (
        f"Two images of each class, the first and the middle one of each training set. {' '.join(_origins(shown))}"
    )
    return style.cite(style.sheet(blocks, title + _remark(shown), caption), _run_ids(shown))


def chosen(store: Store, dataset: str, profile: str | None = None) -> dict[str, pd.DataFrame]:
    """Return the runs that stand for each source, a row a seed, all of one profile; see `runs.newest`."""
    finished = view.finished_runs(store, EXPERIMENT)
    if "source" in finished:
        finished = finished[(finished["dataset"] == dataset) & finished["source"].isin(list(SOURCES))]
        finished = view.widest(finished, profile)
    return {source: view.newest(finished, {"dataset": dataset, "source": source}) for source in SOURCES}


def command(dataset: str, source: str | None = None, profile: str | None = None) -> str:
    """Return the command that makes missing runs."""
    flags = [f"--profile {profile}"] if profile not in (None, "quick") else []
    flags += [f"--datasets {dataset}"] if dataset != "double_colored" or profile in ("full", "paper") else []
    flags += [f"--sources {source}"] if source else []
    return " ".join([f"python experiments/{EXPERIMENT}.py", *flags])


def _run_ids(shown: Mapping[str, pd.DataFrame]) -> list[str]:
    return [run_id for of_runs in shown.values() for run_id in of_runs["run_id"]]


def _origins(shown: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say how the runs were made: what they share once, and what only some of them have."""
    settings: dict[str, list[str]] = {}
    teachers: dict[str, list[str]] = {}
    shared = []
    for source, of_runs in shown.items():
        if of_runs.empty:
            continue
        first = of_runs.iloc[0]
        setting = (
            f"profile {first['profile']}, {int(first['param/images']):,} images, {first['param/classifier.epochs']} "
            f"epochs, seeds {', '.join(map(str, of_runs['seed']))}, on {first['hardware']}"
        )
        settings.setdefault(setting, []).append(SOURCES[source])
        if first["teacher"] != "none":
            teachers.setdefault(first["teacher"], []).append(SOURCES[source])
        if _shared(source, int(first["param/generators"]), len(of_runs)):
            shared.append(SOURCES[source])
    lines = [f"{', '.join(names)}: {setting}." for setting, names in settings.items()]
    lines += [f"Teacher of {', '.join(names)}: {teacher}." for teacher, names in teachers.items()]
    if shared:
        lines.append(
            f"{', '.join(shared)}: one trained generator for all seeds, whose own chance the interval leaves out."
        )
    return lines


def _shared(source: str, generators: int, seeds: int) -> bool:
    """Whether several seeds drew from one trained generator."""
    own = 1 if source == "skdcgn_published" else generators
    return source not in ("original", "cgn") and own < seeds


def _remark(shown: Mapping[str, pd.DataFrame]) -> str:
    remarks = [view.stand_in_note(of_runs.iloc[0]) for of_runs in shown.values() if len(of_runs)]
    text = "; ".join(dict.fromkeys(filter(None, remarks)))
    return f" ({text})" if text else ""
