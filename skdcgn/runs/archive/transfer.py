"""From a run store into an archive, and from archives into a run store.

A run is known again by its origin: the id that it had in the store that made it, which an imported run has as a tag.
MLflow gives imported runs new ids. Where tags, params and texts that runs kept name runs by their ids, they are given
the new ones.
"""

import contextlib
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from tqdm import tqdm

from skdcgn.errors import InputError
from skdcgn.files import format_size
from skdcgn.runs.archive.bundle import ORIGIN, Archive, DataInput, RunEntry, open_archive, write_archive
from skdcgn.runs.store import RunRecord, Store

ORIGIN_STORE = "origin_store"
"""Tag of the store that made a run, and its machine."""
IMPORTING = "importing"
"""Tag of a run that is not there in full yet."""

_METRICS, _OTHERS = 1000, 100  # what MLflow takes in one call
_TEXTS = (".csv", ".json", ".txt", ".yaml")
_RUN_ID = re.compile(b"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_RANKS = {"SCHEDULED": 0, "RUNNING": 1, "KILLED": 2, "FAILED": 2, "FINISHED": 3}

Item = TypeVar("Item")


# --- export


def export_runs(store: Store, path: Path, experiments: Sequence[str] = (), unfinished: bool = False) -> Counter[str]:
    """Write runs into an archive.

    Runs that belong to another one, such as the trials of a study, go with it, however they ended.

    Args:
        store: whose runs.
        path: of the archive.
        experiments: their names; all of the store by default.
        unfinished: whether to take runs that have not finished too.

    Returns:
        The number of runs of each experiment.

    Raises:
        InputError: there is nothing to export, not all can be read, or the archive cannot be written.
    """
    known = store.experiments()
    for name in experiments:
        if name not in known:
            raise InputError(f"the store {store.uri} has no experiment {name!r}: choose from {', '.join(known)}.")
    chosen = {name: _whole(store.runs(name), unfinished) for name in sorted({*experiments} or known)}
    chosen = {name: runs for name, runs in chosen.items() if runs}
    if not chosen:
        kind = "" if unfinished else "finished "
        raise InputError(f"the store {store.uri} has no {kind}run to export: check MLFLOW_TRACKING_URI.")
    tags = {name: _experiment_tags(store, name) for name in chosen}
    with write_archive(path) as writer, _sentences(store):
        for run in tqdm([run for runs in chosen.values() for run in runs], desc="exporting", unit="run"):
            with tempfile.TemporaryDirectory() as folder:
                if store.files(run.run_id):
                    store.client.download_artifacts(run.run_id, "", folder)
                writer.add(_entry(store, run), Path(folder))
        writer.finish(tags)
    return Counter({name: len(runs) for name, runs in chosen.items()})


def _whole(runs: Sequence[RunRecord], unfinished: bool) -> list[RunRecord]:
    """Return the runs to export, ordered by their ids; of those that belong to another one, that one decides."""
    by_id = {run.run_id: run for run in runs if IMPORTING not in run.tags}
    chosen = [run for run in by_id.values() if unfinished or by_id[_root(run.run_id, by_id)].status == "FINISHED"]
    return sorted(chosen, key=lambda run: run.run_id)


def _entry(store: Store, record: RunRecord) -> RunEntry:
    run = store.client.get_run(record.run_id)
    metrics = {}
    for key in run.data.metrics:
        logged = store.client.get_metric_history(record.run_id, key)
        metrics[key] = sorted((each.step, each.timestamp, each.value) for each in logged)
    inputs = [
        DataInput(
            name=each.dataset.name,
            digest=each.dataset.digest,
            source_type=each.dataset.source_type,
            source=each.dataset.source,
            description=each.dataset.schema,
            profile=each.dataset.profile,
            tags={tag.key: tag.value for tag in each.tags},
        )
        for each in run.inputs.dataset_inputs
    ]
    return RunEntry(
        run_id=record.run_id,
        experiment=record.experiment,
        status=run.info.status,
        start_time=run.info.start_time,
        end_time=run.info.end_time,
        tags={ORIGIN: record.run_id, ORIGIN_STORE: _address(store), **run.data.tags},
        params=run.data.params,
        metrics=metrics,
        inputs=sorted(inputs, key=lambda each: (each.name, each.digest)),
    )


def _experiment_tags(store: Store, name: str) -> dict[str, str]:
    """Return the tags of an experiment, once it is clear that what its runs kept can be read."""
    experiment = store.client.get_experiment_by_name(name)
    if _is_local(store):
        place = Path(local_file_uri_to_path(experiment.artifact_location))
        if not place.exists() and store.folder.resolve() not in place.parents:
            raise InputError(
                f"what the runs of {name} kept is looked for in {place}, where nothing is: the store was moved, and "
                "mlruns/README.md says how to mend that."
            )
    return experiment.tags


def _is_local(store: Store) -> bool:
    return store.uri.startswith("sqlite:///")


def _address(store: Store) -> str:
    """Name a store and this machine, without the password that an address may have."""
    parts = urlsplit(store.uri)
    address = store.uri.replace(parts.netloc, parts.netloc.rpartition("@")[2]) if parts.netloc else store.uri
    return f"{address} on {socket.gethostname()}"


# --- import


@dataclass
class Summary:
    """What an import did: numbers of runs by experiment."""

    imported: Counter[str] = field(default_factory=Counter)
    there: Counter[str] = field(default_factory=Counter)
    """Those that the store had."""
    twins: Counter[str] = field(default_factory=Counter)
    """Those that were left out, because the store has a finished run of the same identity from elsewhere."""

    def __str__(self) -> str:
        experiments = f"{len(self.imported)} experiment{'s' * (len(self.imported) != 1)}"
        lines = [f"imported {_runs(self.imported)} of {experiments}; {self.there.total()} were there already"]
        if self.twins:
            where = ", ".join(f"{name} {count}" for name, count in sorted(self.twins.items()))
            lines.append(f"left out {_runs(self.twins)}, made elsewhere with the same identity: {where}")
        return "\n".join(lines)


def import_runs(store: Store, paths: Sequence[Path]) -> Summary:
    """Add the runs of archives to a store; no run, and no result, twice.

    Of finished runs of one identity, made by different stores, the first one stays alone. A run counts only once it is
    there in full: until then it is RUNNING and has the tag `importing`, and the next import of its archive goes on.

    Args:
        store: to add to.
        paths: of the archives. All are verified before the first run is written.

    Raises:
        InputError: an archive cannot be used, or the store cannot be written.
    """
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(open_archive(path)) for path in paths]
        size = sum(archive.size for archive in archives)
        if _is_local(store) and size > (free := shutil.disk_usage(store.folder).free):
            wanted = f"{format_size(size)} of room in {store.folder}, where {format_size(free)} are free"
            raise InputError(f"the import takes up to {wanted}: make room, or set MLFLOW_TRACKING_URI.")
        summary = Summary()
        stack.enter_context(FileLock(store.folder / ".import.lock"))  # two imports would each add the same run
        stack.enter_context(_sentences(store))
        for archive in archives:
            _Import(store, archive, summary).carry_out()
        return summary


class _Import:
    """The import of one archive."""

    def __init__(self, store: Store, archive: Archive, summary: Summary) -> None:
        self._store, self._archive, self._summary = store, archive, summary
        self._there: dict[str, RunRecord] = {}  # by origin
        self._results: dict[tuple[str, str], RunRecord] = {}  # by experiment and identity: finished, not of the archive
        self._ids: dict[str, str] = {}  # that runs have elsewhere, to those that they have here
        origins = {run.origin for run in archive.runs.values()}
        for run in (run for experiment in store.experiments() for run in store.runs(experiment)):
            origin = run.tags.get(ORIGIN, run.run_id)
            self._there[origin], self._ids[origin] = run, run.run_id
            if run.status == "FINISHED" and run.parent is None and "identity" in run.tags and origin not in origins:
                self._results.setdefault((run.experiment, run.tags["identity"]), run)

    def carry_out(self) -> None:
        """Add what is not there."""
        # All runs are begun before the first one is filled: any of them may name any other.
        begun = {run_id: self._target(run) for run_id, run in self._archive.runs.items()}
        todo = {run_id: target for run_id, target in begun.items() if target}
        for run_id in tqdm(todo, desc=f"importing {self._archive.path.name}", unit="run"):
            run = self._archive.run(run_id)
            self._fill(run, todo[run_id])
            self._summary.imported[run.experiment] += 1

    def _target(self, run: RunEntry) -> str | None:
        """Return the id of the run to fill, begun where it is not there; None where there is nothing to do."""
        there = self._there.get(run.origin)
        if there is not None and not _is_behind(there, run):
            self._ids[run.run_id] = there.run_id
            self._summary.there[run.experiment] += 1
            return None
        root = self._archive.runs[_root(run.run_id, self._archive.runs)]
        twin = self._results.get((root.experiment, root.tags.get("identity", "")))
        if twin is not None:
            self._ids[root.origin] = self._ids[root.run_id] = twin.run_id
            self._summary.twins[run.experiment] += 1
            return None
        if there is None:
            tags = {ORIGIN: run.origin, MLFLOW_RUN_NAME: f"{IMPORTING} {run.origin}", IMPORTING: "true"}
            target = self._store.client.create_run(self._experiment(run), run.start_time, tags).info.run_id
        else:
            target = there.run_id
            self._store.set_tags(target, {IMPORTING: True})
            self._store.set_status(target, "RUNNING")
            for tag in there.tags.keys() - run.tags.keys() - {IMPORTING}:
                self._store.client.delete_tag(target, tag)
        self._ids[run.origin] = self._ids[run.run_id] = target
        return target

    def _experiment(self, run: RunEntry) -> str:
        """Return the id of a run's experiment, with the tags that it lacks."""
        found = self._store.experiment_id(run.experiment)
        present = self._store.client.get_experiment(found).tags
        for key, value in self._archive.experiments[run.experiment].items():
            if key not in present:
                self._store.client.set_experiment_tag(found, key, value)
        return found

    def _fill(self, run: RunEntry, target: str) -> None:
        """Write a run; what is there of it already is not written twice."""
        client = self._store.client
        for params in _batches([Param(key, self._here(value)) for key, value in run.params.items()], _OTHERS):
            client.log_batch(target, params=params)
        logged = [(key, *each) for key, values in run.metrics.items() for each in values]
        for metrics in _batches([Metric(key, value, time, step) for key, step, time, value in logged], _METRICS):
            client.log_batch(target, metrics=metrics)
        if run.inputs:
            client.log_inputs(target, [_dataset_input(each) for each in run.inputs])
        with tempfile.TemporaryDirectory() as folder:
            for name, source in self._archive.artifacts(run.run_id):
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    self._copy(source, file, path.suffix in _TEXTS)
            if any(Path(folder).iterdir()):
                client.log_artifacts(target, folder)
        tags = {key: self._here(value) for key, value in run.tags.items()} | {ORIGIN: run.origin}
        for some in _batches([RunTag(key, value) for key, value in tags.items()], _OTHERS):
            client.log_batch(target, tags=some)
        status = _status(run)
        if run.end_time is None:
            client.update_run(target, status)
        else:
            client.set_terminated(target, status, run.end_time)
        client.delete_tag(target, IMPORTING)

    def _copy(self, source: IO[bytes], target: IO[bytes], is_text: bool) -> None:
        if is_text:
            target.writelines(_RUN_ID.sub(self._id_here, line) for line in source)
        else:
            shutil.copyfileobj(source, target)

    def _here(self, text: str) -> str:
        """Return a text with the ids that the runs in it have here."""
        return _RUN_ID.sub(self._id_here, text.encode()).decode()

    def _id_here(self, found: re.Match[bytes]) -> bytes:
        return self._ids.get(found[0].decode(), found[0].decode()).encode()


def _root(run_id: str, runs: Mapping[str, RunRecord] | Mapping[str, RunEntry]) -> str:
    """Return the id of the run that a run belongs to in the end; its own where that is not among the runs."""
    above = [run_id]
    while (parent := runs[above[-1]].parent) in runs and parent not in above:
        above.append(parent)
    return above[-1]


def _is_behind(there: RunRecord, run: RunEntry) -> bool:
    """Whether a run of the store was not imported in full, or before it got as far as the archive's."""
    return IMPORTING in there.tags or (ORIGIN in there.tags and _RANKS[there.status] < _RANKS[_status(run)])


def _status(run: RunEntry) -> str:
    """Return the status of a run when imported: nobody is at it, but a study may wait for a trial to come back."""
    return "KILLED" if run.status == "RUNNING" and run.parent is None else run.status


def _dataset_input(read: DataInput) -> DatasetInput:
    dataset = Dataset(read.name, read.digest, read.source_type, read.source, read.description, read.profile)
    return DatasetInput(dataset, [InputTag(key, value) for key, value in read.tags.items()])


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _runs(counts: Counter[str]) -> str:
    return f"{counts.total()} run{'s' * (counts.total() != 1)}"


@contextlib.contextmanager
def _sentences(store: Store) -> Iterator[None]:
    """Turn the errors of a store into one sentence."""
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the run store {store.uri} failed ({reason}): mend that, and start the same again.") from None
