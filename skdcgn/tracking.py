"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would ask the network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
import psutil
import torch
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.models.tinygan import TinyGANGenerator, load_generator, save_generator
from skdcgn.runtime import Interrupted, hardware

if TYPE_CHECKING:
    from mlflow.optuna.storage import MlflowStorage

for _chatty in ("mlflow.system_metrics", "mlflow.store.db.utils", "alembic"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)


_BATCH = 1000  # MLflow takes at most this many metrics in one call
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts
_PROJECT = Path(__file__).resolve().parents[1]


def default_folder() -> Path:
    """Return the folder of the local store: `mlruns` of the clone, or of the working directory elsewhere."""
    root = _PROJECT if (_PROJECT / "pyproject.toml").exists() else Path.cwd()
    return root / "mlruns"


def config_hash(config: Any, identity: Mapping[str, str] | None = None) -> str:
    """Return the identity of a run: a hash of its resolved config.

    Args:
        config: a dataclass. Its `runtime` (device, threads, ...) and every path in it are left out: they say where
            and how a run executes, not what it computes.
        identity: what stands for the contents of those paths, such as the teacher's SHA-256.
    """
    content = {**_without_paths(dataclasses.asdict(config)), **(identity or {})}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_paths(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != "runtime" and value is not None and not isinstance(value, Path)
    }


def overrides(config: Any, default: Any, scope: Sequence[str]) -> str:
    """Say in what a config departs from its profile's default: `loss.kl=0.5, distill.steps=100`, or `none`.

    Args:
        config: the config of a run.
        default: the profile's.
        scope: fields that choose what to run rather than how, such as the data set and the seeds: left out.
    """
    ours, theirs = (flatten(dataclasses.asdict(each)) for each in (config, default))
    changed = [
        f"{key}={value}"
        for key, value in ours.items()
        if value != theirs[key] and key.split(".")[0] not in (*scope, "runtime")
    ]
    return ", ".join(changed) or "none"


def code_version(experiment: str) -> str:
    """Return a hash of the package's source and of the script of an experiment."""
    package = Path(__file__).parent
    sources = sorted(package.rglob("*.py"))
    script = _PROJECT / "experiments" / f"{experiment}.py"
    if script.exists():
        sources.append(script)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def provenance(experiment: str, description: str = "") -> dict[str, object]:
    """Return the tags that say what a run is and where it comes from: code, commit, hardware and versions.

    Args:
        experiment: see `code_version`.
        description: markdown, shown in the UI.
    """
    tags = {
        "code_version": code_version(experiment),
        "hardware": hardware(),
        "torch": torch.__version__,
        MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
        **_git_tags(),
    }
    return {**tags, MLFLOW_RUN_NOTE: description} if description else tags


def open_store(uri: str | None = None) -> "Store":
    """Open the run store, creating it where it does not exist yet.

    Args:
        uri: an MLflow tracking URI; by default `MLFLOW_TRACKING_URI`, or else the local SQLite store.

    Raises:
        InputError: the store cannot be opened.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{default_folder() / 'mlflow.db'}"
    try:
        return Store(uri)
    except (MlflowException, OSError, sqlite3.Error) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the run store {uri} cannot be opened ({reason}): check MLFLOW_TRACKING_URI.") from None


class Store:
    """A run store and what the experiments and the analysis need of it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.folder = default_folder()
        self._local = uri.startswith("sqlite:///")
        if self._local:
            database = Path(uri.removeprefix("sqlite:///"))
            self.folder = database.parent
            self.folder.mkdir(parents=True, exist_ok=True)
            # Processes that create the tables at the same moment would fail: one of them does it, the others wait.
            with FileLock(self.folder / ".store.lock"):
                with contextlib.closing(sqlite3.connect(database)) as connection:
                    connection.execute("PRAGMA journal_mode=wal")  # several writers get in each other's way less
                self.client = mlflow.MlflowClient(uri)
                self.client.search_experiments(max_results=1)
        else:
            self.client = mlflow.MlflowClient(uri)

    def experiment(self, name: str, description: str = "") -> str:
        """Return the id of an experiment, creating it where it does not exist yet."""
        existing = self.client.get_experiment_by_name(name)
        if existing is None:
            location = str(self.folder.resolve() / "artifacts" / name) if self._local else None
            try:
                experiment_id = self.client.create_experiment(name, location, tags=_EXPERIMENT_KIND)
            except MlflowException:  # another process was faster
                experiment_id = self.client.get_experiment_by_name(name).experiment_id
        else:
            experiment_id = existing.experiment_id
        if description:
            self.client.set_experiment_tag(experiment_id, MLFLOW_RUN_NOTE, description)
        return experiment_id

    def search(self, experiment: str, filter_string: str = "") -> list[mlflow.entities.Run]:
        """Return the runs of an experiment that a filter allows, newest first; none where it does not exist."""
        existing = self.client.get_experiment_by_name(experiment)
        if existing is None:
            return []
        runs, token = [], None
        while True:
            page = self.client.search_runs(
                [existing.experiment_id],
                filter_string,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def end_dead_runs(self, experiment: str) -> None:
        """End as KILLED the runs whose process on this machine is gone: a killed process cannot do so itself."""
        for run in self.search(experiment, "attributes.status = 'RUNNING'"):
            if process_state(run.data.tags.get("process", "")) == "gone":
                self.client.set_terminated(run.info.run_id, "KILLED")

    @contextlib.contextmanager
    def start(
        self,
        experiment: str,
        config: Any,
        name: str,
        identity: Mapping[str, str] | None = None,
        tags: Mapping[str, object] | None = None,
        parent: "Run | None" = None,
        description: str = "",
    ) -> Iterator["Run"]:
        """Run a block as an MLflow run that ends FINISHED, KILLED (on a signal) or FAILED (on any other error).

        Where a finished run with this identity exists, it is yielded with `finished` set, and the block should do
        nothing. Where an unfinished one exists, it is continued.

        Args:
            experiment: name of the MLflow experiment: the script's stem.
            config: the resolved config of this very run; it has a `runtime`.
            name: shown in the UI.
            identity: see `config_hash`.
            tags: of the run, beside those every run gets.
            parent: the run that this one belongs to.
            description: markdown, shown in the UI.
        """
        self.end_dead_runs(experiment)
        digest, code = config_hash(config, identity), code_version(experiment)
        found = [] if config.runtime.force else self._same(experiment, digest, code)
        finished = [run for run in found if run.info.status == "FINISHED"]
        if finished:
            yield Run(self, finished[0].info.run_id, finished=True)
            return
        running = [run for run in found if run.info.status == "RUNNING"]
        if running:
            raise InputError(
                f"run {running[0].info.run_id} of {experiment} with this very config is running now, in process "
                f"{running[0].data.tags.get('process', 'unknown')}: wait for it, or end it."
            )
        if found:
            run = Run(self, found[0].info.run_id, resumed=True)
            self.client.update_run(run.run_id, status="RUNNING")
            self.set_tags(run.run_id, {"process": this_process()})
        else:
            run = self._create(experiment, config, name, digest, tags or {}, parent, description)
        monitor = SystemMetricsMonitor(run.run_id, resume_logging=bool(found), tracking_uri=self.uri)
        monitor.start()
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        except BaseException as error:
            self.set_tags(run.run_id, {"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            monitor.finish()
            run.flush()
            self.client.set_terminated(run.run_id, status)
            if status == "FINISHED":
                run.checkpoint.unlink(missing_ok=True)

    def _same(self, experiment: str, digest: str, code: str) -> list[mlflow.entities.Run]:
        return self.search(experiment, f"tags.config_hash = '{digest}' and tags.code_version = '{code}'")

    def _create(
        self,
        experiment: str,
        config: Any,
        name: str,
        digest: str,
        tags: Mapping[str, object],
        parent: "Run | None",
        description: str,
    ) -> "Run":
        created = self.client.create_run(self.experiment(experiment, description), run_name=name)
        run = Run(self, created.info.run_id)
        fixed = {
            "config_hash": digest,
            "process": this_process(),
            **provenance(experiment, description),
        }
        if parent is not None:
            fixed[MLFLOW_PARENT_RUN_ID] = parent.run_id
        self.set_tags(run.run_id, {**fixed, **tags})
        parameters = [Param(key, str(value)) for key, value in flatten(dataclasses.asdict(config)).items()]
        self.client.log_batch(run.run_id, params=parameters)
        return run

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags of a run; booleans become true and false."""
        self.client.log_batch(run_id, tags=[RunTag(key, _text(value)) for key, value in tags.items()])

    def load_student(self, run_id: str, name: str = "student") -> TinyGANGenerator:
        """Load the student that a run kept under a name, in eval mode.

        Raises:
            InputError: there is no such run, or it kept no student.
        """
        with self.artifact(run_id, name) as folder:
            return load_generator(folder)

    def load_tensors(self, run_id: str, name: str) -> dict[str, Tensor]:
        """Load what `Run.log_tensors` kept under a name.

        Raises:
            InputError: there is no such run, or it kept no such tensors.
        """
        with self.artifact(run_id, f"{name}.safetensors") as path:
            return load_file(path)

    def study_storage(self, experiment: str) -> "MlflowStorage":
        """Return Optuna's storage in an experiment: a study is a run there, its trials are runs below that one."""
        from mlflow.optuna.storage import MlflowStorage  # slow to import, and for sweeps only

        # The storage begins with a client of MLflow's default store, which would be made in the working directory.
        with _environment("MLFLOW_TRACKING_URI", self.uri):
            storage = MlflowStorage(self.experiment(experiment))
        storage._mlflow_client = _StudyClient(self.uri)
        return storage

    @contextlib.contextmanager
    def artifact(self, run_id: str, path: str) -> Iterator[Path]:
        """Yield a local copy of a file or folder that a run kept.

        Raises:
            InputError: there is no such run, or it kept no such thing.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                local = self.client.download_artifacts(run_id, path, folder)
            except (MlflowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"run {run_id} of the store {self.uri} holds no {path} ({reason}).") from None
            yield Path(local)


class Run:
    """An MLflow run in progress (or a finished one, to be left alone).

    A resumed run repeats the steps since its last checkpoint. What it had logged of them already is not logged
    twice.
    """

    def __init__(self, store: Store, run_id: str, finished: bool = False, resumed: bool = False) -> None:
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


class _StudyClient(mlflow.MlflowClient):
    """What `MlflowStorage` reads a study with; it could not read trials with metrics of their own otherwise."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._ended: dict[str, mlflow.entities.Run] = {}
        self._histories: dict[tuple[str, str], list[Metric]] = {}

    def get_run(self, run_id: str) -> mlflow.entities.Run:
        """Get a run, of whose metrics only the objectives: the storage takes every metric for one."""
        if run_id in self._ended:
            return self._ended[run_id]
        run = super().get_run(run_id)
        for key in [key for key in run.data.metrics if not key.startswith("value")]:
            del run.data.metrics[key]
        # The storage asks for every trial of the study several times at each step of the search.
        if not is_active(run.info.status) and MLFLOW_PARENT_RUN_ID in run.data.tags:
            self._ended[run_id] = run
        return run

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        """Get all values of a metric."""
        if (run_id, key) in self._histories:
            return self._histories[run_id, key]
        history = super().get_metric_history(run_id, key)
        if run_id in self._ended:
            self._histories[run_id, key] = history
        return history

    def search_runs(self, experiment_ids: list[str], filter_string: str = "", **options: Any) -> Any:
        """Search runs, the oldest first: Optuna takes waiting trials in this order."""
        return super().search_runs(experiment_ids, filter_string, **{"order_by": ["attributes.start_time"], **options})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: {"loss": {"kl": 1}} becomes {"loss.kl": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def this_process() -> str:
    """Describe this process for `process_state`: host:pid@start."""
    return f"{socket.gethostname()}:{os.getpid()}@{psutil.Process().create_time():.0f}"


def process_state(process: str) -> Literal["alive", "gone", "elsewhere"]:
    """Tell whether the process that `this_process` described is alive, or gone, or not one of this machine."""
    host, _, identity = process.partition(":")
    if host != socket.gethostname():
        return "elsewhere"
    pid, _, started = identity.partition("@")
    try:  # a pid alone may have been given to another process since
        return "alive" if f"{psutil.Process(int(pid)).create_time():.0f}" == started else "gone"
    except (psutil.NoSuchProcess, ValueError):
        return "gone"


def _git_tags() -> dict[str, object]:
    """The commit of the code and whether the tree differs from it; nothing where this is no git clone."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {MLFLOW_GIT_COMMIT: commit, "git_dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def is_active(status: str) -> bool:
    """Whether an MLflow run status means that the run has not ended."""
    return not RunStatus.is_terminated(RunStatus.from_string(status))
