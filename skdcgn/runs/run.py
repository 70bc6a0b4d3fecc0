"""A run in progress, and what it logs."""

import re
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from skdcgn.distributed import broadcast, world
from skdcgn.errors import Interrupted
from skdcgn.files import load_checkpoint
from skdcgn.runs.leases import Heartbeat, Lease
from skdcgn.runs.store import RunRecord, Store

_BATCH = 1000  # MLflow takes at most this many metrics in one call


class Interruption:
    """Turns SIGINT and SIGTERM into a request that the training loop honors between two steps.

    A second signal ends the process the ordinary way, for those who cannot wait.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _request(self, signum: int, _frame: object) -> None:
        self.signum = signum
        signal.signal(signum, self._previous[signum])

    def check(self) -> None:
        """Raise `Interrupted` if a signal came in since the block was entered."""
        if self.signum is not None:
            raise Interrupted(self.signum)


class Busy(Exception):
    """Another process is at a run."""

    def __init__(self, what: object, run: RunRecord) -> None:
        self.lease = Lease.read(run.tags)
        super().__init__(f"{what} is being made by {self.lease} (run {run.run_id})")


class Run:
    """A run in progress.

    A resumed run repeats the steps since its last checkpoint. What it had logged of them already is not logged twice.
    """

    leads = True
    """Whether this process logs: of several, as torchrun starts them, only the first."""

    def __init__(self, store: Store, run_id: str, lease: Lease | None = None, reopened: bool = False) -> None:
        """Take hold of a run, a new one or one that was interrupted and is `reopened`."""
        self.store, self.run_id, self.lease, self.reopened = store, run_id, lease, reopened
        self.interruption: Callable[[], Interruption] = Interruption
        self._heartbeat: Heartbeat | None = None
        self.checkpoint = store.folder / "checkpoints" / f"{run_id}.pt"
        self._pending: list[Metric] = []
        self._logged: dict[str, int] = {}
        self._images: set[tuple[str, int]] = set()
        if reopened:
            for key in store.record(run_id).metrics:
                self._logged[key] = store.history(run_id, key)[-1][0]
            for file in store.files(run_id, "images"):
                found = re.match(r"images/(.+)\+step\+(\d+)\+", file)
                if found:
                    self._images.add((found[1].replace("~", "/"), int(found[2])))

    @cached_property
    def resumed(self) -> bool:
        """Whether it goes on from a checkpoint: then what comes before the first step, when this is asked, is there."""
        return self.reopened and load_checkpoint(self.checkpoint) is not None

    @property
    def progress(self) -> str:
        """How far a resumed run had come: ` at step 250`, or nothing where it starts from the beginning."""
        state = load_checkpoint(self.checkpoint)
        return "" if state is None else f" at step {state['trainer']['step']}"

    def attend(self, interruption: Callable[[], Interruption], heartbeat: Heartbeat) -> None:
        """Set what asks the run to stop, and what keeps its lease."""
        self.interruption, self._heartbeat = interruption, heartbeat

    def check_held(self) -> None:
        """See that the run is still this process's.

        Raises:
            Busy: another process took it over.
        """
        if self._heartbeat is not None and self._heartbeat.lost:
            raise Busy(f"run {self.run_id}", self.store.record(self.run_id))

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
        """Write the noted metrics to the store.

        Raises:
            Busy: see `check_held`.
        """
        self.check_held()
        while self._pending:
            self.store.client.log_batch(self.run_id, metrics=self._pending[:_BATCH])
            self._pending = self._pending[_BATCH:]

    def log_image(self, key: str, pixels: np.ndarray, step: int) -> None:
        """Log an image (H, W, 3) of uint8 for the UI's comparison by step."""
        if (key, step) not in self._images:
            self.store.client.log_image(self.run_id, Image.fromarray(pixels), key=key, step=step, synchronous=True)
            self._images.add((key, step))

    def log_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name; `Store.load_tensors` loads them again."""
        contiguous = {k: v.cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        self.log_file(f"{name}.safetensors", lambda path: path.write_bytes(save(contiguous)))

    def log_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep a file or folder under a name; `Store.artifact` gets it back.

        Args:
            name: of the file or folder.
            write: writes it at a path.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            if path.is_dir():
                self.store.client.log_artifacts(self.run_id, str(path), name)
            else:
                self.store.client.log_artifact(self.run_id, str(path))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Note what data the run reads: shown as a dataset input in the UI."""
        entity = Dataset(name, digest[:8], "code", f'{{"tags": {{"source": "{source}"}}}}')
        tag = InputTag("mlflow.data.context", context)
        self.store.client.log_inputs(self.run_id, [DatasetInput(entity, [tag])])


class Follower(Run):
    """A run as all processes but the first see it, where torchrun started several: they take part and log nothing."""

    leads = False

    def __init__(self, store: Store) -> None:
        """Wait for the first process to start a run."""
        self.store, self.interruption, self._heartbeat = store, Interruption, None
        self.run_id, self.resumed, self.checkpoint = broadcast(None)

    def log_metrics(self, prefix: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log nothing."""

    def flush(self) -> None:
        """Write nothing."""


def announce(run: Run) -> None:
    """Tell the other processes about a run that this one, the first, has started."""
    if world() > 1:
        broadcast((run.run_id, run.resumed, run.checkpoint))
