"""How runs are made: finished ones are skipped, interrupted ones resumed, the rest made, needed ones first.

Nothing else opens or ends a run.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import pandas as pd
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from tqdm import tqdm

from skdcgn.distributed import broadcast, decide, group, rank
from skdcgn.errors import InputError, Interrupted
from skdcgn.files import remove_checkpoint
from skdcgn.runs.identity import Identity, flatten
from skdcgn.runs.leases import Heartbeat, Lease, Watch
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.provenance import provenance
from skdcgn.runs.run import Busy, Follower, Interruption, Run, announce
from skdcgn.runs.store import RunRecord, Store, open_store
from skdcgn.runtime import setup

_PATIENCE = 2.0  # seconds between two looks at a run that another process is at
_SETTLE = 0.5  # seconds in which processes on other machines see what this one wrote to the tracking server


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


def state_of(case: Case, store: Store, force: str = "") -> State:
    """Tell whether a case is finished, resumable or running, or why it would run (again).

    Args:
        case: the case.
        store: the run store.
        force: only runs with this value of the tag `forced` count, where it is given.
    """
    same = store.runs(case.experiment, identity=case.identity.digest, **({"forced": force} if force else {}))
    for status, wanted in (("finished", {"FINISHED"}), ("running", {"RUNNING"}), ("resumable", {"KILLED", "FAILED"})):
        for run in same:
            if run.status in wanted:
                gone = status == "running" and Watch().gone(run.run_id, run.tags)
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


class Terminal:
    """Where a run is made: in a terminal its output appears there, and signals interrupt it."""

    def say(self, message: str) -> None:
        """Tell what happens to a run."""
        tqdm.write(message)

    def interruption(self) -> Interruption:
        """Return what asks a training to stop, to be entered for its length."""
        return Interruption()

    def output(self, run: Run) -> contextlib.AbstractContextManager[object]:
        """Return where the output of a run goes, to be entered for its length."""
        return contextlib.nullcontext()

    def wait(self, busy: Busy) -> None:
        """Wait a little for another process that is at a run."""
        self.say(f"{busy}: waiting for it.")
        time.sleep(_PATIENCE)


def carry_out(plan: Plan, store: Store | None = None) -> pd.DataFrame:
    """Make every run of a plan that is not there yet, one after the other in this process.

    Args:
        plan: what to run.
        store: the run store; the default one if left out.

    Returns:
        See `results`.

    Raises:
        InputError: bad input.
        Interrupted: a signal came in; the run left a checkpoint.
    """
    with group(setup(plan.runtime)):
        store, force = store or open_store(), new_force()
        finished: dict[str, RunRecord] = {}
        for case in plan.everything():
            needs = {name: finished[needed.identity.digest] for name, needed in case.needs.items()}
            finished[case.identity.digest] = make(case, store, needs, force)
    return results(plan, finished)


def results(plan: Plan, finished: Mapping[str, RunRecord]) -> pd.DataFrame:
    """Return the final metrics and the `run_id` of each case of a plan, a row for each, indexed by the plan's tags.

    Args:
        plan: what was run.
        finished: its runs by the digest of their identity.
    """
    rows = []
    for case in plan.cases:
        run = finished[case.identity.digest]
        told = {name: case.tags.get(name, "") for name in plan.index}
        rows.append({**told, "run_id": run.run_id, **run.final})
    return pd.DataFrame(rows).set_index(list(plan.index))


def new_force() -> str:
    """Return a new value of the tag `forced`: of what is made again in one start, so that it too can be resumed."""
    return uuid.uuid4().hex[:8]


def make(
    case: Case, store: Store, needs: Mapping[str, RunRecord], force: str, terminal: Terminal | None = None
) -> RunRecord:
    """Make one run, unless it is there; where another process is at it, wait until it is there or can be taken over.

    Of several processes that torchrun started, the first one decides.

    Args:
        case: the run to make.
        store: the run store.
        needs: the finished runs that it needs, by name.
        force: see `new_force`; matters where the config has `runtime.force`.
        terminal: where it is made.

    Raises:
        InputError: bad input, or this very process is at the run already.
        Interrupted: a signal came in; the run left a checkpoint.
    """
    terminal, watch, taken = terminal or Terminal(), Watch(), list[Run]()

    def take() -> RunRecord | None:
        while True:
            try:
                claimed = claim(case, store, watch, force, terminal)
            except Busy as busy:
                terminal.wait(busy)
                continue
            if isinstance(claimed, RunRecord):
                return claimed
            taken.append(claimed)
            return None

    def perform() -> RunRecord:
        with _recording(taken[0], store, terminal) as run:
            if case.parallel:
                announce(run)
            case.make(run, case.config, needs)
        return store.record(run.run_id)

    finished = decide(take)
    if finished is not None:
        return finished
    try:
        if not case.parallel:
            return decide(perform)
        if rank():
            case.make(Follower(store), case.config, needs)
        return broadcast(None if rank() else perform())
    except Busy as busy:  # somebody took this process for dead, and has the run now
        terminal.wait(busy)
        return make(case, store, needs, force, terminal)


def claim(case: Case, store: Store, watch: Watch, force: str, terminal: Terminal) -> RunRecord | Run:
    """Return the finished run of a case, or else take hold of one to make: an interrupted one to resume, or a new one.

    Processes that share the store's folder take turns. Where they do not, two may take the same run at the same moment:
    each looks again before it begins, and one of them yields.

    Raises:
        Busy: another process is at the run.
    """
    with store.lock():
        store.end_dead_runs(case.experiment, watch)
        force = force if case.config.runtime.force else ""
        state = state_of(case, store, force)
        if state.status == "running":
            busy = Busy(case, state.run)
            if busy.lease is not None and busy.lease.here:
                raise InputError(f"{busy}, which is this one: make it once.")
            raise busy
        if state.status == "finished":
            store.remove_checkpoints([state.run])
            terminal.say(f"{case}: finished before, skipped (run {state.run.run_id})")
            return state.run
        lease = Lease.take()
        if state.status == "resumable":
            run = Run(store, state.run.run_id, lease, reopened=True)
            store.set_tags(run.run_id, lease.tags)
            store.set_status(run.run_id, "RUNNING")
            if "error" in state.run.tags:
                store.client.delete_tag(run.run_id, "error")
            terminal.say(f"{case}: resuming{run.progress} (run {run.run_id})")
        else:
            run = create(case, store, lease, force)
    if not store.local:
        _settle(case, store, run, force)
    return run


def _settle(case: Case, store: Store, run: Run, force: str) -> None:
    """See that no process elsewhere took the run, or created the same one, at the same moment.

    Raises:
        Busy: one did, and it goes on.
    """
    time.sleep(_SETTLE)
    same = store.runs(case.experiment, "RUNNING", identity=case.identity.digest, **({"forced": force} if force else {}))
    others = [other for other in same if other.run_id != run.run_id]
    first = [other for other in others if "begun" in other.tags or other.run_id < run.run_id]
    if first:
        if run.reopened:
            store.set_status(run.run_id, "KILLED")
        else:
            store.client.delete_run(run.run_id)
        raise Busy(case, first[0])
    if not store.is_held(run.run_id, run.lease):
        raise Busy(case, store.record(run.run_id))
    run.set_tags({"begun": True})


@contextlib.contextmanager
def _recording(run: Run, store: Store, terminal: Terminal) -> Iterator[Run]:
    """Run a block as a run that ends FINISHED, KILLED (on a signal) or FAILED (on any other error)."""
    monitor = SystemMetricsMonitor(run.run_id, resume_logging=run.reopened, tracking_uri=store.uri)
    status = "FAILED"
    with Heartbeat(store, run.run_id, run.lease) as heartbeat, terminal.output(run):
        run.attend(terminal.interruption, heartbeat)
        monitor.start()
        try:
            yield run
            run.flush()
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        except Busy:  # whoever has the run now says how it ends
            raise
        except BaseException as error:
            with contextlib.suppress(MlflowException):  # a full disk need not keep the status from being written
                run.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            monitor.finish()
            if not heartbeat.lost:
                with contextlib.suppress(MlflowException):
                    run.flush()
                store.set_status(run.run_id, status)
            if status == "FINISHED":
                remove_checkpoint(run.checkpoint)


def create(case: Case, store: Store, lease: Lease, force: str = "") -> Run:
    """Create the run of a case, with its config and everything that says where it comes from."""
    tags = {
        **provenance(),
        **identity_tags(case.identity),
        MLFLOW_RUN_NOTE: case.description,
        **case.tags,
        **lease.tags,
    }
    run = Run(store, store.create_run(case.experiment, case.name, {**tags, "forced": force}, case.description), lease)
    parameters = [Param(key, str(value)) for key, value in flatten(asdict(case.config)).items()]
    store.client.log_batch(run.run_id, params=parameters)
    return run


def identity_tags(identity: Identity) -> dict[str, str]:
    """Return the tags by which a run is known again, and told apart from later ones."""
    return {"identity": identity.digest, "dependencies": json.dumps(asdict(identity), sort_keys=True)}
