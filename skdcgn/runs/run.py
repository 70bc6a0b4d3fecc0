"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from skdcgn.tinygan.networks import TinyGANGenerator, save_generator

if TYPE_CHECKING:
    from skdcgn.runs.store import Store

_BATCH = 1000  # MLflow takes at most this many metrics in one call


class Run:
    """An MLflow run in progress (or a finished one, to be left alone).

    A resumed run repeats the steps since its last checkpoint. What it had logged of them already is not logged
    twice.
    """

    def __init__(self, store: "Store", run_id: str, finished: bool = False, resumed: bool = False) -> None:
        self.store, self.run_id, self.finished, self.resumed = store, run_id, finished, resumed
        self.checkpoint = store.folder / "checkpoints" / f"{run_id}.pt"
        self._pending: list[Metric] = []
        self._logged: dict[str, int] = {}
        self._images: set[tuple[str, int]] = set()
        if resumed:
            for key in store.client.get_run(run_id).data.metrics:
                if not key.startswith("system/"):
                    history = store.client.get_metric_history(run_id, key)
                    self._logged[key] = max(metric.step for metric in history)
            for file in store.client.list_artifacts(run_id, "images"):
                found = re.match(r"images/(.+)\+step\+(\d+)\+", file.path)
                if found:
                    self._images.add((found[1].replace("~", "/"), int(found[2])))

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric but the system's."""
        metrics = self.store.client.get_run(self.run_id).data.metrics
        return {key: value for key, value in metrics.items() if not key.startswith("system/")}

    @property
    def final(self) -> dict[str, float]:
        """The metrics `final/<name>` by their name."""
        return {key.removeprefix("final/"): value for key, value in self.metrics.items() if key.startswith("final/")}

    def log_metrics(self, prefix: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Note metrics as `prefix/name`; they reach the store with the next `flush`."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            key = f"{prefix}/{name}"
            if step > self._logged.get(key, -1):
                self._pending.append(Metric(key, float(value), now, step))
                self._logged[key] = step

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags that are known only once the run has begun."""
        self.store.set_tags(self.run_id, tags)

    def flush(self) -> None:
        """Write the noted metrics to the store."""
        while self._pending:
            self.store.client.log_batch(self.run_id, metrics=self._pending[:_BATCH])
            self._pending = self._pending[_BATCH:]

    def log_image(self, key: str, pixels: np.ndarray, step: int) -> None:
        """Log an image (H, W, 3) of uint8 for the UI's comparison by step."""
        if (key, step) not in self._images:
            self.store.client.log_image(self.run_id, Image.fromarray(pixels), key=key, step=step, synchronous=True)
            self._images.add((key, step))

    def log_student(self, student: TinyGANGenerator, name: str = "student") -> None:
        """Keep a student's weights and config under a name; `Store.load_student` loads them again."""
        with tempfile.TemporaryDirectory() as folder:
            save_generator(student, Path(folder))
            self.store.client.log_artifacts(self.run_id, folder, name)

    def log_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name; `Store.load_tensors` loads them again."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.safetensors"
            save_file(
                {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}, path
            )
            self.store.client.log_artifact(self.run_id, str(path))

    def log_file(self, path: Path) -> None:
        """Keep a file under its own name; `Store.artifact` gets it back."""
        self.store.client.log_artifact(self.run_id, str(path))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Note what data the run reads: shown as a dataset input in the UI."""
        entity = Dataset(name, digest[:8], "code", json.dumps({"tags": {"source": source}}))
        tag = InputTag("mlflow.data.context", context)
        self.store.client.log_inputs(self.run_id, [DatasetInput(entity, [tag])])
