"""The run store: identity, resumption, status, and what runs keep."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from skdcgn.errors import InputError, Interrupted
from skdcgn.runs import identity as run_identity
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANGenerator


@dataclass(frozen=True)
class Config:
    weight: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    data: Path | None = None
    runtime: Runtime = field(default_factory=Runtime)


def _statuses(store: run_store.Store, experiment: str = "test") -> list[str]:
    return [run.info.status for run in store.search(experiment)]


def test_hash_is_of_what_is_computed_not_of_where() -> None:
    reference = run_identity.config_hash(Config())
    assert (
        run_identity.config_hash(Config(runtime=Runtime(device="cuda", threads=3), data=Path("/somewhere")))
        == reference
    )
    assert run_identity.config_hash(Config(weight=2.0)) != reference
    assert run_identity.config_hash(Config(sizes=(1, 3))) != reference
    assert run_identity.config_hash(Config(), {"teacher": "abc"}) != reference


def test_finished_run_is_found_again_unless_forced(store: run_store.Store) -> None:
    with store.start("test", Config(), "first") as run:
        assert not run.finished
        run.log_metrics("final", {"iou": 0.5})
    with store.start("test", Config(), "again") as again:
        assert again.finished
        assert again.run_id == run.run_id
        assert again.metrics == {"final/iou": 0.5}
    with store.start("test", Config(weight=2.0), "other") as other:
        assert not other.finished
    with store.start("test", Config(runtime=Runtime(force=True)), "forced") as forced:
        assert not forced.finished
    assert len(_statuses(store)) == 3


def test_new_code_is_a_new_run(store: run_store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.start("test", Config(), "old code"):
        pass
    monkeypatch.setattr(run_identity, "code_version", lambda experiment: "changed")
    with store.start("test", Config(), "new code") as run:
        assert not run.finished


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(signal.SIGTERM), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (ValueError("bad"), "FAILED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_runs_end_with_the_right_status(store: run_store.Store, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), store.start("test", Config(), "run"):
        raise error
    assert _statuses(store) == [status]
    if isinstance(error, ValueError):
        assert store.search("test")[0].data.tags["error"] == "ValueError: bad"


def test_unfinished_run_is_continued_without_logging_twice(store: run_store.Store) -> None:
    with contextlib.suppress(Interrupted), store.start("test", Config(), "run") as run:
        for step in (1, 2, 3):
            run.log_metrics("loss", {"pixel": 1 / step}, step)
        run.log_image("picture", np.zeros((4, 4, 3), np.uint8), 2)
        raise Interrupted(signal.SIGINT)
    assert _statuses(store) == ["KILLED"]
    with store.start("test", Config(), "run") as again:
        assert again.resumed
        assert again.run_id == run.run_id
        for step in (2, 3, 4):  # the last checkpoint was of step 1
            again.log_metrics("loss", {"pixel": 1 / step}, step)
            again.log_image("picture", np.zeros((4, 4, 3), np.uint8), 2)
    assert _statuses(store) == ["FINISHED"]
    history = store.client.get_metric_history(run.run_id, "loss/pixel")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert len([file for file in store.client.list_artifacts(run.run_id, "images") if file.path.endswith(".png")]) == 1


def test_run_of_a_killed_process_does_not_stay_running(store: run_store.Store) -> None:
    script = (
        "import os, signal; from tests.test_tracking import Config; from skdcgn import tracking\n"
        "with tracking.open_store().start('test', Config(), 'killed') as run:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert _statuses(store) == ["RUNNING"]
    store.end_dead_runs("test")
    assert _statuses(store) == ["KILLED"]


def test_running_twin_is_not_disturbed(store: run_store.Store) -> None:
    with (
        store.start("test", Config(), "first"),
        pytest.raises(InputError, match="is running now"),
        store.start("test", Config(), "second"),
    ):
        pass
    assert _statuses(store) == ["FINISHED"]


def test_tags_parameters_and_parent(store: run_store.Store) -> None:
    tags = {"mechanism": "shape", "stand_in": True}
    with (
        store.start("test", Config(), "parent", {"level": "group"}) as parent,
        store.start("test", Config(), "child", tags=tags, parent=parent, description="what it *is*") as child,
    ):
        pass
    data = store.client.get_run(child.run_id).data
    assert data.tags["mlflow.parentRunId"] == parent.run_id
    assert data.tags["stand_in"] == "true"
    assert data.tags["mlflow.note.content"] == "what it *is*"
    assert {"config_hash", "code_version", "hardware", "torch", "process"} <= set(data.tags)
    assert data.params["weight"] == "1.0"
    assert data.params["runtime.device"] == "auto"


def test_students_and_tensors_come_back(store: run_store.Store) -> None:
    student = TinyGANGenerator(replace(NATIVE_MNIST, width=4)).eval()
    with store.start("test", Config(), "run") as run:
        run.log_student(student)
        run.log_tensors("samples", {"x": torch.arange(6).view(2, 3).T})
    loaded = store.load_student(run.run_id)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in student.state_dict().items())
    assert torch.equal(store.load_tensors(run.run_id, "samples")["x"], torch.arange(6).view(2, 3).T)
    with pytest.raises(InputError, match="holds no nothing"):
        store.load_tensors(run.run_id, "nothing")
    with pytest.raises(InputError, match="holds no student"):
        store.load_student("0" * 32)


def test_more_metrics_than_one_call_takes(store: run_store.Store) -> None:
    with store.start("test", Config(), "run") as run:
        for step in range(1, 1201):
            run.log_metrics("loss", {"a": step, "b": step}, step)
    assert len(store.client.get_metric_history(run.run_id, "loss/a")) == 1200


def test_fresh_store_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    """Without care all but one crash: each of them would create the tables."""
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", "from skdcgn import tracking; tracking.open_store().experiment('same')"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_store_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be taken for one" * 20)
    with pytest.raises(InputError, match="cannot be opened"):
        run_store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_nothing_is_left_in_the_working_directory(
    store: run_store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow makes a store of its own there for whoever does not name one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with store.start("test", Config(), "run") as run:
        run.log_tensors("samples", {"x": torch.zeros(1)})
        run.log_image("picture", np.zeros((4, 4, 3), np.uint8), 0)
    store.load_tensors(run.run_id, "samples")
    optuna.create_study(storage=store.study_storage("sweep"), study_name="study")
    assert not list(elsewhere.iterdir())
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_overrides_name_what_was_changed() -> None:
    assert run_identity.overrides(Config(runtime=Runtime(threads=3)), Config(), ()) == "none"
    changed = Config(weight=2.0, sizes=(3,))
    assert run_identity.overrides(changed, Config(), ()) == "weight=2.0, sizes=(3,)"
    assert run_identity.overrides(changed, Config(), ("sizes",)) == "weight=2.0"


def test_flatten() -> None:
    assert run_identity.flatten({"loss": {"kl": 1}, "seed": 0}) == {"loss.kl": 1, "seed": 0}
