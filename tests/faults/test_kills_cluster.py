"""SIGKILL at random moments where runs are made by a Dask scheduler and workers in processes of their own."""

import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness import (
    PATIENCE,
    Journal,
    Row,
    Storm,
    Work,
    at_work,
    begin,
    judge,
    kill,
    references,
    wait_for,
    walks,
    workers_below,
)
from strikes import driver

from skdcgn.runs.store import Store

pytestmark = pytest.mark.faults
kind = pytest.mark.parametrize
WIDTH = 8


class Cluster:
    """A scheduler and two workers of it, each with a nanny, in processes of their own."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.file, self._log, self._chance = folder / "scheduler.json", folder / "cluster.log", chance
        self._processes: list[subprocess.Popen[str]] = []
        self._start()

    def _start(self) -> None:
        self.file.unlink(missing_ok=True)
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.scheduler = self._begin("dask_scheduler", *options)
        wait_for(self.file.exists)
        self.nannies = [self._worker() for _ in range(2)]

    def _begin(self, module: str, *options: str) -> subprocess.Popen[str]:
        process = begin([sys.executable, "-m", f"distributed.cli.{module}", *options], self._log, {})
        self._processes.append(process)
        return process

    def _worker(self) -> subprocess.Popen[str]:
        options = ["--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "0"]
        return self._begin("dask_worker", "--scheduler-file", str(self.file), *options)

    def close(self) -> None:
        """End all processes."""
        workers = [worker for nanny in self.nannies if nanny.poll() is None for worker in workers_below(nanny.pid)]
        for process in [*self._processes, *workers]:
            kill(process)
        psutil.wait_procs(workers)
        for process in self._processes:
            process.wait()

    def kill_worker(self, _: Work) -> bool:
        """Kill a worker: its nanny starts another."""
        workers = [worker for nanny in self.nannies for worker in workers_below(nanny.pid)]
        return bool(workers) and kill(self._chance.choice(workers))

    def kill_nanny(self, _: Work) -> bool:
        """Kill a nanny, whose worker ends with it, and start another in its place."""
        index = self._chance.randrange(2)
        kill(self.nannies[index])
        self.nannies[index].wait()
        self.nannies[index] = self._worker()
        return True

    def kill_scheduler(self, work: Work) -> bool:
        """Kill the scheduler: the driver notices, says so in a sentence, and ends; then start all anew."""
        busy, before = bool(at_work(work.store)), len(work.log.read_text())
        kill(self.scheduler)
        work.process.wait(PATIENCE)
        if busy:
            told = work.log.read_text()[before:]
            assert work.process.returncode == 2, told
            assert "error: the Dask scheduler is gone: start it again" in told
        self.close()
        self._start()
        return True


@kind("row", ["SIGKILL of a scheduler, nanny, worker, or driver: walks"], indirect=True)
def test_cluster_walks(store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    begun: list[int] = []
    cluster = Cluster(tmp_path, chance)
    try:
        strikes = {name: cluster.kill_worker for name in "abc"} | {
            "nanny": cluster.kill_nanny,
            "scheduler": cluster.kill_scheduler,
            "driver": driver,
        }
        options = ["--scheduler", str(cluster.file)]
        Storm(row, 20, chance, journal).rage(walks(store, tmp_path, WIDTH, options, begun), strikes)
    finally:
        cluster.close()
    assert "Traceback" not in (tmp_path / "driver.log").read_text()
    judge(row, store, references(len(begun), WIDTH), journal)
