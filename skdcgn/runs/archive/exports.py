"""From a run store into an archive."""

import contextlib
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from tqdm import tqdm

from skdcgn.errors import InputError
from skdcgn.runs.archive.bundle import IMPORTING, ORIGIN, ORIGIN_STORE, DataInput, RunEntry, write_archive
from skdcgn.runs.store import RunRecord, Store


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
    with sentences(store):
        known = store.experiments()
        for name in experiments:
            if name not in known:
                raise InputError(f"the store {store.uri} has no experiment {name!r}: choose from {', '.join(known)}.")
        found = {name: _whole(store.runs(name), unfinished) for name in sorted({*experiments} or known)}
        counts = Counter({name: len(runs) for name, runs in found.items() if runs})
        if not counts:
            kind = "" if unfinished else "finished "
            raise InputError(f"the store {store.uri} has no {kind}run to export: check MLFLOW_TRACKING_URI.")
        tags = {name: _experiment_tags(store, name) for name in counts}
        with write_archive(path) as writer:
            for run in tqdm([run for runs in found.values() for run in runs], desc="exporting", unit="run"):
                with tempfile.TemporaryDirectory() as folder:
                    if store.files(run.run_id):
                        store.client.download_artifacts(run.run_id, "", folder)
                    writer.add(_entry(store, run), Path(folder))
            writer.finish(tags)
    return counts


def _whole(runs: Sequence[RunRecord], unfinished: bool) -> list[RunRecord]:
    """Return the runs to export, ordered by their ids; of those that belong to another one, that one decides."""
    by_id = {run.run_id: run for run in runs if IMPORTING not in run.tags}
    chosen = [run for run in by_id.values() if unfinished or by_id[root_of(run.run_id, by_id)].status == "FINISHED"]
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
    if is_local(store):
        place = Path(local_file_uri_to_path(experiment.artifact_location))
        if not place.exists() and store.folder.resolve() not in place.parents:
            raise InputError(
                f"what the runs of {name} kept is looked for in {place}, where nothing is: the store was moved, and "
                "mlruns/README.md says how to mend that."
            )
    return experiment.tags


def is_local(store: Store) -> bool:
    """Whether a store is a file of this machine."""
    return store.uri.startswith("sqlite:///")


def _address(store: Store) -> str:
    """Name a store and this machine, without the password that an address may have."""
    parts = urlsplit(store.uri)
    address = store.uri.replace(parts.netloc, parts.netloc.rpartition("@")[2]) if parts.netloc else store.uri
    return f"{address} on {socket.gethostname()}"


# --- shared with imports


def root_of(run_id: str, runs: Mapping[str, RunRecord] | Mapping[str, RunEntry]) -> str:
    """Return the id of the run that a run belongs to in the end; its own where that is not among the runs."""
    above = [run_id]
    while (parent := runs[above[-1]].parent) in runs and parent not in above:
        above.append(parent)
    return above[-1]


@contextlib.contextmanager
def sentences(store: Store) -> Iterator[None]:
    """Turn the errors of a store into one sentence."""
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the run store {store.uri} failed ({reason}): mend that, and start the same again.") from None
