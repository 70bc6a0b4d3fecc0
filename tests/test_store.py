"""The run store: what runs keep in it, and what can be read back."""

import os
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from trivial import Config, case

from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.errors import InputError
from skdcgn.files import save_checkpoint
from skdcgn.recipes.students import STUDENT, load_student
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import create
from skdcgn.runs.provenance import PROJECT, provenance
from skdcgn.runs.run import Run
from skdcgn.runs.store import Store
from skdcgn.tinygan.networks import TinyGANGenerator, save_generator


@pytest.fixture
def run(store: Store) -> Run:
    return create(case(), store, Lease.take())


def test_metrics_reach_the_store_with_the_flush(store: Store, run: Run) -> None:
    for step in range(1, 1201):  # more than one call of MLflow's takes
        run.log_metrics("loss", {"a": step, "b": -step}, step)
    assert store.record(run.run_id).metrics == {}
    run.flush()
    assert store.record(run.run_id).metrics == {"loss/a": 1200, "loss/b": -1200}
    assert store.history(run.run_id, "loss/a") == [(step, step) for step in range(1, 1201)]
    assert store.history(run.run_id, "loss/none") == []


def test_final_metrics_by_their_own_names(store: Store, run: Run) -> None:
    run.log_metrics("final", {"iou": 0.5}, 10)
    run.log_metrics("cost", {"train_seconds": 3})
    run.flush()
    assert store.record(run.run_id).final == {"iou": 0.5}


def test_resumed_run_logs_no_step_twice(store: Store, run: Run) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    for step in (1, 2, 3):
        run.log_metrics("loss", {"pixel": 1 / step}, step)
    run.log_image("teacher/over student", pixels, 2)
    run.flush()
    resumed = Run(store, run.run_id, reopened=True)
    for step in (2, 3, 4):  # the last checkpoint was of step 1
        resumed.log_metrics("loss", {"pixel": 1 / step}, step)
        resumed.log_image("teacher/over student", pixels, step)
    resumed.flush()
    logged = store.client.get_metric_history(run.run_id, "loss/pixel")
    assert [metric.step for metric in logged] == [1, 2, 3, 4]
    images = [path for path in store.files(run.run_id, "images") if path.endswith(".png")]
    assert sorted(int(path.split("+step+")[1].split("+")[0]) for path in images) == [2, 3, 4]


def test_a_run_is_resumed_where_it_left_a_checkpoint(store: Store, run: Run) -> None:
    assert not Run(store, run.run_id, reopened=True).resumed
    save_checkpoint(run.checkpoint, {"trainer": {"step": 4}})
    assert Run(store, run.run_id, reopened=True).resumed
    assert not run.resumed


def test_history_has_the_later_value_of_a_step_that_was_logged_twice(store: Store, run: Run) -> None:
    for value, step in ((1.0, 2), (5.0, 1), (7.0, 2)):
        store.client.log_metric(run.run_id, "loss/a", value, step=step, timestamp=int(value))
    assert store.history(run.run_id, "loss/a") == [(1, 5.0), (2, 7.0)]


def test_tensors_files_and_students_come_back(store: Store, run: Run) -> None:
    student = TinyGANGenerator(replace(NATIVE_MNIST, width=4)).eval()
    run.log_file(STUDENT, lambda folder: save_generator(student, folder))
    run.log_tensors("samples", {"x": torch.arange(6).view(2, 3).T})
    run.log_file("note.txt", lambda path: path.write_text("words"))
    assert store.files(run.run_id) == ["note.txt", "samples.safetensors", STUDENT]
    loaded = load_student(store, run.run_id)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in student.state_dict().items())
    assert torch.equal(store.load_tensors(run.run_id, "samples")["x"], torch.arange(6).view(2, 3).T)
    with store.artifact(run.run_id, "note.txt") as path:
        assert path.read_text() == "words"
    assert not path.exists()  # it was a copy


def test_what_is_not_there_is_one_sentence(store: Store, run: Run) -> None:
    with pytest.raises(InputError, match=rf"run {run.run_id} of the store sqlite:.* holds no nothing"):
        store.load_tensors(run.run_id, "nothing")
    with pytest.raises(InputError, match="holds no student"):
        load_student(store, run.run_id)
    with pytest.raises(InputError, match="holds no student"):
        load_student(store, "0" * 32)
    with pytest.raises(InputError, match="has no run 0000"):
        store.record("0" * 32)


def test_damaged_tensors_are_one_sentence(store: Store, run: Run) -> None:
    run.log_file("samples.safetensors", lambda path: path.write_bytes(b"half a file"))
    with pytest.raises(
        InputError, match=rf"samples.safetensors of run {run.run_id} in the store .* is damaged \(.+\): re"
    ):
        store.load_tensors(run.run_id, "samples")


def test_a_run_says_what_it_is_and_where_it_comes_from(store: Store) -> None:
    tags = {"mechanism": "shape", "stand_in": True, "seed": 3}
    parent = create(case("study"), store, Lease.take())
    one = case("child", Config(weight=2.0), tags=tags, description="what it *is*")
    run = create(one, store, Lease.take())
    run.set_tags({"mlflow.parentRunId": parent.run_id})
    child = store.record(run.run_id)
    assert (child.experiment, child.name, child.status) == ("trivial", "child", "RUNNING")
    assert child.parent == parent.run_id
    assert store.record(parent.run_id).parent is None
    assert child.tags["mlflow.note.content"] == "what it *is*"
    assert {name: child.tags[name] for name in tags} == {"mechanism": "shape", "stand_in": "true", "seed": "3"}
    assert {"hardware", "torch", "host", "lease", "dependencies"} <= set(child.tags)
    assert child.tags["identity"] == one.identity.digest
    assert {"weight": "2.0", "loss.kl": "1.0", "runtime.device": "auto", "name": "None"}.items() <= child.params.items()
    assert abs((datetime.now(UTC) - child.start_time).total_seconds()) < 60


def test_runs_are_found_by_experiment_status_and_tags(store: Store) -> None:
    first, second = (create(case(f"seed {seed}", tags={"seed": seed}), store, Lease.take()) for seed in (1, 2))
    store.set_status(first.run_id, "FINISHED")
    store.set_tags(second.run_id, {"stand_in": False})
    assert [each.run_id for each in store.runs("trivial")] == [second.run_id, first.run_id]  # newest first
    assert [each.run_id for each in store.runs("trivial", "FINISHED")] == [first.run_id]
    assert [each.run_id for each in store.runs("trivial", seed="2", stand_in="false")] == [second.run_id]
    assert store.runs("trivial", "FINISHED", seed="2") == []
    assert store.runs("another") == []
    store.experiment_id("another")
    assert store.experiments() == ["Default", "another", "trivial"]


def test_a_finished_run_has_an_end_and_a_resumed_one_none(store: Store, run: Run) -> None:
    store.set_status(run.run_id, "KILLED")
    assert store.client.get_run(run.run_id).info.end_time is not None
    store.set_status(run.run_id, "RUNNING")
    assert store.record(run.run_id).status == "RUNNING"


# --- where it lies


@pytest.mark.slow
def test_fresh_store_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    """Without care all but one crash: each of them would create the tables."""
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", "from skdcgn.runs.store import open_store; open_store().experiment_id('same')"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_nothing_is_left_in_the_working_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow makes a store of its own there for whoever does not name one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = create(case(), store, Lease.take())
    run.log_tensors("samples", {"x": torch.zeros(1)})
    run.log_image("picture", np.zeros((4, 4, 3), np.uint8), 0)
    store.load_tensors(run.run_id, "samples")
    assert not list(elsewhere.iterdir())
    assert "MLFLOW_TRACKING_URI" not in os.environ


# --- provenance


def test_provenance_names_the_commit_of_a_clone() -> None:
    tags = provenance()
    assert tags["torch"] == torch.__version__
    assert tags["host"] == socket.gethostname()
    if (PROJECT / ".git").exists():
        commit = subprocess.run(["git", "-C", PROJECT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert tags["mlflow.source.git.commit"] == commit.stdout.strip()
        assert tags["git_dirty"] in (True, False)
