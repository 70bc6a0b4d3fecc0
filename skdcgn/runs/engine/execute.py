"""The driver: hands tasks to workers, those first on which most depends, and keeps account of how each ends."""

import queue
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from distributed import Client, Future, KilledWorker

from skdcgn.errors import InputError, Interrupted
from skdcgn.runs.engine.cluster import GPU
from skdcgn.runs.engine.durations import Durations, chains
from skdcgn.runs.engine.progress import Progress
from skdcgn.runs.engine.tasks import Stage, Task
from skdcgn.runs.engine.worker import TaskFailed, perform, stop
from skdcgn.runs.leases import Watch
from skdcgn.runs.run import Interruption
from skdcgn.runs.store import RunRecord, Store

_GRACE = 30.0  # seconds that runs have to write their checkpoints when they are asked to stop
_LOOK = 10.0  # seconds between two looks for runs whose processes are gone, and for workers that are
_BACK = 20.0  # seconds by which the clock may be moved back between two looks


@dataclass
class Outcome:
    """How tasks have ended, by their keys."""

    tasks: dict[str, Task] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    failed: dict[str, TaskFailed] = field(default_factory=dict)
    not_run: set[str] = field(default_factory=set)
    """Those that need one that failed, and those that were interrupted."""
    signum: int | None = None
    """The signal that ended the work early, if one did."""

    def has_ended(self, key: str) -> bool:
        """Whether a task has ended, however."""
        return key in self.runs or key in self.failed or key in self.not_run


class Driver:
    """Executes tasks on the workers of a client."""

    def __init__(self, client: Client, store: Store, workers: int) -> None:
        self._client, self._store, self._workers, self._durations = client, store, workers, Durations()
        self._progress = Progress(self._durations, workers)
        self._id = f"skdcgn-{uuid.uuid4().hex[:8]}"
        self._news: queue.SimpleQueue[tuple[str, Mapping[str, str]]] = queue.SimpleQueue()
        self._futures: dict[str, Future] = {}
        self._stages: list[Stage] = []
        self._finished: dict[str, dict[str, RunRecord]] = {}
        self._watch, self._looked, self._clock = Watch(), time.monotonic(), _clock()
        self.outcome = Outcome()

    def execute(self, stages: Sequence[Stage]) -> Outcome:
        """Execute stages side by side, until every task has ended or a signal comes in.

        A task that fails stops only those that need its run. A stage is followed by what comes `then` if all of its
        tasks have ended well.

        Raises:
            InputError: the scheduler is gone, or the clock was moved back.
        """
        self._client.subscribe_topic(self._id, lambda event: self._news.put((event[1]["key"], event[1])))
        try:
            with Interruption() as interruption:
                self._begin(stages)
                while self._stages and interruption.signum is None:
                    self._take_in_news()
                self.outcome.signum = interruption.signum
                if interruption.signum is not None:
                    self._stop(interruption.signum)
        finally:
            self._progress.close()
            if self._futures:
                self._progress.say(self._progress.busy())
            if self._client.status == "running":
                self._client.cancel(list(self._futures.values()))
        return self.outcome

    def _begin(self, stages: Sequence[Stage]) -> None:
        """Hand the tasks of stages to the workers, but for those whose runs are there."""
        new = {task.key: task for stage in stages for task in stage.tasks if task.key not in self.outcome.tasks}
        for experiment in sorted({task.experiment for task in new.values()} - self._finished.keys()):
            runs = self._store.runs(experiment, "FINISHED")[::-1]
            self._durations.learn(runs)
            self._store.remove_checkpoints(runs)
            self._finished[experiment] = {run.tags.get("identity", ""): run for run in runs}
        found = {key: task.find(self._finished[task.experiment]) for key, task in new.items()}
        self.outcome.tasks |= new
        self.outcome.runs |= {key: run for key, run in found.items() if run is not None}
        self._progress.add(list(new.values()), {key for key, run in found.items() if run is not None})
        left = [task for key, task in new.items() if found[key] is None]
        priorities = chains(left, self._durations)
        for task in left:
            self._submit(task, priorities[task.key])
        self._stages += stages
        self._end_stages()

    def _submit(self, task: Task, priority: float) -> None:
        runs = self.outcome.runs
        needs = {name: runs[key].run_id if key in runs else self._futures[key] for name, key in task.needs.items()}
        self._futures[task.key] = self._client.submit(
            perform,
            task,
            self._id,
            self._store.uri,
            needs,
            key=f"{task.key}-{self._id}",
            priority=priority,
            resources={GPU: 1} if task.device.startswith("cuda") else None,
        )
        self._futures[task.key].add_done_callback(partial(self._done, task.key))

    def _done(self, key: str, _: Future) -> None:
        self._news.put((key, {}))

    def _take_in_news(self) -> None:
        """Take in what happens next, if anything does within half a second."""
        try:
            key, event = self._news.get(timeout=0.5)
            if event:
                self._progress.event(self.outcome.tasks[key], event)
            else:
                self._end(key)
                self._end_stages()
        except queue.Empty:
            pass
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            self._check_clock()
            for experiment in self._finished:
                self._store.end_dead_runs(experiment, self._watch)
            if self._client.cluster is not None:
                self._client.cluster.scale(self._workers)  # Dask gives up on a worker that dies while it starts
        self._progress.show()

    def _check_clock(self) -> None:
        """Raise InputError where the clock was moved back: Dask's messages wait until it shows their time again."""
        before, self._clock = self._clock, _clock()
        if (back := before - self._clock) > _BACK:
            raise InputError(
                f"the clock was moved back by {timedelta(seconds=round(back))}, which Dask's workers do not survive: "
                "start the same command again, which goes on."
            )

    def _end(self, key: str) -> None:
        """Note how a task has ended."""
        task, future, outcome = self.outcome.tasks[key], self._futures[key], self.outcome
        if future.status == "finished":
            outcome.runs[key] = self._store.record(future.result())
            self._progress.ended(task)
            return
        if future.cancelled():  # by Dask's client, all of them at once: nobody else cancels any
            raise InputError("the Dask scheduler is gone: start it again, then the same command, which goes on.")
        error = future.exception()
        if (isinstance(error, TaskFailed) and error.status == "interrupted") or any(
            need in self._futures and self._futures[need].status != "finished" for need in task.needs.values()
        ):
            outcome.not_run.add(key)
            self._progress.ended(task, "not run")
        else:
            outcome.failed[key] = failed = _failure(error)
            self._progress.ended(task, "failed", f"{failed.reason}{f' (log: {failed.log})' if failed.log else ''}")

    def _end_stages(self) -> None:
        """Begin what comes after the stages that are done."""
        for stage in list(self._stages):
            if all(self.outcome.has_ended(task.key) for task in stage.tasks):
                self._stages.remove(stage)
                self._follow(stage)

    def _follow(self, stage: Stage) -> None:
        """Begin what comes after a stage, if that has ended well."""
        if any(task.key not in self.outcome.runs for task in stage.tasks):
            return
        try:
            following = stage.then(self.outcome.runs)
        except InputError as error:
            last = stage.tasks[-1]
            self.outcome.failed[f"after {last.key}"] = TaskFailed("input", str(error), "")
            self._progress.say(f"{last.experiment}: {error}")
            return
        if following is not None:
            self._begin([following])

    def _stop(self, signum: int) -> None:
        """Ask all runs to stop, and give them the time for their checkpoints; a second signal spares that."""
        self._progress.say(f"{Interrupted(signum)}: waiting for checkpoints; another Ctrl-C does not wait.")
        try:
            self._client.run(stop, self._id, signum, on_error="ignore")  # a worker may die meanwhile
            end = time.monotonic() + _GRACE
            while self._progress.running and time.monotonic() < end:
                self._take_in_news()
        except KeyboardInterrupt:
            pass


def _clock() -> float:
    """Return by how much the clock on the wall is ahead of the one that nobody moves."""
    return time.time() - time.monotonic()


def _failure(error: BaseException) -> TaskFailed:
    if isinstance(error, TaskFailed):
        return error
    if isinstance(error, KilledWorker):
        return TaskFailed("error", "each worker that took it died: for want of memory?", "")
    return TaskFailed("error", f"{type(error).__name__}: {error}", "")
