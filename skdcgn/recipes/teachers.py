"""Which teacher a run distills or compares with, as fields of a config, and how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from skdcgn.cgn.teachers import ImageNetTeacher, MNISTTeacher, imagenet_teacher, miniature_teacher, mnist_teacher
from skdcgn.errors import InputError
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import Precision

CGN_FILE = "cgn.safetensors"
"""What a run keeps the CGN under that it trained."""


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher."""

    dataset: Literal["double_colored", "colored", "wildlife", "digits", "imagenet", "miniature"]
    """Whose CGN: the authors' one for an MNIST variant or for ImageNet, one trained here on scikit-learn's digits, or
    the packaged miniature of the ImageNet CGN."""
    checkpoint: Path | None = None
    """Another checkpoint than the authors'."""
    truncation: float | None = None
    """Of an ImageNet teacher's noise; CGN's own 0.5 by default, 1 for the miniature."""
    precision: Precision = "fp32"
    """That an ImageNet teacher renders with."""


def load_teacher(
    config: TeacherConfig,
    device: torch.device | str = "cpu",
    store: Store | None = None,
    trained: RunRecord | None = None,
) -> MNISTTeacher | ImageNetTeacher:
    """Load a teacher.

    Args:
        config: which one.
        device: where to run it.
        store: the run store, for one trained here.
        trained: the run that trained it.

    Raises:
        InputError: the weights are not available, or do not belong to such a CGN.
    """
    if config.dataset in ("digits", "miniature") and config.checkpoint is not None:
        raise InputError(f"--dataset {config.dataset} has a teacher of its own: leave --teacher out.")
    if config.dataset == "miniature":
        return miniature_teacher(device, config.truncation)
    if config.dataset == "imagenet":
        teacher = imagenet_teacher(config.checkpoint, device, config.truncation, config.precision)
        if teacher.stand_in:
            raise InputError(
                "the CGN authors' ImageNet weights are not on this machine: python -m skdcgn weights says how to get "
                "them, and --profile quick uses the miniature instead."
            )
        return teacher
    if trained is not None:
        return load_trained(store, trained, config.dataset, device)
    return mnist_teacher(config.dataset, config.checkpoint, device)


def load_trained(
    store: Store, run: RunRecord, dataset: str, device: torch.device | str = "cpu", name: str | None = None
) -> MNISTTeacher:
    """Load an MNIST CGN that a run trained; one trained on digits stands in for the paper's teacher."""
    with store.artifact(run.run_id, CGN_FILE) as path:
        return mnist_teacher(dataset, path, device, name or f"our CGN on {dataset}", stand_in=dataset == "digits")


def teacher_tags(teacher: MNISTTeacher | ImageNetTeacher) -> Mapping[str, object]:
    """Return the tags that tell the teacher of a run."""
    return {"teacher": teacher.name, "teacher_sha256": teacher.sha256, "stand_in": teacher.stand_in}
