"""What a run renders with: teachers that runs trained, and sources of counterfactuals by name."""

from pathlib import Path
from typing import get_args

import torch

from skdcgn.cgn.teachers import MNISTTeacher, mnist_teacher
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.mnist import Variant
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.runs.store import RunRecord, Store
from skdcgn.tinygan.networks import load_generator

CGN_FILE = "cgn.safetensors"
"""What a run keeps the CGN under that it trained."""
_CGN, _RUN = "cgn:", "runs:/"


def load_trained(
    store: Store, run: RunRecord, dataset: str, device: torch.device | str = "cpu", name: str | None = None
) -> MNISTTeacher:
    """Load an MNIST CGN that a run trained; one trained on digits stands in for the paper's teacher."""
    with store.artifact(run.run_id, CGN_FILE) as path:
        return mnist_teacher(dataset, path, device, name or f"our CGN on {dataset}", stand_in=dataset == "digits")


def teacher_tags(teacher: Source) -> dict[str, object]:
    """Return the tags that tell the teacher of a run."""
    return {"teacher": teacher.name, "teacher_sha256": teacher.sha256, "stand_in": teacher.stand_in}


def load_source(spec: str, store: Store | None = None, device: torch.device | str = "cpu") -> Source:
    """Load a source of counterfactuals.

    Args:
        spec: `cgn:<variant>`, the CGN authors' teacher for double_colored, colored or wildlife MNIST; the path of an
            MNIST CGN's checkpoint; or `runs:/<id>`, a finished run that kept such a checkpoint as `cgn.safetensors`, or
            three students in folders named after their mechanisms.
        store: the run store; needed for `runs:/` only.
        device: where to render.

    Raises:
        InputError: there is no such source, or it is not complete.
    """
    if spec.startswith(_CGN):
        variant = spec.removeprefix(_CGN)
        if variant not in get_args(Variant):
            raise InputError(f"there is no CGN for {variant!r}: choose cgn: with {', '.join(get_args(Variant))}.")
        return mnist_teacher(variant, device=device)
    if spec.startswith(_RUN):
        if store is None:
            raise InputError(f"{spec} is looked for in a run store, and none is given.")
        return _load_run(spec.removeprefix(_RUN), store, device)
    path = Path(spec)
    if not path.is_file():
        raise InputError(
            f"there is no source {spec!r}: give cgn:<variant>, runs:/<id of a run>, or the path of a checkpoint."
        )
    return mnist_teacher(path.stem, path, device)


def _load_run(run_id: str, store: Store, device: torch.device | str) -> Source:
    """Load what a run has kept."""
    run = store.record(run_id)
    name = f"run {run_id[:8]} of {run.experiment}"
    if run.status != "FINISHED":
        raise InputError(f"{name} is {run.status}, not finished: start its command again.")
    stand_in, kept = run.tags.get("stand_in") == "true", store.files(run_id)
    if CGN_FILE in kept:
        dataset = run.tags.get("dataset", "")
        return load_trained(store, run, dataset, device, f"our CGN on {dataset} ({name})")
    students = {}
    for mechanism in Mechanism:
        if mechanism.value not in kept:
            raise InputError(
                f"{name} kept neither {CGN_FILE} nor a {mechanism} student: give a run that has an MNIST CGN, or "
                "students of all three mechanisms."
            )
        with store.artifact(run_id, mechanism.value) as folder:
            students[mechanism] = load_generator(folder)
    return SKDCGN(students, f"students ({name})", stand_in, device)
