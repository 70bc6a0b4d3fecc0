"""Run stores made from a few lines: finished runs with tags, params, metrics, and tensors that say nothing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.entities import Metric, Param, RunTag

from skdcgn.runs.run import Run
from skdcgn.runs.store import Store

_PARENT = "mlflow.parentRunId"


def add(store: Store, runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Add finished runs to a store, each a second later than the one before.

    Args:
        store: to add to.
        runs: mappings with `experiment` and `name`, and maybe `parent` (the name of an earlier run), `tags`, `params`,
            `metrics`, `history` (metric to pairs of step and value), `tensors` (file name to key to shape, or to
            values), and `images` (key, steps, height and width).

    Returns:
        Name to run id.
    """
    ids: dict[str, str] = {}
    for second, run in enumerate(runs):
        created = store.client.create_run(store.experiment(run["experiment"]), 1000 * second, run_name=run["name"])
        ids[run["name"]] = run_id = created.info.run_id
        tags = {"overrides": "none", **run.get("tags", {})}
        if "parent" in run:
            tags[_PARENT] = ids[run["parent"]]
        last = {key: [[0, value]] for key, value in run.get("metrics", {}).items()}
        history = {**last, **run.get("history", {})}
        store.client.log_batch(
            run_id,
            metrics=[Metric(key, value, 0, step) for key, values in history.items() for step, value in values],
            params=[Param(key, str(value)) for key, value in run.get("params", {}).items()],
            tags=[RunTag(key, str(value)) for key, value in tags.items()],
        )
        logger = Run(store, run_id)
        for name, tensors in run.get("tensors", {}).items():
            logger.log_tensors(name, {key: _tensor(key, value) for key, value in tensors.items()})
        for key, (steps, height, width) in run.get("images", {}).items():
            for step in steps:
                logger.log_image(key, np.full((height, width, 3), 100, np.uint8), step)
        store.client.set_terminated(run_id, "FINISHED", end_time=1000 * second + 500)
    return ids


def _tensor(key: str, shape: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return zeros of a shape; labels count up."""
    if isinstance(shape, torch.Tensor):
        return shape
    return torch.arange(shape[0]) % 10 if "label" in key else torch.zeros(*shape)


def read(path: Path) -> list[dict[str, Any]]:
    """Read a committed record of runs."""
    return json.loads(path.read_text(encoding="utf-8"))
