"""Run stores made from a few lines: finished runs with tags, params, metrics, and tensors that say nothing."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.entities import Metric, Param, RunTag
from safetensors.torch import save_file

from skdcgn.runs.store import Store

Record = Mapping[str, Any]
Make = Callable[[Sequence[Record]], Store]
"""Makes a store of records: see the fixture `make`."""


def add(store: Store, runs: Iterable[Mapping[str, Any]], status: str = "FINISHED") -> dict[str, str]:
    """Add runs to a store, each a second later than the one before.

    Args:
        store: to add to; a local one.
        runs: mappings with `experiment` and `name`, and maybe `tags`, `params`, `metrics`, `history` (metric to pairs
            of step and value), and `tensors` (file name to key to shape, or to values).
        status: of the runs.

    Returns:
        Name to run id.
    """
    client = mlflow.MlflowClient(store.uri)
    folder = Path(store.uri.removeprefix("sqlite:///")).parent
    experiments = {experiment.name: experiment.experiment_id for experiment in client.search_experiments()}
    ids: dict[str, str] = {}
    for second, run in enumerate(runs, 1):
        name = run["experiment"]
        if name not in experiments:
            experiments[name] = client.create_experiment(name, str(folder.resolve() / "artifacts" / name))
        created = client.create_run(experiments[name], 1000 * second, run_name=run["name"])
        ids[run["name"]] = run_id = created.info.run_id
        last = {key: [[0, value]] for key, value in run.get("metrics", {}).items()}
        history = {**last, **run.get("history", {})}
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, 0, step) for key, values in history.items() for step, value in values],
            params=[Param(key, str(value)) for key, value in run.get("params", {}).items()],
            tags=[RunTag(key, _text(value)) for key, value in {"overrides": "none", **run.get("tags", {})}.items()],
        )
        with tempfile.TemporaryDirectory() as temporary:
            for file, tensors in run.get("tensors", {}).items():
                path = Path(temporary) / f"{file}.safetensors"
                save_file({key: _tensor(key, value) for key, value in tensors.items()}, path)
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status, end_time=1000 * second + 500)
    return ids


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tensor(key: str, shape: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return zeros of a shape; labels count up."""
    if isinstance(shape, torch.Tensor):
        return shape.contiguous()
    return torch.arange(shape[0]) % 10 if "label" in key else torch.zeros(*shape)


def read(path: Path) -> list[dict[str, Any]]:
    """Read a committed record of runs."""
    return json.loads(path.read_text(encoding="utf-8"))
