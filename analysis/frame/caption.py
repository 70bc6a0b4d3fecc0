"""One caption: the note on stand-ins in a title, the sentence on where numbers come from, and names of metrics."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from analysis.frame import style, view

METRICS: Mapping[str, str] = {
    "iou": "mask IoU ↑",
    "l1": "L1 ↓",
    "ssim": "SSIM ↑",
    "frechet": "Fréchet ↓",
    "noise_energy": "noise energy",
    "steps_to_target": "steps to target ↓",
    "noise_response": "noise response ↑",
    "seen_l1": "L1 on seen noise ↓",
    "seen_iou": "mask IoU on seen noise ↑",
}
"""Names of a student's metrics; the arrow says what is better."""


def name(metric: str) -> str:
    """Return what a sentence calls a metric."""
    return METRICS[metric].strip(" ↑↓")


def title(text: str, *shown: pd.DataFrame | pd.Series, dataset: str | None = None) -> str:
    """Return a title that says in what way the runs shown are less than the paper's experiment.

    Args:
        text: the title.
        shown: runs of one setting each; of some there may be none.
        dataset: to name after the title.

    Raises:
        InputError: there is no such dataset.
    """
    text = f"{text}, {view.dataset_title(dataset)}" if dataset else text
    first = [runs if isinstance(runs, pd.Series) else runs.iloc[0] for runs in shown if len(runs)]
    notes = dict.fromkeys(note for run in first for note in stand_ins(run))
    return f"{text} ({'; '.join(notes)})" if notes else text


def stand_ins(run: pd.Series) -> list[str]:
    """Say, for a title, in what ways a run is less than the paper's experiment."""
    notes = []
    if run["dataset"] == "digits":
        notes.append("stand-in: not MNIST, and a teacher trained here")
    elif run["dataset"] == "miniature":
        notes.append("stand-in: a miniature at 32x32, not ImageNet")
    elif run["stand_in"]:
        notes.append("stand-in teacher")
    if run["profile"] == "smoke":
        notes.append("smoke test, a few training steps")
    if run.get("perceptual") == "none":
        notes.append("no perceptual loss: VGG16 was not available")
    return notes


def provenance(shown: pd.DataFrame | pd.Series, *details: str, runs: bool = True) -> str:
    """Say where numbers come from: runs, profile, length of training, classes of ImageNet, seeds, teacher, hardware.

    Args:
        shown: the runs, of one profile and teacher; or one run.
        details: more about them, between training and seeds.
        runs: whether to name or count them.
    """
    shown = shown.to_frame().T if isinstance(shown, pd.Series) else shown
    first, plural = shown.iloc[0], "s" if len(shown) > 1 else ""
    named = f"run{plural} {', '.join(shown['run_id'].str[:8])}" if len(shown) <= style.FEW else f"{len(shown)} runs"
    parts = [named] if runs else []
    parts.append(f"profile {first['profile']}")
    if "param/distill.steps" in shown and pd.notna(first["mechanism"]):
        steps = sorted({view.steps(run) for _, run in shown.iterrows()})
        parts.append(f"{' and '.join(f'{step:,}' for step in steps)} steps")
    if pd.notna(first.get("classes")):
        parts.append(f"classes {first['classes']}")
    parts += [detail for detail in details if detail]
    seeds = sorted(shown["seed"].dropna().unique())
    if seeds:
        parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    sentence = ", ".join(parts)
    if first.get("teacher") not in (None, "none") and pd.notna(first.get("teacher")):
        sentence += f"; teacher: {first['teacher']}{' (stand-in)' if first['stand_in'] else ''}"
    hardware = shown["hardware"].dropna().unique()
    if len(hardware):
        sentence += f"; on {' and '.join(hardware)}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def origins(
    shown: Mapping[str, pd.DataFrame],
    details: Callable[[pd.DataFrame], Sequence[str]] = lambda _: (),
    runs: bool = False,
) -> list[str]:
    """Say where the numbers of several cases come from, a sentence for each kind of run; see `provenance`.

    Args:
        shown: name of a case to its runs; those without runs are left out.
        details: more about some runs.
        runs: whether to name or count the runs.
    """
    cases: dict[str, list[str]] = {}
    for case, of_case in shown.items():
        if len(of_case):
            cases.setdefault(provenance(of_case, *details(of_case), runs=runs), []).append(case)
    return [f"{', '.join(names)}: {sentence[0].lower()}{sentence[1:]}" for sentence, names in cases.items()]


def fidelity(run: pd.Series, *metrics: str, when: str = "On the whole held-out set") -> str:
    """Return a sentence with the final metrics of the run on show; empty where none was measured.

    Args:
        run: a run.
        metrics: keys of `METRICS`.
        when: what the sentence begins with.
    """
    measured = [metric for metric in metrics if pd.notna(run.get(f"final/{metric}"))]
    numbers = ", ".join(f"{name(metric)} {run[f'final/{metric}']:.3f}" for metric in measured)
    return f"{when}: {numbers}." if measured else ""


def ratio(value: float, reference: float, times: str = "×") -> str:
    """Say how many times larger or smaller a value is than a reference."""
    larger = value > reference
    return f"{value / reference if larger else reference / value:.1f}{times} {'larger' if larger else 'smaller'}"


def number_range(shown: pd.DataFrame, column: str) -> str:
    """Name the values of a numeric column among some runs; empty where there are none."""
    found = pd.to_numeric(shown.get(column, pd.Series(dtype=float)), errors="coerce").dropna()
    return " or ".join(f"{int(value):,}" for value in sorted(found.unique()))
