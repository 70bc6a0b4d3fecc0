"""Several machines on this one: processes with a host name, a process namespace and a run folder of their own.

They share a network, so that they find the scheduler and the MLflow server, and the clone with its code. Starting them
takes root on Linux.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from skdcgn.runs.provenance import PROJECT

_ALONE = ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
_ENTER = 'hostname "$0"; mount --bind "$1" "$2"; cd "$1"; shift 2; exec "$@"'
_BEGIN = 120.0  # seconds that a server may take to answer


def possible() -> bool:
    """Whether this process has the right to start machines."""
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(
            [*_ALONE, "sh", "-ec", _ENTER, "node-a", "/tmp", str(PROJECT / "mlruns"), "true"],
            capture_output=True,
            check=False,
        ).returncode
    )


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the length of a block, with its output in a file."""
    with log.open("ab") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def on(name: str, folder: Path, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one on a machine.

    Args:
        name: the machine's.
        folder: takes the place of `mlruns`: its own, or one that it shares with others.
        command: what to run.
    """
    folder.mkdir(exist_ok=True)
    return [*_ALONE, "sh", "-ec", _ENTER, name, str(folder), str(PROJECT / "mlruns"), *command]


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path, **environment: str) -> Iterator[str]:
    """Run an MLflow server that also serves artifacts, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "served")]
    command = [sys.executable, "-m", "mlflow", "server", *place, "--port", port, "--workers", "1"]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}
    log = folder / "server.log"
    with process(command, log, **environment) as server:
        wait_for(lambda: server.poll() is not None or _answers(f"http://127.0.0.1:{port}/health"), log)
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def postgres(binaries: Path) -> Iterator[str]:
    """Run a PostgreSQL server with an empty database, and yield its address for MLflow; as root, under its own user."""
    with tempfile.TemporaryDirectory(prefix="skdcgn-pg-") as name:
        folder = Path(name)  # not below pytest's folders, which other users cannot enter
        user = []
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        initdb = [str(binaries / "initdb"), "--pgdata", name, "--username", "skdcgn", "--auth", "trust", "--no-sync"]
        subprocess.run([*user, *initdb], check=True, capture_output=True)
        command = [str(binaries / "postgres"), "-D", name, "-k", name, "-c", "listen_addresses="]
        with process([*user, *command], log := folder / "log"):
            ready = [str(binaries / "pg_isready"), "--quiet", "--host", name]
            wait_for(lambda: not subprocess.run(ready, check=False).returncode, log)
            yield f"postgresql://skdcgn@/postgres?host={name}"


@contextlib.contextmanager
def cluster(folder: Path, machines: Mapping[str, Path], jobs: int, **environment: str) -> Iterator[dict[str, int]]:
    """Run a scheduler and workers for the length of a block.

    Args:
        folder: for the scheduler's file, `scheduler.json`, and logs.
        machines: the folder of each machine, by its name.
        jobs: workers on each.
        environment: of the workers.

    Yields:
        The id of a process by each machine's name, whose descendants the workers are.
    """
    scripts, address = PROJECT / "clusters", folder / "scheduler.json"
    environment = {"SKDCGN_PYTHON": sys.executable, **environment}
    options = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(address)]
    log = folder / "scheduler.log"
    with contextlib.ExitStack() as stack:
        stack.enter_context(process([str(scripts / "scheduler.sh"), *options], log, **environment))
        wait_for(address.exists, log)
        options = ["--host", "127.0.0.1", "--nworkers", str(jobs), "--scheduler-file", str(address)]
        command = [str(scripts / "worker.sh"), *options]
        yield {
            name: stack.enter_context(process(on(name, place, command), folder / f"{name}.log", **environment)).pid
            for name, place in machines.items()
        }


def workers(pid: int) -> list[psutil.Process]:
    """Return the workers below a process: children of their nannies."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def wait_for(condition: object, log: Path) -> None:
    """Wait until something holds; the log says why it does not."""
    end = time.monotonic() + _BEGIN
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
