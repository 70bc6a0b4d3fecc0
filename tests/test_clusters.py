"""The engine on several machines: the same results as in one process, whatever dies meanwhile."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import distributed
import pytest
import yaml
from fingerprint import compare, contents
from machines import cluster, mlflow_server, on, possible, postgres, workers
from walks import Walk, tree

from experiments import mnist_kd
from skdcgn.runs.identity import ASSETS
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import Store, open_store

WALKS = """
from walks import tree
from skdcgn import cli
from skdcgn.commands.experiments import execution
from skdcgn.runs.engine.cluster import Where
from skdcgn.runs.store import open_store

def work():
    execution.check(execution.execute([tree(4, steps=STEPS)], open_store(), Where(scheduler="FILE"), ""))

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
        every: seconds between two killings, or more: until a checkpoint is written, lest nobody gets anywhere.
    """
    command = on("driver", folder, [sys.executable, *arguments])
    log = folder / "driver.log"
    with log.open("w") as file:
        driver = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT)
    killed, last, checkpoints = 0, 0.0, folder / "checkpoints"
    try:
        for number, pid in enumerate(itertools.cycle(kill.values() or [0])):
            try:
                driver.wait(every)
                break
            except subprocess.TimeoutExpired:
                alive = workers(pid) if kill else []
                if alive and checkpoints.exists() and checkpoints.stat().st_mtime > last:
                    last = checkpoints.stat().st_mtime
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
    """What processes on all machines get; the test is skipped where there cannot be any."""
    if not possible():
        pytest.skip("needs root on Linux, for machines with names of their own")
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- what clusters/ holds


def leaves(settings: Mapping[str, object], *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, *path, name)
        else:
            yield (*path, name)


def test_the_settings_are_dasks() -> None:
    known = yaml.safe_load((Path(distributed.__file__).parent / "distributed.yaml").read_text())
    settings = list(leaves(yaml.safe_load((ASSETS / "dask.yaml").read_text())))
    own = ("distributed", "nanny", "pre-spawn-environ")
    assert len(settings) > 8
    assert {path for path in settings if path[:3] != own} <= set(leaves(known))
    assert {path[3] for path in leaves(known) if path[:3] == own} <= {path[3] for path in settings if path[:3] == own}


def test_the_manifest_starts_what_is_there() -> None:
    manifest = list(yaml.safe_load_all((PROJECT / "clusters" / "kubernetes.yaml").read_text()))
    jobs = {each["metadata"]["name"]: each["spec"] for each in manifest if each["kind"] == "Job"}
    services = {each["metadata"]["name"]: each["spec"] for each in manifest if each["kind"] == "Service"}
    assert list(jobs) == ["skdcgn-scheduler", "skdcgn-workers", "skdcgn-driver"]
    for name, job in jobs.items():
        (container,) = job["template"]["spec"]["containers"]
        assert os.access(PROJECT / container["command"][0], os.X_OK)
        if name != "skdcgn-scheduler":
            assert "tcp://skdcgn-scheduler:8786" in container["command"]
    assert services["skdcgn-scheduler"]["ports"] == [{"port": 8786}]
    assert services["skdcgn-scheduler"]["selector"] == jobs["skdcgn-scheduler"]["template"]["metadata"]["labels"]
    assert jobs["skdcgn-workers"]["parallelism"] > 1


@pytest.mark.parametrize("script", sorted((PROJECT / "clusters").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_links_in_the_docs_lead_somewhere() -> None:
    page = PROJECT / "docs" / "clusters.md"
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]
    assert len(links) > 4
    assert [link for link in links if not (page.parent / link).exists()] == []
