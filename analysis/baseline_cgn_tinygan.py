"""The paper's baseline for ImageNet, a CGN of TinyGANs: Fig. 8, 9 and 10, and a table beside CGN and SKDCGN."""

import re

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.frame import style, view
from analysis.frame.style import Block
from analysis.frame.table import Table
from skdcgn.images import fit_resolution
from skdcgn.measure import statistics
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store

EXPERIMENT = "baseline_cgn_tinygan"
"""The experiment of all three stages."""

SOURCES = {"cgn": "CGN", "skdcgn": "SKDCGN", "baseline": "baseline"}
"""What counterfactuals are composed by, and what it is called."""

_COLUMNS = 10  # images in a row of a sheet
_SHOWN = 4  # inputs of Fig. 9

_ROWS = {
    "premask": "premask",
    "mask": "mask m",
    "texture": "texture f",
    "background": "background b",
    "image": "image x_gen",
    "target": "target x_gt",
}

_QUANTITIES = {
    "frechet_counterfactual": ("Fréchet distance of counterfactuals to the CGN's ↓", ".2f"),
    "inception_score": ("Inception score ↑", ".2f"),
    "variation_counterfactual": ("variation within a class, by features ↑", ".2f"),
    "noise_energy": ("high-frequency energy over BigGAN's (1: as natural)", ".2f"),
    "mask_share": ("share of the image that is mask", ".3f"),
    "mask_grey": ("share of mask pixels between 0.1 and 0.9 ↓", ".3f"),
    "mask_collapsed": ("share of masks below 0.1 or above 0.9 of the image ↓", ".3f"),
    **{
        f"pixel_variation_{mechanism}": (f"variation of the {mechanism} within a class, by pixels ↑", ".3f")
        for mechanism in Mechanism
    },
    **{f"parameters_{mechanism}": (f"parameters, {mechanism}", ",.0f") for mechanism in Mechanism},
}


def figure_8(store: Store, profile: str | None = None) -> dict[str, Figure]:
    """Draw Fig. 8 a and b: BigGAN over the baseline's TinyGAN after the first and after the last epoch.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.

    Returns:
        The figures by their letters. Where there is no run, they show the command that makes one.
    """
    run, kept = _kept(store, "tinygan", "samples", profile)
    figures = {}
    for letter, when in (("a", "first"), ("b", "last")):
        title = f"Fig. 8{letter}: unconstrained BigGAN over the baseline's TinyGAN after the {when} epoch"
        if run is None:
            figures[letter] = style.gap(title, command("tinygan", profile))
            continue
        step = min(kept) if letter == "a" else max(kept)
        samples = store.load_tensors(run["run_id"], kept[step])
        blocks = [
            Block(
                {"BigGAN": samples["teacher"][index], "TinyGAN": samples["student"][index]},
                {"label": samples["labels"][index].tolist()},
            )
            for index in _columns(len(samples["labels"]))
        ]
        epochs = run.get("param/recipe.epochs", "?")
        caption = (
            f"Same noise and label in both rows, never seen in training; {step:,} steps, epoch "
            f"{1 if letter == 'a' else epochs} of {epochs}. {_measured(store, run, step)} {_provenance(run)}"
        )
        figures[letter] = style.cite(style.sheet(blocks, _titled(title, run), caption), [run["run_id"]])
    return figures


def figure_9(store: Store, profile: str | None = None) -> Figure:
    """Draw Fig. 9: the baseline's mechanisms over its training, evenly spaced from its start (left) to its end.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = "Fig. 9: the baseline's mechanisms over its training, from left to right"
    run, kept = _kept(store, "cgn", "mechanisms", profile)
    if run is None:
        return style.gap(title, command("cgn", profile))
    snapshots = {step: store.load_tensors(run["run_id"], name) for step, name in sorted(kept.items())}
    across = max(1, _COLUMNS // len(snapshots))  # inputs side by side
    blocks = []
    for start in range(0, min(_SHOWN, len(next(iter(snapshots.values()))["labels"])), across):
        shown = {step: {k: v[start : start + across] for k, v in t.items()} for step, t in snapshots.items()}
        rows = {
            title: torch.cat([_picture(name, tensors[name]) for tensors in shown.values()])
            for name, title in _ROWS.items()
        }
        count = len(next(iter(shown.values()))["labels"])
        header = {
            "batches": [text for step in shown for text in (f"{step:,}", *[""] * (count - 1))],
            "label": [label for tensors in shown.values() for label in tensors["labels"].tolist()],
        }
        blocks.append(Block(rows, header))
    caption = (
        "Every group of columns has the same noise and labels. All mechanisms start as copies of one TinyGAN, whose "
        f"own picture is the target. Features of the style losses: {_features(run)}. "
        f"{_measured(store, run, max(kept))} {_provenance(run)}"
    )
    return style.cite(style.sheet(blocks, _titled(title, run), caption), [run["run_id"]])


def figure_10(store: Store, profile: str | None = None) -> Figure:
    """Draw Fig. 10: the baseline's counterfactuals, over those of SKDCGN and CGN where these were drawn as well.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = "Fig. 10: counterfactuals of the baseline"
    found = {source: _newest(store, "counterfactuals", profile, source) for source in reversed(SOURCES)}
    run = found["baseline"]
    if run is None:
        return style.gap(title, command("counterfactuals", profile))
    drawn = {}
    for source, one in found.items():
        if one is not None and one["teacher_sha256"] == run["teacher_sha256"]:
            drawn[source] = store.load_tensors(one["run_id"], "counterfactuals")
    ours = drawn["baseline"]
    side = ours["reference"].shape[-1]
    rows = {"mask": _picture("mask", fit_resolution(ours["mask"], side))}
    rows = {"baseline": fit_resolution(ours["image"], side)} | rows
    rows |= {SOURCES[name]: fit_resolution(t["image"], side) for name, t in drawn.items() if name != "baseline"}
    blocks = [
        Block(
            {name: images[index] for name, images in rows.items()},
            {mechanism.value: ours[f"labels_{mechanism}"][index].tolist() for mechanism in Mechanism},
        )
        for index in _columns(len(ours["image"]))
    ]
    caption = (
        "Same noise and labels in all rows; above, the label of each mechanism. The mask is the baseline's. "
        f"{_provenance(run)}"
    )
    cited = [one["run_id"] for one in found.values() if one is not None]
    return style.cite(style.sheet(blocks, _titled(title, run), caption), cited)


def comparison(store: Store, profile: str | None = None) -> Table:
    """Compare the baseline's counterfactuals with those of CGN and SKDCGN.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    finished = view.finished_runs(store, EXPERIMENT)
    chosen = {
        source: view.newest(finished, {"stage": "counterfactuals", "source": source}, profile) for source in SOURCES
    }
    cells = []
    for metric, (quantity, form) in _QUANTITIES.items():
        for source, title in SOURCES.items():
            shown = chosen[source]
            values = shown[f"final/{metric}"].dropna().tolist() if f"final/{metric}" in shown else []
            cell = {"quantity": quantity, "metric": metric, "source": title, "n": 0, "command": ""}
            if values:
                counted = metric.startswith("parameters")
                text = format(values[0], form) if counted else style.interval_text(values, form)
                cell |= statistics.mean_interval(values)._asdict() | {"text": text}
            elif shown.empty:
                cell |= {"command": _missing(source, profile), "text": "no finished run"}
            else:
                cell["text"] = "not measured"
            cells.append(cell)
    title = "Counterfactuals of the baseline beside those of CGN and SKDCGN"
    notes = [
        "Means over seeds with their 95 % Student-t interval and n. The CGN's counterfactuals that all are held "
        "against were drawn with another seed, so that its own distance shows what chance alone makes."
    ]
    for source, shown in chosen.items():
        if not shown.empty:
            first = shown.iloc[0]
            notes.append(f"{SOURCES[source]}: {_provenance(first)}")
            if source == "baseline":
                title = _titled(title, first)
    return Table(title, pd.DataFrame(cells), tuple(notes), ("quantity",), "source")


def command(stage: str, profile: str | None = None) -> str:
    """Return the command that makes the runs of a stage."""
    return f"{view.command(EXPERIMENT, profile=profile)} --stage {stage}"


def _missing(source: str, profile: str | None) -> str:
    """The command that makes a source's missing run: SKDCGN's needs its students first."""
    own = command("counterfactuals", profile)
    return f"{view.command('imagenet_kd', profile=profile)} && {own}" if source == "skdcgn" else own


def _newest(store: Store, stage: str, profile: str | None, source: str = "baseline") -> pd.Series | None:
    """Return the run of a stage to show: that of the lowest seed, not the best one."""
    chosen = view.newest(view.finished_runs(store, EXPERIMENT), {"stage": stage, "source": source}, profile)
    return None if chosen.empty else chosen.iloc[0]


def _kept(store: Store, stage: str, name: str, profile: str | None) -> tuple[pd.Series | None, dict[int, str]]:
    """Return the run of a stage to show, and by step the names of the tensors `<name>_<step>` that it kept."""
    run = _newest(store, stage, profile)
    if run is None:
        return None, {}
    files = [file.path for file in store.client.list_artifacts(run["run_id"])]
    found = [re.fullmatch(rf"({name}_(\d+))\.safetensors", file) for file in files]
    return run, {int(match[2]): match[1] for match in found if match}


def _picture(name: str, images: Tensor) -> Tensor:
    return Mechanism.SHAPE.to_image(images, 3) if name == "mask" else images


def _columns(count: int) -> list[slice]:
    return [slice(start, start + _COLUMNS) for start in range(0, count, _COLUMNS)]


def _titled(title: str, run: pd.Series) -> str:
    """Say in the title in what way a run is less than the paper's experiment."""
    notes = []
    if run["stand_in"]:
        notes.append("miniature at 32x32, a stand-in for ImageNet")
    if run["profile"] == "smoke":
        notes.append("smoke test, a few training steps")
    if run.get("perceptual") == "none":
        notes.append("no perceptual loss: VGG16 was not at hand")
    return f"{title} ({'; '.join(notes)})" if notes else title


def _features(run: pd.Series) -> str:
    """Name the features of the style losses."""
    names = {"vgg16": "VGG16", "random": "a small untrained net, in place of VGG16", "none": "none"}
    return names.get(run.get("perceptual"), "unknown")


def _measured(store: Store, run: pd.Series, step: int) -> str:
    """The held-out metrics of a run at a step."""
    names = {
        "l1": "L1",
        "ssim": "SSIM",
        "frechet": "Fréchet distance",
        "reconstruction": "L1 of x_gen and x_gt",
        "mask_entropy": "entropy of the mask",
        "mask_share": "its share of the image",
        "background_saliency": "saliency of the background",
    }
    history = view.metric_history(store, run["run_id"], ["heldout/"])
    values = history[history["step"] == step].set_index("key")["value"]
    parts = [f"{name} {values[f'heldout/{key}']:.3g}" for key, name in names.items() if f"heldout/{key}" in values]
    return f"Held out, then: {', '.join(parts)}." if parts else ""


def _provenance(run: pd.Series) -> str:
    """Where a figure comes from."""
    stand_in = " (stand-in)" if run["stand_in"] else ""
    return (
        f"Run {run['run_id'][:8]}, profile {run['profile']}, seed {run['seed']}; target and teacher: {run['teacher']}"
        f"{stand_in}."
    )
