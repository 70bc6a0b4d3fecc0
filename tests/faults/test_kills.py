"""SIGKILL at random moments: workers, drivers, schedulers and nannies, while walks and real runs are made."""

import random
from pathlib import Path

import pytest
from harness import (
    Journal,
    Row,
    Storm,
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
    Storm(row, 24, chance, journal).rage(walks(store, tmp_path, WIDTH, begun=begun), strikes)
    judge(row, store, references(len(begun), WIDTH), journal)
