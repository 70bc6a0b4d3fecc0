"""SIGKILL at random moments while real runs are made, at smoke scale: students, a CGN, a reading, a search."""

import random
import shutil
from pathlib import Path

import pytest
from harness import Journal, Row, Storm, Work, fingerprint, finished, judge
from strikes import any_worker, driver, everything

from skdcgn.runs.store import Store, open_store

pytestmark = pytest.mark.faults
kind = pytest.mark.parametrize


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, object]:
    """What the real runs hold by identity, where nothing disturbs them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_store, folder / "mlflow.db")
    store = open_store(f"sqlite:///{folder / 'mlflow.db'}")
    Work(store, ["real"], folder / "log", environment={"MLFLOW_TRACKING_URI": store.uri}).finish()
    return {run.tags["identity"]: fingerprint(store, run) for run in finished(store)}


@kind("row", ["SIGKILL of a local worker, or driver: students, CGN, Table 1, search"], indirect=True)
def test_real_runs(
    store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal, undisturbed: dict[str, object]
) -> None:
    strikes = {name: any_worker(chance) for name in "abc"} | {"driver": driver, "everything": everything}

    commands = iter([Work(store, ["real"], tmp_path / "log")])
    Storm(row, 10, chance, journal).rage(commands, strikes)
    assert len(undisturbed) == 15
    judge(row, store, undisturbed, journal)
