"""Run stores in trouble: full, locked and read-only ones, and a server that is killed."""

import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from harness import PATIENCE, Journal, Row, Storm, Work, begin, judge, references, wait_for, walks

from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import Store, open_store

pytestmark = pytest.mark.faults
kind = pytest.mark.parametrize
WIDTH = 4


@pytest.fixture
def small(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A run store on a disk of its own, of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        shutil.copy(empty_store, folder / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield open_store()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@kind("row", ["disk of the store full for a while: walks"], indirect=True)
def test_full_disks(small: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    begun: list[int] = []

    def fill(work: Work) -> bool:
        """Fill the disk, and make room again after a while."""
        ballast = small.folder / "ballast"
        free = shutil.disk_usage(small.folder).free
        with contextlib.suppress(OSError):  # a run may have taken some of it meanwhile
            ballast.write_bytes(bytes(free))
        time.sleep(chance.uniform(0.5, 3))
        ballast.unlink()
        return True

    commands = walks(small, tmp_path, WIDTH, begun=begun)
    Storm(row, 4, chance, journal, at_work_only=True).rage(commands, {"fill": fill})
    judge(row, small, references(len(begun), WIDTH), journal)


@kind("row", ["SQLite locked by another process for seconds: walks"], indirect=True)
def test_locked_databases(store: Store, tmp_path: Path, row: Row, chance: random.Random, journal: Journal) -> None:
    """Everything waits, and nothing fails: one start is enough."""
    begun: list[int] = []

    def lock(_: Work) -> bool:
        path = store.uri.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(chance.uniform(1, 7))
            connection.execute("ROLLBACK")
        return True

    commands = walks(store, tmp_path, WIDTH, begun=begun)
    codes = Storm(row, 4, chance, journal, at_work_only=True).rage(commands, {"lock": lock})
    judge(row, store, references(len(begun), WIDTH), journal)
    assert set(codes) == {0}, (tmp_path / "driver.log").read_text()


@kind("row", ["store mounted read-only: walks"], indirect=True)
def test_read_only_stores(store: Store, tmp_path: Path, row: Row, journal: Journal) -> None:
    """What is finished stays, and whoever wants to write is told so."""
    view = tmp_path / "view"
    view.mkdir()
    for options in (["--bind", str(store.folder)], ["-o", "remount,bind,ro", "none"]):
        if subprocess.run(["mount", *options, str(view)], capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a folder read-only")
    try:
        settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{view / 'mlflow.db'}"}
        for number in range(3):
            work = Work(store, ["walks", str(1000 * number), "2"], tmp_path / "driver.log")
            refused = Work(store, work.arguments, tmp_path / f"refused {number}.log", environment=settings)
            journal.take(store)
            assert refused.start().wait(PATIENCE) == 2
            told = refused.log.read_text()
            assert told.startswith(f"error: the run store {settings['MLFLOW_TRACKING_URI']} cannot be opened")
            assert "Read-only file system" in told
            assert told.count("\n") == 1, told
            row.injected += 1
            work.finish()
        judge(row, store, references(3, 2), journal)
    finally:
        subprocess.run(["umount", "--lazy", str(view)], check=True)


class Server:
    """An MLflow server over SQLite, in processes of its own."""

    def __init__(self, folder: Path, database: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        options = f"--host 127.0.0.1 --port {port} --workers 1 --artifacts-destination {folder / 'served'}"
        store = ["--backend-store-uri", f"sqlite:///{database}"]
        self._command = [sys.executable, "-m", "mlflow", "server", *store, *options.split()]
        self._log = folder / "server.log"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = begin(self._command, self._log, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})

        def answers() -> bool:
            with contextlib.suppress(requests.RequestException):
                return requests.get(f"{self.uri}/health", timeout=5).ok
            return False

        wait_for(answers)

    def kill(self) -> None:
        """Kill it with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@kind("row", ["SIGKILL of the MLflow server: walks"], indirect=True)
def test_servers(
    tmp_path: Path,
    empty_store: Path,
    row: Row,
    chance: random.Random,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs wait for the server, and go on; checkpoints and logs are where the command was started."""
    for room in ("skdcgn", "experiments", "tests"):  # away from the clone, whose folder is that of all other runs
        shutil.copytree(PROJECT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    server = Server(tmp_path, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    begun: list[int] = []

    def restart(_: Work) -> bool:
        server.kill()
        time.sleep(chance.uniform(0, 3))
        server.start()
        return True

    try:
        store = open_store()
        store.folder = tmp_path / "mlruns"
        commands = walks(store, tmp_path, WIDTH, begun=begun, clone=tmp_path)
        Storm(row, 4, chance, journal, at_work_only=True).rage(commands, {"restart": restart})
        judge(row, store, references(len(begun), WIDTH), journal)
    finally:
        server.kill()
