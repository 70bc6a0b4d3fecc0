"""From archives into a run store.

A run is known again by its origin: the id that it had in the store that made it, which an imported run has as a tag.
MLflow gives imported runs new ids. Where tags, params and texts that runs kept name runs by their ids, they are given
the new ones.
"""

import contextlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from tqdm import tqdm

from skdcgn.errors import InputError
from skdcgn.files import format_size
from skdcgn.runs.archive.bundle import IMPORTING, ORIGIN, Archive, DataInput, RunEntry, open_archive
from skdcgn.runs.archive.exports import is_local, root_of, sentences
from skdcgn.runs.store import RunRecord, Store

_METRICS, _OTHERS = 1000, 100  # what MLflow takes in one call
_TEXTS = (".csv", ".json", ".txt", ".yaml")
_RUN_ID = re.compile(b"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_RANKS = {"SCHEDULED": 0, "RUNNING": 1, "KILLED": 2, "FAILED": 2}

Item = TypeVar("Item")


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
        if is_local(store) and size > (free := shutil.disk_usage(store.folder).free):
            wanted = f"{format_size(size)} of room in {store.folder}, where {format_size(free)} are free"
            raise InputError(f"the import takes up to {wanted}: make room, or set MLFLOW_TRACKING_URI.")
        summary = Summary()
        stack.enter_context(FileLock(store.folder / ".import.lock"))  # two imports would each add the same run
        stack.enter_context(sentences(store))
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
        self._parts: dict[str | None, set[str]] = {}  # by id of a run: origins of those that belong to it
        self._given: dict[str | None, set[str]] = {}  # the same of the archive
        self._roots = {run_id: archive.runs[root_of(run_id, archive.runs)] for run_id in archive.runs}
        for given in archive.runs.values():
            self._given.setdefault(given.parent, set()).add(given.origin)
        origins = {run.origin for run in archive.runs.values()}
        for run in (run for experiment in store.experiments() for run in store.runs(experiment)):
            origin = run.tags.get(ORIGIN, run.run_id)
            self._there[origin], self._ids[origin] = run, run.run_id
            self._parts.setdefault(run.parent, set()).add(origin)
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
        there, root = self._there.get(run.origin), self._roots[run.run_id]
        more = self._more(root)
        if there is not None and not _is_behind(there, run) and not (run is root and more):
            self._ids[run.run_id] = there.run_id
            self._summary.there[run.experiment] += 1
            return None
        twin = self._results.get((root.experiment, root.tags.get("identity", "")))
        if twin is not None or more is None:
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

    def _more(self, root: RunEntry) -> bool | None:
        """Whether the archive has more runs that belong to one that is there; None where each side has some of its own.

        A study that went on in two stores would otherwise have two trials of each number.
        """
        there, given = self._there.get(root.origin), self._given.get(root.run_id, set())
        here = self._parts.get(there.run_id, set()) if there else set()
        return given > here if given >= here else None

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


def _is_behind(there: RunRecord, run: RunEntry) -> bool:
    """Whether a run of the store was not imported in full, or before it got as far as the archive's."""
    if IMPORTING in there.tags or there.status == "FINISHED":
        return IMPORTING in there.tags
    imported_part = ORIGIN in there.tags and run.parent is not None
    return run.status == "FINISHED" or (imported_part and _RANKS[there.status] < _RANKS[run.status])


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
