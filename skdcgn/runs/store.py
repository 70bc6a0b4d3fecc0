"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

import contextlib
import dataclasses
import logging
import os
import sqlite3
import tempfile
from datetime import UTC, datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from filelock import FileLock
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from safetensors.torch import load_file
from torch import Tensor

from skdcgn.errors import InputError, Interrupted
from skdcgn.runs.identity import _PROJECT, code_version, config_hash, flatten
from skdcgn.runs.processes import process_state, this_process
from skdcgn.runs.provenance import provenance
from skdcgn.runs.run import Run
from skdcgn.runs.search_storage import _StudyClient
from skdcgn.tinygan.networks import TinyGANGenerator, load_generator

if TYPE_CHECKING:
    from mlflow.optuna.storage import MlflowStorage

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would ask the network

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

for _chatty in ("mlflow.system_metrics", "mlflow.store.db.utils", "alembic"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)

_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts


def default_folder() -> Path:
    """Return the folder of the local store: `mlruns` of the clone, or of the working directory elsewhere."""
    root = _PROJECT if (_PROJECT / "pyproject.toml").exists() else Path.cwd()
    return root / "mlruns"


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


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Stand-in until the run store has its own return types."""

    run_id: str
    experiment: str
    name: str
    status: str
    start_time: datetime
    parent: str | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


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

    def experiments(self) -> list[str]:
        """Stand-in."""
        return sorted(experiment.name for experiment in self.client.search_experiments())

    def runs(self, experiment: str, status: str | None = None, **tags: str) -> list[RunRecord]:
        """Stand-in."""
        found = [_record(run, experiment) for run in self.search(experiment)]
        return [r for r in found if status in (None, r.status) and tags.items() <= r.tags.items()]

    def record(self, run_id: str) -> RunRecord:
        """Stand-in."""
        return _record(self.client.get_run(run_id), "")

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Stand-in."""
        logged = sorted(self.client.get_metric_history(run_id, metric), key=lambda m: (m.step, m.timestamp))
        return list({m.step: m.value for m in logged}.items())

    def files(self, run_id: str, folder: str = "") -> list[str]:
        """Stand-in."""
        return sorted(file.path for file in self.client.list_artifacts(run_id, folder or None))

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


def _record(run: mlflow.entities.Run, experiment: str) -> RunRecord:
    tags = run.data.tags
    start = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    own = (tags.get(MLFLOW_PARENT_RUN_ID), tags, run.data.params, run.data.metrics)
    return RunRecord(run.info.run_id, experiment, run.info.run_name, run.info.status, start, *own)
