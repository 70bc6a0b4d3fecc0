"""The paper's figures of SKDCGN on ImageNet (2, 6, 15), drawn from the run store.

Where the CGN authors' weights were not at hand, they show the packaged miniature instead, and their titles say so.
"""

import re

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from analysis.frame import style, view
from analysis.frame.style import Block
from skdcgn.images import PADDING, enlargement, fit_resolution
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store

IMAGENET_KD = "imagenet_kd"
"""The experiment that distils the ImageNet mechanisms."""

_COLUMNS = 10  # images in a row of a sheet
_LETTERS = dict(zip(Mechanism, "abc", strict=True))
_EPOCHS = 30  # of the paper's training


def figure_2(store: Store, profile: str | None = None) -> dict[str, Figure]:
    """Draw Fig. 2 a-c: each mechanism of the teacher over its student, on the same noise, which no training saw.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.

    Returns:
        A figure for each mechanism by file name. Where there is no run, it shows the command that makes one.
    """
    finished = view.finished_runs(store, IMAGENET_KD)
    figures = {}
    for mechanism, letter in _LETTERS.items():
        name = f"figure_2{letter}_{mechanism}"
        title = f"Fig. 2{letter}: {mechanism} mechanism, CGN teacher over SKDCGN student, ImageNet"
        chosen = view.latest(finished, _dataset(finished), mechanism, profile)
        if chosen.empty:
            figures[name] = style.gap(title, _command(mechanism, profile))
            continue
        run = chosen.iloc[0]  # the lowest seed, not the best one
        samples = store.load_tensors(run["run_id"], "samples")
        rows = {row: mechanism.to_image(samples[row], 3) for row in ("teacher", "student")}
        caption = (
            f"Same noise and label in both rows, never seen in training. {_measured(run)} {_provenance(chosen[:1])}"
        )
        sheet = style.sheet(_blocks(rows, {"label": samples["labels"]}), _titled(title, run), caption)
        figures[name] = style.cite(sheet, [run["run_id"]])
    return figures


def figure_6(store: Store, profile: str | None = None) -> dict[str, Figure]:
    """Draw Fig. 6: counterfactuals of SKDCGN over those of the CGN, on the same noise and labels.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = "Fig. 6: counterfactuals, SKDCGN over CGN, ImageNet"
    groups = view.finished_groups(store, IMAGENET_KD)
    kept = [
        any(file.path == "counterfactuals.safetensors" for file in store.client.list_artifacts(run_id))
        for run_id in groups["run_id"]
    ]
    groups = groups[pd.Series(kept, index=groups.index, dtype=bool)]
    groups = view.widest(groups[groups["dataset"] == _dataset(groups)], profile)
    shown = groups.sort_values("start_time", ascending=False, kind="stable").iloc[:1]
    if shown.empty:
        return {"figure_6": style.gap(title, _command(None, profile))}
    run = shown.iloc[0]
    tensors = store.load_tensors(run["run_id"], "counterfactuals")
    rows = {
        "SKDCGN": fit_resolution(tensors["student"], tensors["teacher"].shape[-1]),
        "CGN": tensors["teacher"],
    }
    header = {mechanism.value: tensors[f"labels_{mechanism}"] for mechanism in Mechanism}
    caption = f"Same noise and labels in both rows; above, the label of each mechanism. {_provenance(shown)}"
    return {"figure_6": style.cite(style.sheet(_blocks(rows, header), _titled(title, run), caption), [run["run_id"]])}


def figure_15(store: Store, profile: str | None = None) -> dict[str, Figure]:
    """Draw Fig. 15: masks with KL after epoch 1 of 30 and without it after epoch 23, and the two the other way round.

    Args:
        store: the run store.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    title = "Fig. 15: masks with KL after epoch 1, without after epoch 23, ImageNet"
    finished = view.finished_runs(store, IMAGENET_KD)
    arms = {}
    for name in ("kl", "no_kl"):
        tags = {"dataset": _dataset(finished), "mechanism": Mechanism.SHAPE.value, "objective": name}
        arms[name] = view.newest(finished, tags, profile)
    if any(arm.empty for arm in arms.values()):
        return {"figure_15": style.gap(title, _command(Mechanism.SHAPE, profile))}
    rows = {}
    for name, epoch in (("kl", 1), ("no_kl", 1), ("kl", 23), ("no_kl", 23)):
        teacher, student = _logged_images(store, arms[name].iloc[0], epoch / _EPOCHS)
        rows |= {"teacher": teacher, f"{'KL' if name == 'kl' else 'no KL'}, ep. {epoch}": student}
    shown = pd.concat(arm[:1] for arm in arms.values())
    run = arms["kl"].iloc[0]
    labels = store.load_tensors(run["run_id"], "samples")["labels"]
    values = " and ".join(f"{arm.iloc[0]['final/iou']:.3f}" for arm in arms.values())
    caption = (
        "The paper shows the first and the last of the students' rows; the two between show the other objective after "
        "the same epoch, a 30th of the training. Same noise and labels, never seen in training. Final mask IoU with "
        f"and without KL: {values}. {_provenance(shown)}"
    )
    count = len(rows["teacher"])
    header = {"label": labels[:count].tolist()} if run["dataset"] == "miniature" else {}
    sheet = style.sheet([Block(rows, header)], _titled(title, run), caption)
    return {"figure_15": style.cite(sheet, shown["run_id"])}


def _logged_images(store: Store, run: pd.Series, fraction: float) -> tuple[Tensor, Tensor]:
    """Return teacher's and student's held-out masks (10, 3, H, W), as logged nearest to a fraction of the training."""
    logged = {}
    for file in store.client.list_artifacts(run["run_id"], "images"):
        found = re.match(r"images/shape~teacher over student\+step\+(\d+)\+.*\.png$", file.path)
        if found:
            logged[int(found[1])] = file.path
    wanted = view.steps(run) * fraction
    step = min(logged, key=lambda logged_step: (abs(logged_step - wanted), logged_step))
    with store.artifact(run["run_id"], logged[step]) as path, Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    # Rows of images, the teacher's and the student's in turn, enlarged as `HeldOut.compare` does.
    side = store.load_tensors(run["run_id"], "samples")["teacher"].shape[-1]
    scale, cell = enlargement(side), side + PADDING
    images = pixels[::scale, ::scale][PADDING:, PADDING:].unfold(0, cell, cell).unfold(1, cell, cell)
    images = images[..., :side, :side].float() / 127.5 - 1  # (rows, columns, 3, H, W)
    return images[0::2].flatten(0, 1), images[1::2].flatten(0, 1)


def _dataset(finished: pd.DataFrame) -> str:
    """Return the data set to show: ImageNet where it was ever run, else the miniature."""
    return "imagenet" if (finished["dataset"] == "imagenet").any() else "miniature"


def _command(mechanism: Mechanism | None, profile: str | None) -> str:
    flags = {"--profile": profile if profile != "quick" else None, "--mechanism": mechanism}
    given = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
    return " ".join([f"python experiments/{IMAGENET_KD}.py", *given])


def _blocks(rows: dict[str, Tensor], header: dict[str, Tensor]) -> list[Block]:
    count = min(2 * _COLUMNS, len(next(iter(rows.values()))))
    return [
        Block(
            {name: images[start : start + _COLUMNS] for name, images in rows.items()},
            {name: entries[start : start + _COLUMNS].tolist() for name, entries in header.items()},
        )
        for start in range(0, count, _COLUMNS)
    ]


def _titled(title: str, run: pd.Series) -> str:
    if not run["stand_in"]:
        return title
    note = "miniature stand-in" + ("; smoke test, a few steps" if run["profile"] == "smoke" else "")
    return f"{title} ({note})"


def _measured(run: pd.Series) -> str:
    names = {"final/iou": "mask IoU", "final/l1": "L1", "final/ssim": "SSIM"}
    values = [f"{name} {run[key]:.3f}" for key, name in names.items() if pd.notna(run.get(key))]
    return f"On the whole held-out set: {', '.join(values)}."


def _provenance(shown: pd.DataFrame) -> str:
    first = shown.iloc[0]
    parts = [f"Run{'s' if len(shown) > 1 else ''} {', '.join(shown['run_id'].str[:8])}", f"profile {first['profile']}"]
    if pd.notna(first["mechanism"]):
        parts += [f"{view.steps(first):,} steps", f"seed {first['seed']}"]
    parts.append(f"classes {first['classes']}")
    return f"{', '.join(parts)}; teacher: {first['teacher']}."
