"""Shared fixtures: real data where it lies, a stand-in teacher, and a fresh run store."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from distributed import Client
from record import Make, Record, add

os.environ.setdefault("MPLBACKEND", "Agg")

from experiments.cases import cgn_case
from experiments.presets import CGNS
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.commands.experiments import experiment
from skdcgn.measure import cost
from skdcgn.randomness import seeded
from skdcgn.runs import store as run_store
from skdcgn.runs.engine.worker import Attendant
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.plan import Plan

torch.set_num_threads(1)  # tiny networks; two threads would wait for each other where cores are shared


@pytest.fixture(autouse=True)
def brief_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each network once: for tests it need not be exact, and of a miniature a call takes a fifth of a second."""
    monkeypatch.setattr(cost, "latency_ms", partial(cost.latency_ms, repeats=1, warmup=0))


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


def fresh_store(template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> run_store.Store:
    """Copy the database of a run store into a folder, for `open_store()` to open for the length of the test."""
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return run_store.open_store()


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> run_store.Store:
    """A fresh run store, which `open_store()` opens for the length of the test."""
    return fresh_store(empty_store, tmp_path / "mlruns", monkeypatch)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Make:
    """Make stores of records, see `record.add`; those of a module share nothing."""

    def made(record: Sequence[Record]) -> run_store.Store:
        database = tmp_path_factory.mktemp("store") / "mlflow.db"
        shutil.copy(empty_store, database)
        store = run_store.open_store(f"sqlite:///{database}")
        add(store, record)
        return store

    return made


@pytest.fixture(scope="session")
def taught_store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """The database of a run store that has the digits' teacher at smoke scale: training it takes seconds."""
    database = tmp_path_factory.mktemp("taught store") / "mlflow.db"
    shutil.copy(empty_store, database)
    store = run_store.open_store(f"sqlite:///{database}")
    carry_out(Plan([cgn_case(replace(CGNS["smoke"], dataset="digits"))], ("dataset",)), store)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A Dask worker in a thread of this process, which starts at once."""
    any_port = "127.0.0.1:0"
    with Client(
        processes=False,
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=any_port,
        worker_dashboard_address=any_port,
    ) as client:
        client.register_plugin(Attendant())
        yield client


@pytest.fixture
def digits(tmp_path: Path, taught_store: Path, monkeypatch: pytest.MonkeyPatch) -> run_store.Store:
    """A run store in which the digits' teacher is finished, which `open_store()` opens for the length of the test."""
    return fresh_store(taught_store, tmp_path / "taught", monkeypatch)


@pytest.fixture
def refusal(
    store: run_store.Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Starts a script with a bad command line; returns what it says, once it has ended with exit code 2 and no run."""

    def start(script: ModuleType, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [script.__name__, *arguments])
        with pytest.raises(SystemExit) as ended:
            experiment.main(script.DEFAULTS, script.plan, script.__doc__)
        assert ended.value.code == 2
        assert all(not store.runs(name) for name in store.experiments())  # nothing half-done is left behind
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests of faults have counted."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ended = [dict(report.user_properties) for report in reports if getattr(report, "when", "") == "teardown"]
    rows = [properties["fault"] for properties in ended if "fault" in properties]
    if rows:
        table = pd.DataFrame(rows).groupby("kind", sort=True).sum()
        table.loc["all"] = table.sum()
        terminalreporter.section(f"faults, seed {os.environ.get('SKDCGN_FAULTS_SEED', '0')}")
        terminalreporter.write_line(table.to_string())
