"""The training loop: killed and continued runs, divergence, signals."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from skdcgn.cgn.adversarial import save_cgn
from skdcgn.cgn.mnist import CGN
from skdcgn.errors import Interrupted
from skdcgn.randomness import seeded
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import Diverged, evaluation_steps, train
from skdcgn.runtime import Runtime

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    runtime: Runtime = field(default_factory=lambda: Runtime(checkpoint_every=3, log_every=1))


class Counter:
    """A trainer whose loss is the step, and that can misbehave at a step."""

    def __init__(self, steps: int, at: int = 0, misbehave: Any = None) -> None:
        self.step, self.steps, self._at, self._misbehave = 0, steps, at, misbehave

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        while self.step < self.steps:
            self.step += 1
            loss = float(self.step)
            if self.step == self._at:
                loss = self._misbehave() or loss
            yield self.step, {"count": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def _train(store: run_store.Store, trainer: Counter, evaluated: list[int]) -> run_module.Run:
    config = Config()
    with store.start("test", config, "run") as run:
        train(trainer, run, config.runtime, evaluated.append, evaluation_steps(trainer.steps, 2), "test")
    return run


def test_evaluation_steps_are_even_and_end_with_the_last() -> None:
    assert evaluation_steps(10, 2) == {5, 10}
    assert evaluation_steps(7, 3) == {2, 5, 7}


def test_losses_evaluations_and_checkpoint(store: run_store.Store) -> None:
    evaluated: list[int] = []
    run = _train(store, Counter(10), evaluated)
    assert evaluated == [5, 10]
    assert [metric.value for metric in store.client.get_metric_history(run.run_id, "loss/count")] == list(range(1, 11))
    assert run.metrics["cost/train_seconds"] > 0
    assert not run.checkpoint.exists()  # of no use once the run has finished


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_fails_the_run_and_names_step_and_loss(store: run_store.Store, value: float) -> None:
    with pytest.raises(Diverged, match=f"loss 'count' is {value} at step 4"):
        _train(store, Counter(10, at=4, misbehave=lambda: value), [])
    (run,) = store.search("test")
    assert run.info.status == "FAILED"
    assert "step 4" in run.data.tags["error"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_cleanly_and_the_next_start_goes_on(store: run_store.Store, signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted):
        _train(store, Counter(10, at=5, misbehave=lambda: os.kill(os.getpid(), signum)), [])
    assert signal.getsignal(signum) is before
    (interrupted,) = store.search("test")
    assert interrupted.info.status == "KILLED"

    trainer, evaluated = Counter(10), []
    run = _train(store, trainer, evaluated)
    assert run.run_id == interrupted.info.run_id
    assert evaluated == [10]
    history = store.client.get_metric_history(run.run_id, "loss/count")
    assert [metric.step for metric in history] == list(range(1, 11))


def _command(teacher: Path, *options: str) -> list[str]:
    fixed = ["--profile", "smoke", "--mechanism", "texture", "--teacher", str(teacher), "--distill.steps", "40"]
    return [
        sys.executable,
        str(PROJECT / "experiments" / "mnist_kd.py"),
        *fixed,
        "--runtime.checkpoint-every",
        "4",
        "--runtime.threads",
        "1",
        *options,
    ]


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def _outcome(folder: Path) -> tuple[dict[str, float], dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    """The one student of a store: final metrics, weights, and every logged loss."""
    store = run_store.open_store(f"sqlite:///{folder / 'mlflow.db'}")
    runs = store.search("mnist_kd")
    assert len(runs) == 2  # the group and its one student
    assert {run.info.status for run in runs} == {"FINISHED"}
    (child,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    metrics = {key: value for key, value in child.data.metrics.items() if key.startswith(("final/", "heldout/"))}
    losses = {
        key: [(metric.step, metric.value) for metric in store.client.get_metric_history(child.info.run_id, key)]
        for key in child.data.metrics
        if key.startswith(("loss/", "heldout/"))
    }
    return metrics, store.load_student(child.info.run_id).state_dict(), losses


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_experiment_ends_as_if_nothing_had_happened(tmp_path: Path, kills: int) -> None:
    """SIGKILL in the middle, restart: same metrics, same weights, one run."""
    with seeded(0, "teacher"):
        save_cgn(tmp_path / "teacher.safetensors", CGN())
    command = _command(tmp_path / "teacher.safetensors")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command, env=_environment(undisturbed), check=True, capture_output=True)

    for _ in range(kills):
        process = subprocess.Popen(
            command, env=_environment(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        previous = {path: path.stat().st_mtime_ns for path in (killed / "checkpoints").glob("*.pt")}
        while process.poll() is None:
            checkpoints = {path: path.stat().st_mtime_ns for path in (killed / "checkpoints").glob("*.pt")}
            if checkpoints != previous:
                break
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the experiment ended before it could be killed"
    subprocess.run(command, env=_environment(killed), check=True, capture_output=True)

    metrics, weights, losses = _outcome(undisturbed)
    metrics_again, weights_again, losses_again = _outcome(killed)
    assert metrics == metrics_again
    assert losses == losses_again
    assert all(torch.equal(value, weights_again[key]) for key, value in weights.items())
