"""CGNs that were trained here: a teacher beside its authors' own, and the baseline with TinyGAN generators."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis.frame import style, view
from analysis.frame.style import Block, interval_text
from analysis.frame.table import Table
from skdcgn.measure.statistics import mean_interval
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store

EXPERIMENTS = {"ours": "train_cgn_mnist", "baseline": "baseline_mnist"}
"""Whose CGN: the experiment that trains it. The authors' own is measured along with ours."""

_TITLES = {"authors": "the authors' CGN", "ours": "our CGN", "baseline": "CGN with TinyGANs (baseline)"}
_QUANTITIES = {
    "valid_accuracy": ("classifier from its counterfactuals, last 10,000 of MNIST-train (%) ↑", ".1f", 100),
    "test_accuracy": ("the same, MNIST-test (%) ↑", ".1f", 100),
    "stroke_iou": ("IoU of masks with the nearest real stroke ↑", ".3f", 1),
    "stroke_iou_of_real": ("the same of held-out real strokes", ".3f", 1),
}
_ROWS = {
    "mask": "mask",
    "texture": "texture",
    "background": "background",
    "image": "image",
    "counterfactual": "permuted",
}
"""Tensors of a run, and what their row is called."""
_COLUMNS = 10


def table(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Compare CGNs by the classifiers that learn from their counterfactuals, and by their masks.

    Args:
        store: the run store.
        dataset: the variant that they learnt.
        profile: of the runs; by default the widest one that has any.
    """
    found = {who: chosen(store, who, dataset, profile) for who in EXPERIMENTS}
    cells, notes = [], []
    for key, (quantity, form, scale) in _QUANTITIES.items():
        for who in _TITLES:
            trained, metric = ("ours", f"authors_{key}") if who == "authors" else (who, key)
            of_runs = found[trained]
            values = of_runs.get(f"final/{metric}", pd.Series(dtype=float)).dropna().tolist()
            command = "" if len(of_runs) else view.command(EXPERIMENTS[trained], dataset, None, profile)
            text = interval_text(values, form, scale) if values else "no finished run" if command else "not measured"
            numbers = mean_interval(values)._asdict() if values else {"n": 0}
            cells.append(
                {"quantity": quantity, "cgn": _TITLES[who], "metric": metric, "command": command, "text": text}
            )
            cells[-1] |= numbers
    for who, of_runs in found.items():
        if len(of_runs):
            first = of_runs.iloc[0]
            notes.append(
                f"{_TITLES[who]}: profile {first['profile']}, {int(first['param/training.steps']):,} steps, perceptual "
                f"loss: {first['perceptual']}; classifier on {int(first['param/counterfactuals']):,} counterfactuals, "
                f"{first['param/classifier.epochs']} epochs; n = {len(of_runs)} (runs "
                f"{', '.join(of_runs['run_id'].str[:8])}); on {first['hardware']}."
            )
    notes.insert(
        0,
        "Means over seeds with their 95 % Student-t interval and n; the authors' weights are one CGN, and n "
        "there counts sets of counterfactuals and classifiers.",
    )
    return Table(
        f"CGNs trained here beside the authors' own, {view.dataset_title(dataset)}{_remark(found)}",
        pd.DataFrame(cells),
        tuple(notes),
        ("quantity",),
        "cgn",
    )


def figure(store: Store, dataset: str = "double_colored", profile: str | None = None) -> dict[str, Figure]:
    """Draw samples of each mechanism: the authors' CGN and ours on the same noise, and the baseline.

    Returns:
        Figures `teacher` and `baseline`; a gap where there is no run.
    """
    figures = {}
    for who, experiment in EXPERIMENTS.items():
        title = f"{_TITLES[who][0].upper()}{_TITLES[who][1:]}, trained here: {view.dataset_title(dataset)}"
        of_runs = chosen(store, who, dataset, profile)
        name = "teacher" if who == "ours" else who
        if of_runs.empty:
            figures[name] = style.gap(title, view.command(experiment, dataset, None, profile))
            continue
        run = of_runs.iloc[0]
        tensors = store.load_tensors(run["run_id"], "samples")
        prefixes = {"ours": "ours_", "authors": "authors_"} if who == "ours" else {"baseline": ""}
        blocks = [
            Block(_rows(tensors, prefix), {whose: range(_COLUMNS)})
            for whose, prefix in prefixes.items()
            if f"{prefix}mask" in tensors
        ]
        caption = (
            "One sample of each class; in the last row the labels of texture and background are permuted. Seed "
            f"{run['seed']}, the lowest; profile {run['profile']}, {int(run['param/training.steps']):,} steps."
        )
        figures[name] = style.cite(style.sheet(blocks, title + _remark({who: of_runs}), caption), [run["run_id"]])
    return figures


def chosen(store: Store, who: str, dataset: str, profile: str | None = None) -> pd.DataFrame:
    """Return the runs that stand for one of `EXPERIMENTS`, a row a seed."""
    find = view.finished_groups if who == "ours" else view.finished_runs
    return view.newest(find(store, EXPERIMENTS[who]), {"dataset": dataset}, profile)


def _rows(tensors: Mapping, prefix: str) -> dict:
    rows = {title: tensors[f"{prefix}{name}"][:_COLUMNS] for name, title in _ROWS.items()}
    return rows | {"mask": Mechanism.SHAPE.to_image(rows["mask"], 3)}


def _remark(found: Mapping[str, pd.DataFrame]) -> str:
    remarks = [view.stand_in_note(of_runs.iloc[0]) for of_runs in found.values() if len(of_runs)]
    text = "; ".join(dict.fromkeys(filter(None, remarks)))
    return f" ({text})" if text else ""
