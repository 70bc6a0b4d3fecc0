"""Starts commands, strikes them at random moments, and counts what that did to the runs in the store."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fingerprint import _TIMED, _digest
from PIL import Image
from walks import Walk, tree

from skdcgn.runs.leases import Lease
from skdcgn.runs.plan import Case
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import RunRecord, Store
from skdcgn.training import state_digest

PATIENCE = 900.0
"""Seconds that anything may take: the machine may be busy."""

_STARTS = 60  # of one command: more would mean that it never comes to its end
_ORDERLY = {0, 1, 2, -signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM}  # done, failed in part, or struck

Print = Mapping[str, object]
"""What a run holds, exactly: its metrics' (step, value), and the digest of its tensors by file."""


@dataclass
class Row:
    """A row of the table: what a kind of fault did."""

    kind: str
    injected: int = 0
    runs: int = 0
    """FINISHED at the end."""
    lost: int = 0
    """Finished runs that are gone or changed, and runs that never finished."""
    twice: int = 0
    """FINISHED runs beside another one of the same identity."""
    running: int = 0
    """Left RUNNING after the next start."""
    differ: int = 0
    """From the undisturbed reference, in any bit or in how often a step was logged."""
    half: int = 0
    """Half-written things that are left, or were read as whole."""

    def check(self) -> None:
        """See that nothing went wrong."""
        assert self.injected
        assert not any((self.lost, self.twice, self.running, self.differ, self.half)), self


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Look until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "that never happened"
        time.sleep(0.02)


# --- what is disturbed


@dataclass
class Work:
    """A command, its store, and the process that runs it now."""

    store: Store
    arguments: Sequence[str]
    log: Path
    prefix: Sequence[str] = ()
    """Of the command, as in `faketime`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    clone: Path = PROJECT
    """Where its code is, and where it is started."""

    def start(self) -> subprocess.Popen[str]:
        """Start it, in a process group of its own, as a shell does."""
        script = str(self.clone / "tests" / "faults" / "driver.py")
        command = [*self.prefix, sys.executable, script, *self.arguments]
        self.process = begin(command, self.log, self.environment, self.clone)
        return self.process

    def children(self) -> list[psutil.Process]:
        """Return its local workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return workers_below(self.process.pid)
        return []

    def finish(self) -> None:
        """Start it again until it is done."""
        for _ in range(_STARTS):
            code = self.start().wait(PATIENCE)
            assert code in _ORDERLY, self.log.read_text()[-3000:]
            if code == 0:
                return
        raise AssertionError(self.log.read_text()[-3000:])


def begin(
    command: Sequence[str], log: Path, environment: Mapping[str, str], clone: Path = PROJECT
) -> subprocess.Popen[str]:
    """Start a process whose output goes to a file."""
    path = os.pathsep.join(map(str, [clone, clone / "tests", clone / "tests" / "faults"]))
    settings = {"PYTHONPATH": path, "SKDCGN_HEARTBEAT": "0.5", "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    with log.open("a") as file:
        return subprocess.Popen(
            command, env={**os.environ, **settings}, cwd=clone, stdout=file, stderr=file, text=True, process_group=0
        )


def workers_below(pid: int) -> list[psutil.Process]:
    """Return the Dask workers that a process has started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process] if "spawn_main" in " ".join(process.cmdline()) else []
    return found


def at_work(store: Store) -> list[psutil.Process]:
    """Return the living processes that are at a run."""
    running = [run for name in store.experiments() for run in store.runs(name, "RUNNING")]
    leases = [Lease.read(run.tags) for run in running]
    return [psutil.Process(lease.pid) for lease in leases if lease is not None and lease.holder() == "alive"]


def kill(process: psutil.Process | subprocess.Popen[str]) -> bool:
    """Kill a process, if it is there; return whether it was."""
    try:
        process.send_signal(signal.SIGKILL)
        return True
    except psutil.NoSuchProcess:
        return False


# --- random faults


@dataclass
class Storm:
    """Strikes so many times, most times while runs are being made, otherwise at any moment."""

    row: Row
    count: int
    chance: random.Random
    journal: "Journal"
    at_work_only: bool = False

    def rage(self, works: Iterator[Work], strikes: Mapping[str, Callable[[Work], bool]]) -> list[int]:
        """Strike commands until the strikes are used up, let each come to its end, and return all exit codes.

        Args:
            works: one after the other.
            strikes: ways to strike, by name: each returns whether it hit.
        """
        codes = []
        for work in works:
            for _ in range(_STARTS):
                process = work.start()
                while process.poll() is None:
                    if self.row.injected < self.count and self._moment(work):
                        strike = self.chance.choice(list(strikes.values()))
                        self.row.injected += strike(work)
                        self.journal.take(work.store)
                    time.sleep(0.02)
                codes.append(process.returncode)
                assert process.returncode in _ORDERLY, work.log.read_text()[-3000:]
                if process.returncode == 0:
                    break
            else:
                raise AssertionError(f"{_STARTS} starts: {work.log.read_text()[-3000:]}")
            if self.row.injected == self.count:
                break
        return codes

    def _moment(self, work: Work) -> bool:
        """Wait for the moment of the next strike; return whether the command is still on by then."""
        patient, delay = self.at_work_only or self.chance.random() < 0.8, self.chance.uniform(0, 1.5)
        if patient:
            wait_for(lambda: at_work(work.store) or work.process.poll() is not None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            work.process.wait(delay)
        return work.process.poll() is None


class Journal:
    """Notes what is finished, to see later that it still is, and unchanged."""

    def __init__(self) -> None:
        self._noted: dict[str, Print] = {}

    def take(self, store: Store) -> None:
        """Note the runs that are finished by now."""
        for run in finished(store):
            if run.run_id not in self._noted and run.tags.get("kind") != "study":
                self._noted[run.run_id] = fingerprint(store, run)

    def lost(self, store: Store) -> int:
        """Count the runs that are not finished any more, or have changed."""
        now = {run.run_id: run for run in finished(store)}
        return sum(
            run_id not in now or fingerprint(store, now[run_id]) != noted for run_id, noted in self._noted.items()
        )


# --- what came of it


def finished(store: Store) -> list[RunRecord]:
    """Return the finished runs of all experiments."""
    return [run for name in store.experiments() for run in store.runs(name, "FINISHED")]


def fingerprint(store: Store, run: RunRecord) -> Print:
    """Return what a run holds, but for what measures time, and for the numbers that Optuna draws for trials."""
    told = [key for key in run.metrics if key != "trial_id" and not _TIMED.search(key)]
    found: dict[str, object] = {
        key: sorted((metric.step, metric.value.hex()) for metric in store.client.get_metric_history(run.run_id, key))
        for key in told  # MLflow orders it by the clock, which may have been moved
    }
    root = artifacts(store, run)
    return found | {path.relative_to(root).as_posix(): _digest(path) for path in root.rglob("*.safetensors")}


def artifacts(store: Store, run: RunRecord) -> Path:
    """Return the folder of what a run kept."""
    uri = store.client.get_run(run.run_id).info.artifact_uri
    if uri.startswith("mlflow-artifacts:/"):  # a server's, see `test_stores.Server`
        return store.folder.parent / "served" / uri.removeprefix("mlflow-artifacts:/")
    return Path(uri.removeprefix("file://"))


def reference(cases: Sequence[Case]) -> dict[str, Print]:
    """Walk undisturbed, without a store; return by identity what the runs should hold. Needed ones come first."""
    places: dict[str, float] = {}
    found: dict[str, Print] = {}
    for case in cases:
        walk = Walk(case.config, sum(places[need.identity.digest] for need in case.needs.values()))
        walk.pause = 0.0
        logged = [(step, losses["place"].hex()) for step, losses in walk.fit()]
        places[case.identity.digest] = place = walk.place.weight.item()
        found[case.identity.digest] = {
            "loss/place": logged,
            "final/place": [(0, place.hex())],
            "walk.safetensors": state_digest(walk.place.state_dict()),
        }
    return found


def references(works: int, width: int) -> dict[str, Print]:
    """Return what `works` commands of walks should leave, see `walks`."""
    found: dict[str, Print] = {}
    for number in range(works):
        found |= reference(tree(width, first=1000 * number).everything())
    return found


def walks(
    store: Store,
    folder: Path,
    width: int,
    options: Sequence[str] = (),
    begun: list[int] | None = None,
    first: int = 0,
    **given: Any,
) -> Iterator[Work]:
    """Yield commands that make walks, always others: of `width` roots, the first with seeds from `first`.

    Args:
        store: of their runs.
        folder: gets their output.
        width: see `walks.tree`.
        options: of the commands.
        begun: notes the commands.
        first: the first seed.
        given: see `Work`.
    """
    for seed in itertools.count(first, 1000):
        if begun is not None:
            begun.append(seed)
        yield Work(store, ["walks", str(seed), str(width), *options], folder / "driver.log", **given)


def judge(row: Row, store: Store, expected: Mapping[str, Print], journal: Journal | None = None) -> None:
    """Count in a row what the store holds now, against what it should hold by identity; see that nothing is wrong."""
    runs = finished(store)
    counts = Counter(run.tags["identity"] for run in runs)
    row.runs += len(runs)
    row.lost += len(expected.keys() - counts.keys()) + (journal.lost(store) if journal is not None else 0)
    row.twice += sum(count - 1 for count in counts.values())
    row.running += sum(len(store.runs(name, "RUNNING")) for name in store.experiments())
    row.differ += len(counts.keys() - expected.keys())
    for run in runs:
        wanted = expected.get(run.tags["identity"], {})
        if fingerprint(store, run) != wanted:
            row.differ += 1
            print(run.name, run.run_id, fingerprint(store, run), wanted, sep="\n")
    row.half += len(leftovers(store)) + sum(not whole(path) for run in runs for path in images(store, run))
    row.check()


def leftovers(store: Store) -> list[Path]:
    """Return files that should be gone once everything is finished: checkpoints, and halves of files."""
    return [*(store.folder / "checkpoints").glob("*"), *store.folder.rglob("*.part")]


def images(store: Store, run: RunRecord) -> list[Path]:
    """Return the images that a run kept."""
    return list(artifacts(store, run).rglob("*.png"))


def whole(path: Path) -> bool:
    """Whether an image can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except OSError:
        return False
