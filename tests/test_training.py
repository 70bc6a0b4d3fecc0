"""The training loop: killed and resumed runs, divergence, signals."""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trivial import Config, Work, carry_out_one

from experiments import mnist_kd
from skdcgn import cli
from skdcgn.cgn.mnist import CGN
from skdcgn.data.weights import save_state_dict
from skdcgn.errors import Diverged, Interrupted
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.students import load_student
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.run import Interruption, Run
from skdcgn.runs.store import RunRecord, Store, open_store
from skdcgn.training import RandomState, Trainer, descend


class Counter:
    """A trainer whose loss is the step, and that can misbehave at a step."""

    parallel = False

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


@pytest.fixture
def training(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunRecord]:
    """Train a trainer as a run, a checkpoint every third step; the steps that are evaluated go to a list."""

    def start(trainer: Counter, evaluated: list[int]) -> RunRecord:
        def do(run: Run, config: Config, _: object) -> None:
            train(trainer, run, config.runtime, evaluated.append, evaluation_steps(trainer.steps, 2), "test")

        monkeypatch.setattr(Work, "do", do)
        return carry_out_one(store)

    return start


def test_evaluation_steps_are_even_and_end_with_the_last() -> None:
    assert evaluation_steps(10, 2) == {5, 10}
    assert evaluation_steps(7, 3) == {2, 5, 7}
    assert evaluation_steps(100, (0.0, 0.1, 1.0)) == {1, 10, 100}


def test_losses_evaluations_and_checkpoint(store: Store, training: Callable[..., RunRecord]) -> None:
    evaluated: list[int] = []
    run = training(Counter(10), evaluated)
    assert evaluated == [5, 10]
    assert store.history(run.run_id, "loss/count") == [(step, step) for step in range(1, 11)]
    assert run.metrics["cost/train_seconds"] > 0
    assert not list((store.folder / "checkpoints").iterdir())  # of no use once the run has finished


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_fails_the_run_and_names_step_and_loss(
    store: Store, training: Callable[..., RunRecord], value: float
) -> None:
    with pytest.raises(Diverged, match=f"loss 'count' is {value} at step 4"):
        training(Counter(10, at=4, misbehave=lambda: value), [])
    (run,) = store.runs("trivial")
    assert run.status == "FAILED"
    assert "step 4" in run.tags["error"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_cleanly_and_the_next_start_resumes(
    store: Store, training: Callable[..., RunRecord], signum: signal.Signals
) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted):
        training(Counter(10, at=5, misbehave=lambda: os.kill(os.getpid(), signum)), [])
    assert signal.getsignal(signum) is before
    (interrupted,) = store.runs("trivial")
    assert interrupted.status == "KILLED"
    assert store.history(interrupted.run_id, "loss/count")[-1] == (5, 5)  # with a checkpoint of the same step

    evaluated: list[int] = []
    run = training(Counter(10), evaluated)
    assert run.run_id == interrupted.run_id
    assert evaluated == [10]
    assert store.history(run.run_id, "loss/count") == [(step, step) for step in range(1, 11)]
    assert run.metrics["cost/train_seconds"] > 0


def test_failed_training_resumes_from_its_checkpoint_and_logs_no_step_twice(
    store: Store, training: Callable[..., RunRecord]
) -> None:
    with pytest.raises(Diverged):
        training(Counter(10, at=9, misbehave=lambda: math.nan), [])
    resumed = Counter(10)
    steps: list[int] = []
    resumed.load_state_dict = lambda state: steps.append(state["step"]) or setattr(resumed, "step", state["step"])
    run = training(resumed, [])
    assert steps == [6]  # the last one that a checkpoint was written after
    logged = store.client.get_metric_history(run.run_id, "loss/count")
    assert [metric.step for metric in logged] == list(range(1, 11))


class Walk(Trainer[torch.Tensor]):
    """A network that learns from random batches: what a step does depends on all of the checkpoint."""

    def __init__(self, fail_at: int = 0) -> None:
        super().__init__(steps=12)
        self._fail_at, self._random = fail_at, stream(0, "walk")
        with seeded(0, "walk"):
            self.network = torch.nn.Linear(4, 1)
        self.register("network", self.network)
        self._optimizer = self.register_optimizer("optimizer", torch.optim.Adam(self.network.parameters()))
        self.register("random", RandomState(self._random))

    def batches(self) -> Iterator[torch.Tensor]:
        while self.step < self.steps:
            yield torch.randn(8, 4, generator=self._random)

    def training_step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.step + 1 == self._fail_at:
            return {"loss": torch.tensor(math.nan)}
        loss = self.network(batch).square().mean()
        descend(self._optimizer, {"loss": loss})
        return {"loss": loss}


@pytest.mark.parametrize(
    ("damaged", "resumed_at", "instead"),
    [(0, 9, None), (1, 6, "going on from the one before it"), (2, 0, "starting anew")],
)
def test_training_goes_on_from_the_last_whole_checkpoint_as_if_nothing_had_happened(
    store: Store,
    training: Callable[..., RunRecord],
    capsys: pytest.CaptureFixture[str],
    damaged: int,
    resumed_at: int,
    instead: str | None,
) -> None:
    with pytest.raises(Diverged):
        training(Walk(fail_at=11), [])
    (interrupted,) = store.runs("trivial")
    newest, before = sorted((store.folder / "checkpoints").iterdir())
    for path in (newest, before)[:damaged]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed, start = Walk(), []
    fit = resumed.fit
    resumed.fit = lambda: start.append(resumed.step) or fit()
    capsys.readouterr()
    run = training(resumed, [])
    assert (run.run_id, start) == (interrupted.run_id, [resumed_at])
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert [line.partition("damaged: ")[2] for line in warned] == ([f"{instead}."] if instead else [])

    undisturbed = Walk()
    losses = [(step, terms["loss"]) for step, terms in undisturbed.fit()]
    assert store.history(run.run_id, "loss/loss") == losses
    state, expected = resumed.state_dict(), undisturbed.state_dict()
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert list((store.folder / "checkpoints").iterdir()) == []


@pytest.fixture
def ordinary() -> Iterator[None]:
    """Ctrl-C as in a terminal: what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ordinary")
def test_a_second_signal_ends_the_process_the_ordinary_way() -> None:
    with Interruption() as interruption, contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# --- as a user runs it ----------------------------------------------------------------------------------------------


def script(name: str, *options: str) -> list[str]:
    return [sys.executable, str(PROJECT / "experiments" / f"{name}.py"), *options]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a process that keeps its runs in a folder."""
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def _outcome(store: Store) -> tuple[dict[str, float], dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    """The one student of a store: final metrics, weights, and every logged loss."""
    (run,) = store.runs("mnist_kd")
    assert run.status == "FINISHED"
    metrics = {key: value for key, value in run.metrics.items() if key.startswith(("final/", "heldout/"))}
    losses = {
        key: [(metric.step, metric.value) for metric in store.client.get_metric_history(run.run_id, key)]
        for key in run.metrics
        if key.startswith(("loss/", "heldout/"))
    }
    return metrics, load_student(store, run.run_id).state_dict(), losses


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_experiment_ends_as_if_nothing_had_happened(
    tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str], kills: int
) -> None:
    """SIGKILL in the middle, restart: same metrics, same weights, one run."""
    with seeded(0, "teacher"):
        save_state_dict(tmp_path / "teacher.safetensors", CGN().state_dict())
    options = ["--profile", "smoke", "--mechanism", "texture", "--teacher", str(tmp_path / "teacher.safetensors")]
    options += ["--distill.steps", "40", "--runtime.checkpoint-every", "4", "--runtime.threads", "1"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
    for _ in range(kills):
        process = subprocess.Popen(
            script("mnist_kd", *options), env=environment(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        previous = {path: path.stat().st_mtime_ns for path in (killed / "checkpoints").glob("*.pt")}
        while process.poll() is None:
            checkpoints = {path: path.stat().st_mtime_ns for path in (killed / "checkpoints").glob("*.pt")}
            if checkpoints != previous:
                break
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the experiment ended before it could be killed"
    outcomes = []
    for folder in (killed, undisturbed):
        store = open_store(f"sqlite:///{folder / 'mlflow.db'}")
        carry_out(mnist_kd.plan(cli.parse(mnist_kd.DEFAULTS, args=options)), store)
        outcomes.append(_outcome(store))
    assert capsys.readouterr().out.count("resuming") == 1
    (metrics, weights, losses), (metrics_again, weights_again, losses_again) = outcomes
    assert {"loss/pixel", "heldout/l1"} <= set(losses)
    assert metrics == metrics_again
    assert losses == losses_again
    assert all(torch.equal(value, weights_again[key]) for key, value in weights.items())
