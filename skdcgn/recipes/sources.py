"""What counterfactuals can come from, by name: a CGN, or what a run of the store has trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from skdcgn.cgn.teachers import mnist_teacher
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.mnist import Variant
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.runs import identity as run_identity
from skdcgn.runs.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

_CGN, _RUN = "cgn:", "runs:/"

_PARENT = "mlflow.parentRunId"


# Parameters in which the runs of one group's students differ from the group's, or may do so without a difference.
_OWN = ("mechanism", "seeds", "teacher", "runtime.")


def load_source(spec: str, store: Store | None = None, device: torch.device | str = "cpu") -> Source:
    """Load a source of counterfactuals.

    Args:
        spec: `cgn:<variant>`, the CGN authors' teacher for double_colored, colored or wildlife MNIST;
            `runs:/<id>`, a finished run of `mnist_kd` (its students of the lowest seed), of `train_cgn_mnist` or of
            `baseline_mnist`; or the path of an MNIST CGN's checkpoint.
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


def finished_group(store: Store, experiment: str, config: Any) -> str:
    """Return the id of the newest finished group of a study with this config (see `studies.Study`).

    Raises:
        InputError: there is none.
    """
    version = run_identity.code_version(experiment)
    for run in store.search(experiment, f"attributes.status = 'FINISHED' and tags.code_version = '{version}'"):
        identity = {"teacher": run.data.tags.get("teacher_sha256", ""), "level": "group"}
        if run.data.tags["config_hash"] == run_identity.config_hash(config, identity):
            return run.info.run_id
    raise InputError(f"the store {store.uri} has no finished run of {experiment} with this config: start it first.")


def _load_run(run_id: str, store: Store, device: torch.device | str) -> Source:
    """Load what a run has trained."""
    loaders = {"mnist_kd": _load_students, "train_cgn_mnist": _load_cgn, "baseline_mnist": _load_baseline}
    for experiment, load in loaders.items():
        found = store.search(experiment, f"attributes.run_id = '{run_id}'") if run_id.isalnum() else []
        if found:
            if found[0].info.status != "FINISHED":
                raise InputError(
                    f"run {run_id} of {experiment} is {found[0].info.status}, not finished: start its command again."
                )
            return load(found[0], store, device)
    raise InputError(f"the store {store.uri} has no run {run_id} of {', '.join(loaders)}.")


def _load_cgn(run: "Run", store: Store, device: torch.device | str) -> Source:
    """Load a CGN of our own."""
    dataset = run.data.tags.get("dataset", "")
    name = f"our CGN on {dataset} (run {run.info.run_id[:8]})"
    with store.artifact(run.info.run_id, "cgn.safetensors") as path:
        return mnist_teacher(dataset, path, device, name, stand_in=dataset == "digits")


def _load_baseline(run: "Run", store: Store, device: torch.device | str) -> Source:
    """Load the paper's baseline: a CGN of TinyGANs that was trained adversarially, not distilled."""
    students = {m: store.load_student(run.info.run_id, f"student_{m}") for m in Mechanism}
    return SKDCGN(students, f"baseline (run {run.info.run_id[:8]})", _stand_in(run), device)


def _load_students(run: "Run", store: Store, device: torch.device | str) -> Source:
    """Load the students of a group of `mnist_kd`, its lowest seed."""
    if _PARENT in run.data.tags:
        raise InputError(
            f"run {run.info.run_id} trained the student of one mechanism: give the run above it, "
            f"{_RUN}{run.data.tags[_PARENT]}, which has all three."
        )
    seeds = sorted(int(seed) for seed in run.data.params["seeds"].strip("(),").split(","))
    finished = store.search("mnist_kd", f"attributes.status = 'FINISHED' and tags.seed = '{seeds[0]}'")
    # Students that had been trained before lie below the group that trained them, not below this one.
    of_group = [student for student in finished if student.data.tags.get(_PARENT) == run.info.run_id]
    alike = [student for student in finished if _identity(student) == _identity(run)]
    students = {
        Mechanism(student.data.tags["mechanism"]): store.load_student(student.info.run_id)
        for student in reversed(of_group + alike)  # the group's own ones last, and the newest of them at the very last
    }
    return SKDCGN(students, f"SKDCGN (run {run.info.run_id[:8]})", _stand_in(run), device)


def _identity(run: "Run") -> dict[str, str]:
    """What the students of a group share with it: teacher, code and settings."""
    shared = {key: value for key, value in run.data.params.items() if not key.startswith(_OWN)}
    return shared | {key: run.data.tags[key] for key in ("teacher_sha256", "code_version")}


def _stand_in(run: "Run") -> bool:
    return run.data.tags.get("stand_in") == "true"
