"""Shared fixtures: real data where it lies, a stand-in teacher, and a fresh run store."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")

from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.randomness import seeded
from skdcgn.runs import store as run_store

torch.set_num_threads(1)  # tiny networks; two threads would wait for each other where cores are shared


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where SKDCGN_REQUIRE_DATA is set, as in CI beside the real data, a skipped data test is a failed one."""
    report = yield
    if report.skipped and os.environ.get("SKDCGN_REQUIRE_DATA") and item.get_closest_marker("data"):
        report.outcome = "failed"
        report.longrepr = f"a test with real data was skipped although SKDCGN_REQUIRE_DATA is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real MNIST and the authors' teachers; the test is skipped where it is not at hand."""
    folder = os.environ.get("SKDCGN_DATA_DIR")
    if not folder:
        pytest.skip("needs the real data: SKDCGN_DATA_DIR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def random_teacher() -> MNISTTeacher:
    """A CGN with random weights: enough wherever any deterministic black box will do."""
    with seeded(0, "random teacher"):
        cgn = CGN()
    for module in cgn.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.eval()
    return MNISTTeacher(cgn, "random CGN", "0" * 64, stand_in=True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of an empty run store: creating its tables takes seconds, copying it none."""
    database = tmp_path_factory.mktemp("empty store") / "mlflow.db"
    run_store.open_store(f"sqlite:///{database}")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # put everything into the one file
    return database


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> run_store.Store:
    """A fresh run store, which `open_store()` opens for the length of the test."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    return run_store.open_store()
