"""Processes that stop for longer than their lease, and clocks that are moved back, while others go on."""

import itertools
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import Journal, Row, Storm, Work, at_work, finished, judge, references, wait_for, walks

from skdcgn.runs.store import Store

pytestmark = pytest.mark.faults
kind = pytest.mark.parametrize
WIDTH = 8
MACHINE = ["unshare", "--pid", "--uts", "--fork", "--mount-proc"]
BEAT = 0.2


@kind("row", ["SIGSTOP of workers past their lease, on two machines: walks"], indirect=True)
def test_stopped_workers(store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    """Two machines do the same work; each takes over what the other one does not renew, and nobody writes twice."""
    if subprocess.run([*MACHINE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a process namespace")
    for number in itertools.count():
        command = ["walks", str(1000 * number), str(WIDTH)]
        machines = [
            Work(store, command, tmp_path / f"{name}.log", MACHINE, {"SKDCGN_HEARTBEAT": str(BEAT)}) for name in "ab"
        ]
        for machine in machines:
            machine.start()
        while any(machine.process.poll() is None for machine in machines):
            workers = chance.choice(machines).children()
            if row.injected < 10 and workers and store.runs("walks", "RUNNING"):
                time.sleep(chance.uniform(0, 1))
                row.injected += stop(workers, chance.uniform(2, 4))
                journal.take(store)
            time.sleep(0.05)
        for machine in machines:
            assert machine.process.returncode == 0, machine.log.read_text()[-3000:]
            assert "Traceback" not in machine.log.read_text()
        if row.injected == 10:
            break
    judge(row, store, references(number + 1, WIDTH), journal)
    assert any("being made by process" in machine.log.read_text() for machine in machines)


def stop(processes: list, seconds: float) -> bool:
    """Stop processes for a while; return whether they were there."""
    there = [process for process in processes if process.is_running()]
    for process in there:
        process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    for process in there:
        process.send_signal(signal.SIGCONT)
    return bool(there)


@kind("row", ["clock moved back by minutes to days: walks"], indirect=True)
def test_clocks(store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    """Leases and metrics do not depend on the clock on the wall."""
    clock, back = tmp_path / "clock", 0.0
    begun: list[int] = []
    clock.write_text("0")

    def move(_: Work) -> bool:
        nonlocal back
        back -= chance.choice([90.0, 3600.0, 86400.0])
        clock.with_suffix(".new").write_text(str(back))
        clock.with_suffix(".new").replace(clock)
        return True

    settings = {"FAULTS_CLOCK": str(clock)}
    commands = walks(store, tmp_path, WIDTH, begun=begun, environment=settings)
    Storm(row, 6, chance, journal, at_work_only=True).rage(commands, {"move": move})
    judge(row, store, references(len(begun), WIDTH), journal)
    assert min(run.start_time for run in finished(store)).timestamp() < time.time() - 60  # it did move
    wait_for(lambda: not at_work(store))
