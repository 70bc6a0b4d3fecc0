"""How runs are made: finished ones are skipped, interrupted ones resumed, the rest made, needed ones first.

Nothing else opens or ends a run.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import pandas as pd
from mlflow.entities import Param
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from tqdm import tqdm

from skdcgn.distributed import broadcast, decide, group, rank
from skdcgn.errors import InputError, Interrupted
from skdcgn.runs.identity import Identity, flatten
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.provenance import process_state, provenance, this_process
from skdcgn.runs.run import Follower, Run, announce
from skdcgn.runs.store import RunRecord, Store, open_store
from skdcgn.runtime import setup


class State(NamedTuple):
    """How far a case is, in a store."""

    status: Literal["finished", "resumable", "running", "new", "changed"]
    run: RunRecord | None
    """The finished, resumable or running one; of a changed case the run that differs least."""
    reasons: tuple[str, ...] = ()
    """Of a changed case: the fields, inputs and modules in which that run differs."""

    def __str__(self) -> str:
        if self.status == "changed":
            return f"to run again: {'; '.join(self.reasons)}"
        return "to run" if self.status == "new" else f"{self.status} (run {self.run.run_id[:8]})"


def state_of(case: Case, store: Store, force: bool = False) -> State:
    """Tell whether a case is finished, resumable or running, or why it would run (again)."""
    same = [] if force else store.runs(case.experiment, identity=case.identity.digest)
    for status, wanted in (("finished", {"FINISHED"}), ("running", {"RUNNING"}), ("resumable", {"KILLED", "FAILED"})):
        for run in same:
            if run.status in wanted:
                gone = status == "running" and process_state(run.tags.get("process", "")) == "gone"
                return State("resumable" if gone else status, run)
    told = {name: str(case.tags[name]) for name in ("profile", "dataset") if name in case.tags}
    earlier = [run for run in store.runs(case.experiment, "FINISHED", **told) if run.name == case.name]
    if not earlier:
        return State("new", None)
    reasons, run = nearest(case.identity, earlier)
    return State("changed", run, reasons or ("--runtime.force",))


def nearest(identity: Identity, earlier: Sequence[RunRecord]) -> tuple[tuple[str, ...], RunRecord]:
    """Return the earlier run that differs least, after the fields, inputs and modules in which it does."""

    def differences(run: RunRecord) -> tuple[str, ...]:
        parts = json.loads(run.tags.get("dependencies", "{}"))
        return tuple(identity.differences(*(parts.get(name, {}) for name in ("config", "inputs", "code"))))

    return min(((differences(run), run) for run in earlier), key=lambda pair: len(pair[0]))


def carry_out(plan: Plan, store: Store | None = None) -> pd.DataFrame:
    """Make every run of a plan that is not there yet.

    Args:
        plan: what to run.
        store: the run store; the default one if left out.

    Returns:
        The final metrics and the `run_id` of each case of the plan, a row for each, indexed by the plan's tags.

    Raises:
        InputError: bad input, or another process is at one of the runs.
        Interrupted: a signal came in; the run left a checkpoint.
    """
    rows = []
    with group(setup(plan.runtime)):
        store = store or open_store()
        finished: dict[str, RunRecord] = {}
        for case in plan.everything():
            finished[case.identity.digest] = _carry_out_one(case, store, finished)
        for case in plan.cases:
            run = finished[case.identity.digest]
            told = {name: case.tags.get(name, "") for name in plan.index}
            rows.append({**told, "run_id": run.run_id, **run.final})
    return pd.DataFrame(rows).set_index(list(plan.index))


def _carry_out_one(case: Case, store: Store, finished: Mapping[str, RunRecord]) -> RunRecord:
    """Make one run, unless it is there; of several processes the first one decides."""
    state = decide(lambda: _claim(case, store))
    if state.status == "finished":
        return state.run
    needs = {name: finished[needed.identity.digest] for name, needed in case.needs.items()}

    def make() -> RunRecord:
        with _recording(case, store, state) as run:
            if case.parallel:
                announce(run)
            case.make(run, case.config, needs)
        return store.record(run.run_id)

    if not case.parallel:
        return decide(make)
    if rank():
        case.make(Follower(store), case.config, needs)
    return broadcast(None if rank() else make())


def _claim(case: Case, store: Store) -> State:
    """Tell how far a case is, and say so where it is not simply to be run."""
    store.end_dead_runs(case.experiment)
    state = state_of(case, store, case.config.runtime.force)
    if state.status == "running":
        process = state.run.tags.get("process", "unknown")
        raise InputError(f"{case} is running already, in process {process}: wait for it, or end it.")
    if state.status in ("finished", "resumable"):
        word = "finished before, skipped" if state.status == "finished" else "resuming"
        tqdm.write(f"{case}: {word} (run {state.run.run_id})")
    return state


@contextlib.contextmanager
def _recording(case: Case, store: Store, state: State) -> Iterator[Run]:
    """Run a block as a case's run that ends FINISHED, KILLED (on a signal) or FAILED (on any other error)."""
    resumed = state.status == "resumable"
    if resumed:
        run = Run(store, state.run.run_id, resumed=True)
        store.set_status(run.run_id, "RUNNING")
        run.set_tags({"process": this_process()})
        if "error" in state.run.tags:
            store.client.delete_tag(run.run_id, "error")
    else:
        run = create(case, store)
    monitor = SystemMetricsMonitor(run.run_id, resume_logging=resumed, tracking_uri=store.uri)
    monitor.start()
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except BaseException as error:
        run.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
        raise
    finally:
        monitor.finish()
        run.flush()
        store.set_status(run.run_id, status)
        if status == "FINISHED":
            run.checkpoint.unlink(missing_ok=True)


def create(case: Case, store: Store) -> Run:
    """Create the run of a case, with its config and everything that says where it comes from."""
    created = store.client.create_run(store.experiment_id(case.experiment, case.description), run_name=case.name)
    run = Run(store, created.info.run_id)
    run.set_tags({**provenance(), **identity_tags(case.identity), MLFLOW_RUN_NOTE: case.description, **case.tags})
    parameters = [Param(key, str(value)) for key, value in flatten(asdict(case.config)).items()]
    store.client.log_batch(run.run_id, params=parameters)
    return run


def identity_tags(identity: Identity) -> dict[str, str]:
    """Return the tags by which a run is known again, and told apart from later ones."""
    return {"identity": identity.digest, "dependencies": json.dumps(asdict(identity), sort_keys=True)}
