"""Full, read-only and failing disks: one sentence and exit code 2, and nothing half-written that is read as whole."""

import contextlib
import errno
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import sqlalchemy
import torch
from mlflow.exceptions import MlflowException
from trivial import Config, Work, carry_out_one

from analysis.frame.view import View
from analysis.report import export, render
from skdcgn import cli
from skdcgn.cgn.mnist import CGN
from skdcgn.commands import counterfactuals, teacher_sets
from skdcgn.counterfactuals.datasets import CounterfactualConfig
from skdcgn.data.weights import save_state_dict
from skdcgn.errors import InputError, disk_fault
from skdcgn.files import atomic_folder, atomic_path, save_checkpoint
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.run import Run
from skdcgn.runs.store import _FIRST_CALL as FIRST_CALL
from skdcgn.runs.store import Store, open_store

Say = Callable[[Callable[[], object]], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Say:
    """Call something as a script's main; return the one line that it says when it has ended with exit code 2."""

    def call(main: Callable[[], object]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.entry(main)
        assert ended.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line and "%|" not in line]  # no progress bars
        assert len(lines) == 1, lines
        return lines[0].removeprefix("error: ")

    return call


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow over so many bytes: to a program much the same as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def raising(error: BaseException) -> Callable[[], object]:
    def main() -> None:
        raise error

    return main


def wrapped(text: str) -> MlflowException:
    """Return what MLflow makes of an error of SQLite."""
    try:
        try:
            raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError(text))
        except sqlalchemy.exc.OperationalError as error:
            raise MlflowException(error) from error
    except MlflowException as error:
        return error


# --- the sentence


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk of /there/file is full (No space left on device): make room"),
        (errno.EDQUOT, "the disk of /there/file is full (Disk quota exceeded): make room"),
        (errno.EROFS, "/there/file cannot be read or written (Read-only file system): mend that"),
        (errno.EACCES, "/there/file cannot be read or written (Permission denied): mend that"),
        (errno.EIO, "/there/file cannot be read or written (Input/output error): mend that"),
    ],
)
def test_an_error_of_a_disk_is_one_sentence(said: Say, code: int, words: str) -> None:
    assert said(raising(OSError(code, os.strerror(code), "/there/file"))).startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("database or disk is full", "the disk of the run store is full: make room"),
        ("attempt to write a readonly database", "the run store cannot be written: make it writable"),
        ("database is locked", "the run store is locked by another process: wait"),
        ("unable to open database file", "the run store cannot be opened: make it and its folder writable"),
    ],
)
def test_an_error_of_sqlite_is_one_sentence_however_it_is_wrapped(said: Say, text: str, words: str) -> None:
    for error in (sqlite3.OperationalError(text), wrapped(text), MlflowException(f"API request failed: {text}")):
        assert said(raising(error)).startswith(words)


@pytest.mark.parametrize(
    "error",
    [KeyError("a bug"), FileNotFoundError(errno.ENOENT, "gone", "a bug"), MlflowException("no such table: runs")],
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        cli.entry(raising(error))


def test_a_disk_behind_another_error_is_told_unless_that_was_dealt_with() -> None:
    full = OSError(errno.ENOSPC, "full", "/there")
    ending, other = RuntimeError("while ending the run"), RuntimeError("dealt with")
    ending.__context__ = other.__context__ = full
    other.__suppress_context__ = True  # raised from None
    assert disk_fault(ending) == disk_fault(full)
    assert disk_fault(full).startswith("the disk of /there is full (full): make room there")
    assert disk_fault(other) is None


# --- files


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_checkpoint(path, {"weight": torch.zeros(1000)}),
        lambda path: save_state_dict(path, {"weight": torch.zeros(1000)}),
        lambda path: _write_text(path),
        lambda path: _write_folder(path),
    ],
)
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, said: Say, write: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    with largest_file(1000):
        assert said(lambda: write(path)).startswith(f"the disk of {path} is full (File too large): make room there")
    assert list(tmp_path.iterdir()) == []


def _write_text(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("a" * 2000)


def _write_folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        pd.DataFrame({"a": range(1000)}).to_csv(temporary / "table.csv")


# --- the run store


def test_a_store_is_created_whole_or_not_at_all(tmp_path: Path, said: Say) -> None:
    database = tmp_path / "mlflow.db"
    with largest_file(100_000):
        sentence = said(lambda: open_store(f"sqlite:///{database}"))
    assert sentence.startswith(f"the run store sqlite:///{database} cannot be opened: ")
    assert "full" in sentence
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]


def damaged(database: Path, kind: str) -> str:
    """Damage a store's database; return the words that tell so."""
    content = database.read_bytes()
    if kind == "foreign":
        database.write_text("this is no database, and long enough to be taken for one" * 20)
        return "is no SQLite database: name another"
    if kind == "truncated":
        database.write_bytes(content[:50_000])
        return "is damaged: restore it"
    if kind == "folder":
        database.unlink()
        database.mkdir()
        return "cannot be opened: make it"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of-the-future'")
    return rf"another version of MLflow than this \({mlflow.__version__}\) made it"


@pytest.mark.parametrize("kind", ["foreign", "truncated", "folder", "newer"])
def test_what_is_no_store_is_told_at_once(tmp_path: Path, empty_store: Path, kind: str) -> None:
    database = Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))
    words, start = damaged(database, kind), time.monotonic()
    with pytest.raises(InputError, match=rf"^the run store sqlite:///{database} cannot be opened: .*{words}") as told:
        open_store(f"sqlite:///{database}")
    assert "\n" not in str(told.value)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    monkeypatch.setattr("skdcgn.runs.store._FIRST_CALL", {**FIRST_CALL, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        uri, start = f"http://127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        with pytest.raises(InputError, match=f"^the run store {uri} cannot be opened: {uri} does not answer: start"):
            open_store(uri)
    assert time.monotonic() - start < 15
    assert not set(FIRST_CALL) & set(os.environ)


def limited(store: Store, statement: str) -> None:
    """Execute a statement on every connection that a store's database is written through from now on."""
    engine = store.client._tracking_client.store.engine
    sqlalchemy.event.listen(engine, "checkout", lambda connection, *_: connection.execute(statement))


def test_a_read_only_store_is_told_at_the_first_run(store: Store, said: Say) -> None:
    limited(store, "PRAGMA query_only = 1")
    database = store.uri.removeprefix("sqlite:///")
    assert said(lambda: carry_out_one(store)).startswith(f"{database} cannot be written: make it writable")


def test_a_run_on_a_disk_that_fills_up_ends_as_failed_and_is_resumed(
    store: Store, said: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(run: Run, config: Config, _: object) -> None:
        if not run.reopened:
            limited(store, "PRAGMA max_page_count = 1")  # that is: no more than it has
        for step in range(1, 5001):
            run.log_metrics("loss", {"a": step}, step)
        run.flush()

    monkeypatch.setattr(Work, "do", do)
    database = store.uri.removeprefix("sqlite:///")
    assert said(lambda: carry_out_one(store)).startswith(f"the disk of {database} is full: make room")
    again = open_store(f"sqlite:////{database}")  # another name, and so another connection
    (failed,) = again.runs("trivial")
    assert failed.status == "FAILED"
    run = carry_out_one(again)
    assert run.run_id == failed.run_id
    assert len(again.history(run.run_id, "loss/a")) == 5000


@pytest.mark.parametrize(
    "fill",
    [
        lambda run: run.log_tensors("samples", {"x": torch.zeros(50_000)}),
        lambda run: save_checkpoint(run.checkpoint, {"x": torch.zeros(50_000)}),
    ],
)
def test_tensors_that_do_not_fit_fail_the_run(
    store: Store, said: Say, monkeypatch: pytest.MonkeyPatch, fill: Callable[[Run], object]
) -> None:
    def do(run: Run, *_: object) -> None:
        with largest_file(100_000):
            fill(run)

    monkeypatch.setattr(Work, "do", do)
    assert "is full (File too large): make room there" in said(lambda: carry_out_one(store))
    (failed,) = store.runs("trivial")
    assert (failed.status, store.files(failed.run_id)) == ("FAILED", [])
    assert "File too large" in failed.tags["error"]


# --- what commands write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_state_dict(tmp_path / "cgn.safetensors", CGN().state_dict())
    return tmp_path / "cgn.safetensors"


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_counterfactual_set_that_does_not_fit(tmp_path: Path, checkpoint: Path, said: Say, size: int) -> None:
    out = tmp_path / "out"
    config = counterfactuals.Config(str(checkpoint), out, CounterfactualConfig(n=200), device="cpu")
    with largest_file(size):
        assert f"the disk of {out}" in said(lambda: counterfactuals.main(config))
    assert not list(out.glob("*.safetensors")) + list(out.glob("index.*"))
    counterfactuals.main(config)
    assert len(pd.read_csv(out / "index.csv")) == 200


def test_a_teacher_set_that_does_not_fit(tmp_path: Path, checkpoint: Path, said: Say) -> None:
    config = teacher_sets.Config(tmp_path / "out", "double_colored", checkpoint, mechanism="shape", per_class=5)
    with largest_file(5000):
        sentence = said(lambda: teacher_sets.main(config))
    assert sentence.startswith(f"the disk of {tmp_path / 'out'}")
    assert not list(tmp_path.glob("out/*/*.safetensors"))
    teacher_sets.main(config)
    teacher_sets.main(teacher_sets.Config(tmp_path / "out", verify=True))


@pytest.mark.parametrize("command", [counterfactuals, teacher_sets])
def test_an_output_folder_that_is_a_file(tmp_path: Path, checkpoint: Path, said: Say, command: object) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    config = (
        counterfactuals.Config(str(checkpoint), out, device="cpu")
        if command is counterfactuals
        else teacher_sets.Config(out, "double_colored", checkpoint, mechanism="shape")
    )
    assert "cannot be read or written (Not a directory): mend that, or name another place." in said(
        lambda: command.main(config)
    )


def test_a_report_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, store: Store, said: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(notebooks: object, environment: dict[str, str]) -> dict[str, object]:
        folder = Path(environment[render.OUTPUT_VARIABLE]) / "figures"
        folder.mkdir()
        (folder / "figure.png").write_text("new")
        return {}

    monkeypatch.setattr(render, "_execute_all", execute)
    (tmp_path / "figures").mkdir()
    old = [tmp_path / "report.html", tmp_path / "figures" / "figure.png"]
    for path in old:
        path.write_text("old")
    config = render.Config(output=tmp_path)
    with largest_file(100):
        assert "is full (File too large)" in said(lambda: render.render(config))
    assert [path.read_text() for path in old] == ["old", "old"]
    render.render(config)
    assert old[1].read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_an_export_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, store: Store, said: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame({"profile": ["quick"] * 100, "dataset": "digits", "seed": range(100), "final/iou": 0.5})
    monkeypatch.setattr(View, "experiments", lambda _: ["mnist_kd"])
    monkeypatch.setattr(export, "rows_of", lambda *_: {"mnist_kd": rows})
    table = tmp_path / "mnist_kd.csv"
    rows[:3].to_csv(table, index=False)
    before = table.read_bytes()
    with largest_file(1000):
        sentence = said(lambda: export.export(View(store), tmp_path, figures=False))
    assert sentence.startswith(f"the disk of {table} is full")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file()] == [(table.name, before)]


# --- a disk that is really full, and one that is really read-only


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small disks, or mount them again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        remount = ["-o", "remount"] if mounted else []
        command = ["mount", "-t", "tmpfs", *remount, "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip() if done else 'there is no mount'}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script or module with its store on a disk."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert re.search(words, done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_an_experiment_on_disks_that_fill_up_at_any_moment(
    disk: Callable[[str], Path], tmp_path: Path, empty_store: Path
) -> None:
    """At the store's creation, at the teacher set, at a checkpoint; it is resumed once there is room."""
    save_state_dict(tmp_path / "teacher.safetensors", CGN().state_dict())
    options = ["--profile", "smoke", "--mechanism", "texture", "--teacher", str(tmp_path / "teacher.safetensors")]
    script = ["experiments/mnist_kd.py", *options, "--runtime.checkpoint-every", "2"]
    refused(start(disk("size=400k"), *script), r"is full: make room there, and start the same command again\.$")
    folder = disk("size=960k")
    shutil.copy(empty_store, folder / "mlflow.db")
    for size in (960, 1100, 1200, 2000, 3600):
        disk(f"size={size}k")
        refused(start(folder, *script), r"full|that disk has \S+ left")
    disk("size=50m")
    done = start(folder, *script)
    assert done.returncode == 0, done.stderr
    store = open_store(f"sqlite:///{folder / 'mlflow.db'}")
    finished = [run for run in store.runs("mnist_kd") if run.status == "FINISHED"]
    assert len(finished) == 1
    assert not list((folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_disk_that_is_read_only(disk: Callable[[str], Path], tmp_path: Path, empty_store: Path) -> None:
    folder = disk("size=50m")
    shutil.copy(empty_store, folder / "mlflow.db")
    save_state_dict(folder / "teacher.safetensors", CGN().state_dict())
    disk("size=50m,ro")
    teacher = ["--teacher", str(folder / "teacher.safetensors")]
    refused(start(folder, "experiments/mnist_kd.py", "--profile", "smoke", *teacher), "Read-only file system")
    source, out = ["--source", str(folder / "teacher.safetensors")], ["--out", str(folder / "out")]
    for command in (
        ["skdcgn", "counterfactuals", *source, *out, "--n", "20"],
        ["skdcgn", "teacher-sets", "--teacher", "miniature", "--per-class", "1", *out],
        ["analysis.report.render", "--store", f"sqlite:///{empty_store}", "--output", str(folder / "out")],
    ):
        refused(start(folder, "-m", *command), r"cannot be read or written \(Read-only file system\)")
