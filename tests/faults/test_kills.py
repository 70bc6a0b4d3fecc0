"""SIGKILL at random moments: workers, drivers, schedulers and nannies, while walks and real runs are made."""

import random
import signal
from pathlib import Path

import pytest
from harness import (
    Journal,
    Row,
    Storm,
    Work,
    judge,
    references,
    walks,
)
from strikes import any_worker, driver, everything

from skdcgn.runs.store import Store

pytestmark = pytest.mark.faults
kind = pytest.mark.parametrize
WIDTH = 8


@kind("row", ["SIGKILL of a local worker, or driver: walks"], indirect=True)
def test_local_walks(store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    begun: list[int] = []
    strikes = {name: any_worker(chance) for name in "abc"} | {"driver": driver, "everything": everything}
    Storm(row, 32, chance, journal).rage(walks(store, tmp_path, WIDTH, begun=begun), strikes)
    judge(row, store, references(len(begun), WIDTH), journal)


@kind("row", ["SIGTERM or SIGINT of the driver: walks"], indirect=True)
def test_signals(store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    begun: list[int] = []

    def interrupt(work: Work) -> bool:
        """Ask the driver to end: it does so in time, says so in one sentence, and no run is left RUNNING."""
        signum = chance.choice([signal.SIGTERM, signal.SIGINT])
        before = len(work.log.read_text())
        work.process.send_signal(signum)
        work.process.wait(60)
        told = work.log.read_text()[before:]
        if work.process.returncode == 0:  # it was just about to end
            return False
        assert work.process.returncode == 128 + signum, told
        assert told.count("the same command resumes") == 1, told
        assert "Traceback" not in told
        assert not [name for name in store.experiments() if store.runs(name, "RUNNING")]
        return True

    commands = walks(store, tmp_path, WIDTH, begun=begun)
    Storm(row, 6, chance, journal, at_work_only=True).rage(commands, {"interrupt": interrupt})
    judge(row, store, references(len(begun), WIDTH), journal)
