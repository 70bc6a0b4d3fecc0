"""The engine on several machines: the same results as in one process, whatever dies meanwhile."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fingerprint import compare, contents
from machines import cluster, mlflow_server, on, possible, postgres, workers
from walks import Walk, tree

from experiments import mnist_kd
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import Store, open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="needs root on Linux, for machines with names of their own"),
]

WALKS = """
from walks import tree
from skdcgn import cli
from skdcgn.commands import experiment
from skdcgn.runs.engine.cluster import Where
from skdcgn.runs.store import open_store

def work():
    experiment.check(experiment.execute([tree(4, steps=STEPS)], open_store(), Where(scheduler="FILE"), ""))

if __name__ == "__main__":
    cli.entry(work)
"""


def drive(folder: Path, arguments: list[str], environment: dict[str, str], kill: dict[str, int], every: float) -> str:
    """Start a driver on a machine of its own, see that it ends well, and return its output.

    Args:
        folder: of the machine.
        arguments: of Python.
        environment: more variables.
        kill: machines of which a worker is killed now and then, in turns; see `cluster`.
        every: seconds between two killings.
    """
    command = on("driver", folder, [sys.executable, *arguments])
    log = folder / "driver.log"
    with log.open("w") as file:
        driver = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT)
    killed = 0
    try:
        for number, pid in enumerate(itertools.cycle(kill.values() or [0])):
            try:
                driver.wait(every)
                break
            except subprocess.TimeoutExpired:
                alive = workers(pid) if kill else []
                if alive:
                    alive[number // len(kill) % len(alive)].kill()
                    killed += 1
            assert number * every < 900
    finally:
        driver.kill()
        driver.wait()
    output = log.read_text()
    assert driver.returncode == 0, output
    assert "Traceback" not in output
    assert not kill or killed > 3, "the work was over too soon"
    return output


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What processes on all machines get."""
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "SKDCGN_HEARTBEAT": "0.5", "SKDCGN_OFFLINE": "1"}


@pytest.fixture
def walks(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with long walks, made in this process."""
    monkeypatch.setattr(Walk, "pause", 0.0)
    carry_out(tree(4, steps=120), store)
    return store


def check_walks(made: Store, alone: Store) -> None:
    """See that walks ended where they do in one process, each made once, and no step lost."""
    runs = {run.name: run for run in made.runs("walks")}
    expected = {run.name: run for run in alone.runs("walks")}
    assert len(made.runs("walks")) == len(expected) == 7
    for name, run in expected.items():
        assert (runs[name].status, runs[name].final) == ("FINISHED", run.final)
        assert made.history(runs[name].run_id, "loss/place") == alone.history(run.run_id, "loss/place")
        with made.artifact(runs[name].run_id, "log.txt") as log:
            assert f"walks: {name} (run" in log.read_text()


def test_two_machines_without_a_shared_folder(
    tmp_path: Path, empty_store: Path, walks: Store, digits: Store, environment: dict[str, str]
) -> None:
    shutil.copy(empty_store, tmp_path / "served.db")
    script = tmp_path / "driver.py"
    script.write_text(WALKS.replace("STEPS", "120").replace("FILE", str(tmp_path / "scheduler.json")))
    machines = {name: tmp_path / name for name in ("node-a", "node-b")}
    with mlflow_server(f"sqlite:///{tmp_path / 'served.db'}", tmp_path) as uri:
        environment |= {"MLFLOW_TRACKING_URI": uri}
        with cluster(tmp_path, machines, 1, **environment):
            drive(tmp_path / "driver", [str(script)], environment, {}, 60)
            study = [str(PROJECT / "experiments" / "mnist_kd.py"), "--profile", "smoke", "--dataset", "digits"]
            study += ["--scheduler", str(tmp_path / "scheduler.json")]
            output = drive(tmp_path / "driver", study, environment, {}, 60)
        made = open_store(uri)
        check_walks(made, walks)
        hosts = {Lease.read(run.tags).host for run in made.runs("walks")}
        assert hosts == set(machines)
        carry_out(mnist_kd.plan(replace(mnist_kd.DEFAULTS["smoke"], dataset="digits")), digits)
        expected, found = contents(digits.uri), contents(uri)
        assert expected.keys() <= found.keys()
        assert compare(expected, found)
        assert all(len(runs) == len(found[name]) for name, runs in expected.items())
        assert "iou" in output


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL server's address."""
    pytest.importorskip("psycopg", reason="needs the extra `postgres`: pip install -e .[postgres]")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and not shutil.which("initdb"):
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    with postgres(found[-1].parent if found else Path(shutil.which("initdb")).parent) as address:
        yield address


def test_workers_that_are_killed_all_the_time(
    tmp_path: Path, database: str, walks: Store, environment: dict[str, str]
) -> None:
    """Four workers on two machines with a shared folder, MLflow on PostgreSQL."""
    script = tmp_path / "driver.py"
    script.write_text(WALKS.replace("STEPS", "120").replace("FILE", str(tmp_path / "scheduler.json")))
    with mlflow_server(database, tmp_path) as uri:
        environment |= {"MLFLOW_TRACKING_URI": uri}
        shared = tmp_path / "shared"
        with cluster(tmp_path, {"node-a": shared, "node-b": shared}, 2, **environment) as nodes:
            output = drive(shared, [str(script)], environment, nodes, 4)
        assert "resuming at step" in output
        check_walks(open_store(uri), walks)
