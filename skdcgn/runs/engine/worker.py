"""What happens in a worker: a task's run is made there, its output goes to a log file, and it stops when asked to."""

import contextlib
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from distributed import Reschedule, Worker, WorkerPlugin, get_worker, rejoin, secede

from skdcgn.errors import InputError, Interrupted, disk_fault
from skdcgn.runs.engine.tasks import Task
from skdcgn.runs.lifecycle import Terminal
from skdcgn.runs.run import Busy, Interruption, Run
from skdcgn.runs.store import Store, open_store

_LOOK = 1.0  # seconds between two looks at a run that another process is at


class TaskFailed(Exception):
    """A task ended without its run: arguments are the status (error, input or interrupted), why, and the log."""

    @property
    def status(self) -> str:
        """How it ended."""
        return self.args[0]

    @property
    def reason(self) -> str:
        """One line."""
        return self.args[1]

    @property
    def log(self) -> str:
        """The path of its log on the worker's machine; empty where it has none."""
        return self.args[2]


class Attendant(WorkerPlugin):
    """Passes requests to stop on to the runs that a worker is at: trainings honor them between two steps."""

    name = "skdcgn"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Begin; a Ctrl-C in the terminal is the driver's business, and reaches this process through it."""
        self._interruptions: dict[str, Interruption] = {}
        self._stores: dict[str, Store] = {}
        self.closing = False
        if worker.nanny is not None:
            with contextlib.suppress(ValueError):  # not the main thread: the signals are not this process's either
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def teardown(self, worker: Worker) -> None:
        """Ask all runs to stop: the worker is about to close, as when a cluster's time is up."""
        self.closing = True
        for driver in list(self._interruptions):
            self.stop(driver, signal.SIGTERM)

    def stop(self, driver: str, signum: int) -> None:
        """Ask the runs of a driver to stop."""
        self.interruption(driver).signum = signum

    def store(self, uri: str) -> Store:
        """Open a run store, once for all tasks; the driver has reached it, so an outage will pass.

        Raises:
            InputError: it does not.
        """
        if uri not in self._stores:
            self._stores[uri] = open_store(uri, patient=True)
        return self._stores[uri]

    def interruption(self, driver: str) -> Interruption:
        """Return what asks the runs of a driver to stop."""
        return self._interruptions.setdefault(driver, Interruption())


def stop(driver: str, signum: int, dask_worker: Worker) -> None:
    """Ask the runs of a driver on this worker to stop."""
    dask_worker.plugins[Attendant.name].stop(driver, signum)


class _Log(Terminal):
    """Where a worker makes a run: output goes to a log file, and what happens is told to the driver."""

    def __init__(self, task: Task, driver: str, store: Store, attendant: Attendant) -> None:
        self._task, self._driver, self._store = task, driver, store
        self._worker, self._seceded = get_worker(), False
        self._attendant = attendant
        self.path: Path | None = None

    def say(self, message: str) -> None:
        """Tell the driver."""
        self.tell(said=message)

    def tell(self, **event: str) -> None:
        """Send an event to the driver."""
        self._worker.log_event(self._driver, {"key": self._task.key, **event})

    def interruption(self) -> contextlib.AbstractContextManager[Interruption]:
        """Return what asks this worker's runs to stop."""
        return contextlib.nullcontext(self.asked)

    @property
    def asked(self) -> Interruption:
        """What asks this worker's runs to stop."""
        return self._attendant.interruption(self._driver)

    @contextlib.contextmanager
    def output(self, run: Run) -> Iterator[None]:
        """Write output to the run's log file, which a resumed run continues, and keep that as `log.txt` of the run."""
        if self._seceded:
            rejoin()
            self._seceded = False
        self.path = self._store.folder / "logs" / self._task.experiment / f"{run.run_id}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.tell(started=run.run_id)
        with (
            self.path.open("a", encoding="utf-8", buffering=1) as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            print(f"{self._task.experiment}: {self._task.name} (run {run.run_id})")
            try:
                yield
            except (Interrupted, InputError, Busy) as error:
                print(f"{type(error).__name__}: {error}")
                raise
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                file.flush()
                run.log_file("log.txt", lambda path: path.write_bytes(self.path.read_bytes()))

    def wait(self, busy: Busy) -> None:
        """Let the worker go on with other tasks for a while."""
        if not self._seceded:
            self.tell(waiting=str(busy))
            secede()
            self._seceded = True
        self.asked.check()
        time.sleep(_LOOK)


def perform(task: Task, driver: str, uri: str, needs: Mapping[str, str]) -> str:
    """Make the run of a task in this worker.

    Args:
        task: what to do.
        driver: tells the drivers of one cluster apart.
        uri: of the run store.
        needs: by name the ids of the runs that it needs.

    Returns:
        The run's id.

    Raises:
        TaskFailed: it was not made; a restarted driver tries again.
    """
    attendant: Attendant = get_worker().plugins[Attendant.name]
    log = None
    try:
        store = attendant.store(uri)
        log = _Log(task, driver, store, attendant)
        log.asked.check()
        log.tell(begun=task.key)
        found = {name: store.record(run_id) for name, run_id in needs.items()}
        return task.perform(store, found, log).run_id
    except InputError as error:
        raise TaskFailed("input", str(error), _named(log)) from None
    except Interrupted as error:
        if attendant.closing:
            raise Reschedule from None
        raise TaskFailed("interrupted", str(error), _named(log)) from None
    except Exception as error:
        told = disk_fault(error)
        why = ("error", f"{type(error).__name__}: {error}") if told is None else ("input", told)
        raise TaskFailed(*why, _named(log)) from None


def _named(log: _Log | None) -> str:
    return str(log.path) if log is not None and log.path is not None else ""
