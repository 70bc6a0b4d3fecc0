"""The paper's baseline for ImageNet, a CGN of TinyGANs: Fig. 8, 9 and 10, and a table beside CGN and SKDCGN."""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.frame import caption, style
from analysis.frame.style import Block
from analysis.frame.table import READING, Quantity, Table, cell
from analysis.frame.view import View, split
from skdcgn.images import fit_resolution
from skdcgn.mechanisms import Mechanism

EXPERIMENT = "baseline_cgn_tinygan"

SOURCES = {"cgn": "CGN", "skdcgn": "SKDCGN", "baseline": "baseline"}
"""What counterfactuals are composed by, and what it is called."""

_SHOWN = 4  # inputs of Fig. 9

_ROWS = {
    "premask": "premask",
    "mask": "mask m",
    "texture": "texture f",
    "background": "background b",
    "image": "image x_gen",
    "target": "target x_gt",
}

_HELD_OUT = {
    "l1": "L1",
    "ssim": "SSIM",
    "frechet": "Fréchet distance",
    "reconstruction": "L1 of x_gen and x_gt",
    "mask_entropy": "entropy of the mask",
    "mask_share": "its share of the image",
    "background_saliency": "saliency of the background",
}

_FEATURES = {"vgg16": "VGG16", "random": "a small untrained net, in place of VGG16", "none": "none"}

_QUANTITIES = (
    Quantity("Fréchet distance of counterfactuals to the CGN's ↓", "final/frechet_counterfactual", ".2f"),
    Quantity("Inception score ↑", "final/inception_score", ".2f"),
    Quantity("variation within a class, by features ↑", "final/variation_counterfactual", ".2f"),
    Quantity("high-frequency energy over BigGAN's (1: as natural)", "final/noise_energy", ".2f"),
    Quantity("share of the image that is mask", "final/mask_share", ".3f"),
    Quantity("share of mask pixels between 0.1 and 0.9 ↓", "final/mask_grey", ".3f"),
    Quantity("share of masks below 0.1 or above 0.9 of the image ↓", "final/mask_collapsed", ".3f"),
    *(
        Quantity(
            f"variation of the {mechanism} within a class, by pixels ↑", f"final/pixel_variation_{mechanism}", ".3f"
        )
        for mechanism in Mechanism
    ),
    *(Quantity(f"parameters, {m}", f"final/parameters_{m}", ",.0f", counted=True) for m in Mechanism),
)


def figure_8(view: View) -> dict[str, Figure]:
    """Draw Fig. 8 a and b: BigGAN over the baseline's TinyGAN after the first and after the last epoch.

    Returns:
        The figures by file name. Where there is no run, they show the command that makes one.
    """
    run, kept = _kept(view, "tinygan", "samples")
    figures = {}
    for letter, when in (("a", "first"), ("b", "last")):
        title = f"Fig. 8{letter}: unconstrained BigGAN over the baseline's TinyGAN after the {when} epoch"
        if run is None:
            figures[f"figure_8{letter}"] = style.gap(title, view.command(EXPERIMENT, stage="tinygan"))
            continue
        step = min(kept) if letter == "a" else max(kept)
        samples = view.store.load_tensors(run["run_id"], kept[step])
        rows = {"BigGAN": samples["teacher"], "TinyGAN": samples["student"]}
        epochs = run.get("param/recipe.epochs", "?")
        below = (
            f"Same noise and label in both rows, never seen in training; {step:,} steps, epoch "
            f"{1 if letter == 'a' else epochs} of {epochs}. {_measured(view, run, step)} {caption.provenance(run)}"
        )
        sheet = style.sheet(style.blocks(rows, {"label": samples["labels"]}), caption.title(title, run), below)
        figures[f"figure_8{letter}"] = style.cite(sheet, [run["run_id"]])
    return figures


def figure_9(view: View) -> Figure:
    """Draw Fig. 9: the baseline's mechanisms over its training, evenly spaced from its start (left) to its end."""
    title = "Fig. 9: the baseline's mechanisms over its training, from left to right"
    run, kept = _kept(view, "cgn", "mechanisms")
    if run is None:
        return style.gap(title, view.command(EXPERIMENT, stage="cgn"))
    snapshots = {step: view.store.load_tensors(run["run_id"], name) for step, name in sorted(kept.items())}
    across = max(1, style.COLUMNS // len(snapshots))  # inputs side by side
    blocks = []
    for start in range(0, min(_SHOWN, len(next(iter(snapshots.values()))["labels"])), across):
        shown = {step: {k: v[start : start + across] for k, v in t.items()} for step, t in snapshots.items()}
        rows = {
            row: torch.cat([_picture(name, tensors[name]) for tensors in shown.values()]) for name, row in _ROWS.items()
        }
        count = len(next(iter(shown.values()))["labels"])
        header = {
            "batches": [text for step in shown for text in (f"{step:,}", *[""] * (count - 1))],
            "label": [label for tensors in shown.values() for label in tensors["labels"].tolist()],
        }
        blocks.append(Block(rows, header))
    below = (
        "Every group of columns has the same noise and labels. All mechanisms start as copies of one TinyGAN, whose "
        f"own picture is the target. Features of the style losses: {_FEATURES.get(run.get('perceptual'), 'unknown')}. "
        f"{_measured(view, run, max(kept))} {caption.provenance(run)}"
    )
    return style.cite(style.sheet(blocks, caption.title(title, run), below), [run["run_id"]])


def figure_10(view: View) -> Figure:
    """Draw Fig. 10: the baseline's counterfactuals, over those of SKDCGN and CGN where these were drawn as well."""
    title = "Fig. 10: counterfactuals of the baseline"
    found = {source: runs.iloc[0] for source, runs in reversed(counterfactuals(view).items()) if len(runs)}
    if "baseline" not in found:
        return style.gap(title, view.command(EXPERIMENT, stage="counterfactuals"))
    run = found["baseline"]
    drawn = {
        source: view.store.load_tensors(one["run_id"], "counterfactuals")
        for source, one in found.items()
        if one["teacher_sha256"] == run["teacher_sha256"]
    }
    ours = drawn.pop("baseline")
    side = ours["reference"].shape[-1]
    rows = {
        "baseline": fit_resolution(ours["image"], side),
        "mask": _picture("mask", fit_resolution(ours["mask"], side)),
        **{SOURCES[source]: fit_resolution(tensors["image"], side) for source, tensors in drawn.items()},
    }
    header = {mechanism.value: ours[f"labels_{mechanism}"] for mechanism in Mechanism}
    below = (
        "Same noise and labels in all rows; above, the label of each mechanism. The mask is the baseline's. "
        f"{caption.provenance(run)}"
    )
    sheet = style.sheet(style.blocks(rows, header), caption.title(title, run), below)
    return style.cite(sheet, [found[source]["run_id"] for source in ("baseline", *drawn)])


def comparison(view: View) -> Table:
    """Compare the baseline's counterfactuals with those of CGN and SKDCGN."""
    shown, own = counterfactuals(view), view.command(EXPERIMENT, stage="counterfactuals")
    commands = {"skdcgn": f"{view.command('imagenet_kd')} && {own}"}  # which needs its students first
    cells = [
        cell(runs, quantity, commands.get(source, own), source=SOURCES[source])
        for quantity in _QUANTITIES
        for source, runs in shown.items()
    ]
    notes = (
        READING,
        "The CGN's counterfactuals that all are compared with were drawn with another seed, so that its own distance "
        "shows what chance alone makes.",
        *caption.origins({SOURCES[source]: runs for source, runs in shown.items()}, runs=True),
    )
    title = caption.title("Counterfactuals of the baseline beside those of CGN and SKDCGN", *shown.values())
    return Table.of(title, cells, notes, ("quantity",), "source")


def counterfactuals(view: View) -> dict[str, pd.DataFrame]:
    """Return the runs that measured the counterfactuals of each source, a row a seed, all of one profile."""
    return split(view.chosen(EXPERIMENT, by={"source": list(SOURCES)}, kind="counterfactuals"), "source", SOURCES)


def _kept(view: View, kind: str, name: str) -> tuple[pd.Series | None, dict[int, str]]:
    """Return the run of a kind to show, and by step the names of the tensors `<name>_<step>` that it kept."""
    run = view.only(EXPERIMENT, kind=kind)
    return run, {} if run is None else view.kept(run, name)


def _picture(name: str, images: Tensor) -> Tensor:
    return Mechanism.SHAPE.to_image(images, 3) if name == "mask" else images


def _measured(view: View, run: pd.Series, step: int) -> str:
    """Return a sentence with the held-out metrics of a run at a step."""
    history = view.history(run.to_frame().T, "heldout/")
    values = history[history["step"] == step].set_index("key")["value"]
    parts = [f"{name} {values[f'heldout/{key}']:.3g}" for key, name in _HELD_OUT.items() if f"heldout/{key}" in values]
    return f"Held out, then: {', '.join(parts)}." if parts else ""
