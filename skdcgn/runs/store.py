"""The run store: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or a tracking server.

`Store` and what it returns are this project's own types: no other module than those of `skdcgn.runs` knows MLflow.
"""

import contextlib
import dataclasses
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from skdcgn.errors import InputError, disk_fault
from skdcgn.files import remove_checkpoint
from skdcgn.runs.leases import Lease, Watch
from skdcgn.runs.provenance import PROJECT

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would ask the network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault(
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
)  # a server's, in the middle of the progress line

import mlflow
import sqlalchemy
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

for _chatty in ("mlflow.system_metrics", "alembic"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints tracebacks of what it raises as well

_FIRST_CALL = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""How long a tracking server may take to answer at first; MLflow's own limits are minutes."""

_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts


def default_folder() -> Path:
    """Return the folder of the local store: `mlruns` of the clone, or of the working directory elsewhere."""
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "mlruns"


def open_store(uri: str | None = None, patient: bool = False) -> "Store":
    """Open the run store, creating it where it does not exist yet.

    Args:
        uri: an MLflow tracking URI; by default `MLFLOW_TRACKING_URI`, or else the local SQLite store.
        patient: wait for a server that does not answer as long as MLflow does, minutes: it was there before.

    Raises:
        InputError: the store cannot be opened.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{default_folder() / 'mlflow.db'}"
    try:
        return Store(uri, patient)
    except Exception as error:  # MLflow, SQLAlchemy, Alembic, SQLite and database drivers have errors of their own
        reason = disk_fault(error, uri.removeprefix("sqlite:///")) or _reason(error)
        raise InputError(f"the run store {uri} cannot be opened: {reason}") from None


def _reason(error: Exception) -> str:
    """Say why a store cannot be opened, where it is not a disk's fault, and how to mend that."""
    text = " ".join(str(error).split())
    if "database schema" in text:
        return f"another version of MLflow than this ({mlflow.__version__}) made it: use that one, or another store."
    return f"{text[:200].rstrip('.')}: correct MLFLOW_TRACKING_URI."


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "handle_error")
def _name_database(context: sqlalchemy.engine.ExceptionContext) -> None:
    """Have an error of SQLite say which file it is about."""
    if context.engine is not None:
        context.original_exception.filename = context.engine.url.database


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables inside a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as the store has it."""

    run_id: str
    experiment: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    start_time: datetime
    seconds: float | None
    """From start to end, interruptions included; None where it has not ended."""
    parent: str | None
    """Id of the run that this one belongs to: a trial's is its study."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    """The config, by dotted names."""
    metrics: Mapping[str, float]
    """The latest value of every metric but the system's."""

    @property
    def final(self) -> dict[str, float]:
        """The metrics `final/<name>` by their name."""
        return {key.removeprefix("final/"): value for key, value in self.metrics.items() if key.startswith("final/")}


class Store:
    """A run store: what experiments write to, and the analysis reads."""

    def __init__(self, uri: str, patient: bool = False) -> None:
        self.uri = uri
        self.folder = default_folder()
        self.local = uri.startswith("sqlite:///")
        if self.local:
            database = Path(uri.removeprefix("sqlite:///"))
            self.folder = database.parent
            # Processes that create the tables at the same moment would fail: one of them does it, the others wait.
            with self.lock():
                if not database.exists() or not database.stat().st_size:
                    _create_database(database)
                with contextlib.closing(sqlite3.connect(database)) as connection:
                    connection.execute("SELECT * FROM sqlite_master")  # MLflow tries a damaged file for minutes
                    connection.execute("PRAGMA journal_mode=wal")  # several writers get in each other's way less
        limits = {} if patient else {name: os.environ.get(name, limit) for name, limit in _FIRST_CALL.items()}
        with environment(**limits):
            self.client = mlflow.MlflowClient(uri)
            self.client.search_experiments(max_results=1)

    def lock(self) -> FileLock:
        """Return the lock that processes take in turns which decide what to make; it holds in one folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".store.lock")

    def experiment_id(self, name: str, description: str = "") -> str:
        """Return MLflow's id of an experiment, creating the experiment where it does not exist yet."""
        existing = self.client.get_experiment_by_name(name)
        if existing is None:
            location = str(self.folder.resolve() / "artifacts" / name) if self.local else None
            try:
                found = self.client.create_experiment(name, location, tags=_EXPERIMENT_KIND)
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(name).experiment_id
        else:
            found = existing.experiment_id
        if description:
            self.client.set_experiment_tag(found, MLFLOW_RUN_NOTE, description)
        return found

    def create_run(self, experiment: str, name: str, tags: Mapping[str, object], description: str = "") -> str:
        """Create a run in an experiment, with all its tags at once, and return its id."""
        texts = {key: _text(value) for key, value in tags.items()}
        experiment_id = self.experiment_id(experiment, description)
        return self.client.create_run(experiment_id, tags=texts, run_name=name).info.run_id

    def experiments(self) -> list[str]:
        """Return the names of the experiments, sorted."""
        return sorted(experiment.name for experiment in self.client.search_experiments())

    def runs(self, experiment: str, status: str | None = None, **tags: str) -> list[RunRecord]:
        """Return the runs of an experiment with a status and tags, newest first; none where there is no experiment.

        Args:
            experiment: its name.
            status: such as FINISHED; any by default.
            tags: values by name.
        """
        existing = self.client.get_experiment_by_name(experiment)
        if existing is None:
            return []
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        wanted += [f"attributes.status = '{status}'"] if status else []
        runs, token = [], None
        while True:
            page = self.client.search_runs(
                [existing.experiment_id],
                " and ".join(wanted),
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += [_record(run, experiment) for run in page]
            token = page.token
            if not token:
                return runs

    def record(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            InputError: there is no such run.
        """
        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            raise InputError(f"the store {self.uri} has no run {run_id}: correct the id.") from None
        return _record(run, self.client.get_experiment(run.info.experiment_id).name)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return a metric's (step, value), in order; of a step that was logged twice the later value."""
        logged = sorted(self.client.get_metric_history(run_id, metric), key=lambda each: (each.step, each.timestamp))
        return list({each.step: (each.step, each.value) for each in logged}.values())

    def files(self, run_id: str, folder: str = "") -> list[str]:
        """Return the paths of what a run kept in one of its folders, sorted."""
        return sorted(file.path for file in self.client.list_artifacts(run_id, folder or None))

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

    def load_tensors(self, run_id: str, name: str) -> dict[str, Tensor]:
        """Load what `Run.log_tensors` kept under a name.

        Raises:
            InputError: there is no such run, it kept no such tensors, or they are damaged.
        """
        with self.artifact(run_id, f"{name}.safetensors") as path:
            try:
                return load_file(path)
            except SafetensorError as error:
                raise InputError(
                    f"{path.name} of run {run_id} in the store {self.uri} is damaged ({error}): restore it "
                    "from a copy, or make the run again with --runtime.force."
                ) from None

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags of a run; booleans become true and false."""
        self.client.log_batch(run_id, tags=[RunTag(key, _text(value)) for key, value in tags.items()])

    def set_status(self, run_id: str, status: str) -> None:
        """Set the status of a run; one that ends it sets its end time too."""
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status)

    def is_held(self, run_id: str, lease: Lease) -> bool:
        """Whether a run is in progress under a lease; not any more where another process took the run over."""
        run = self.record(run_id)
        held = Lease.read(run.tags)
        return run.status == "RUNNING" and held is not None and held.key == lease.key

    def remove_checkpoints(self, finished: Iterable[RunRecord]) -> None:
        """Remove what finished runs left whose processes were killed at the very end."""
        done = {run.run_id for run in finished}
        for path in (self.folder / "checkpoints").glob("*.pt"):
            if path.stem in done:
                remove_checkpoint(path)

    def end_dead_runs(self, experiment: str, watch: Watch) -> None:
        """End as KILLED the runs whose process is gone, which a killed process cannot do itself; not trials."""
        for run in self.runs(experiment, "RUNNING"):
            if run.parent is None and watch.gone(run.run_id, run.tags):
                self.set_status(run.run_id, "KILLED")


def _create_database(path: Path) -> None:
    """Create the database of a store, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        database = Path(folder) / path.name
        mlflow.MlflowClient(f"sqlite:///{database}").search_experiments(max_results=1)
        database.rename(path)


def _record(run: mlflow.entities.Run, experiment: str) -> RunRecord:
    tags = run.data.tags
    return RunRecord(
        run.info.run_id,
        experiment,
        run.info.run_name,
        run.info.status,
        datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        run.info.end_time and (run.info.end_time - run.info.start_time) / 1000,
        tags.get(MLFLOW_PARENT_RUN_ID),
        tags,
        run.data.params,
        {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")},
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
