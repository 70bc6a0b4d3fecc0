"""Several processes, as torchrun starts them: they come to what one process comes to, and refuse bad input together."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from torch import Tensor, nn

from skdcgn import cli, distributed
from skdcgn.cgn.teachers import miniature
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream
from skdcgn.recipes.students import load_student
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import open_store
from skdcgn.tinygan.records import FreshBatches

FAST = ("shape_single", "texture")


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Start a script in two processes, with a run store in a folder."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        [*launcher, *command], env=environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=500
    )


def in_two(folder: Path, *names: str) -> Path:
    """Run trainings in two processes, which write what they came to into a folder; return the folder."""
    done = torchrun(folder, str(PROJECT / "tests" / "trainings.py"), str(folder), *names)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one process came to, beside its checkpoints after half of the steps."""
    folder = tmp_path_factory.mktemp("one process")
    for name in FAST:
        torch.save(trainings.run(name, folder / f"{name}.pt"), folder / f"{name}-0.pt")
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes came to."""
    return in_two(tmp_path_factory.mktemp("two processes"), *FAST)


def outcome(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{rank}.pt")


def tensors(state: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors and numbers of a checkpoint, with their places in it."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{path}.{key}")
    elif isinstance(state, list | tuple):
        yield from tensors(dict(enumerate(state)), path)
    elif isinstance(state, Tensor | int | float):
        yield path, torch.as_tensor(state)


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare two outcomes in double precision: losses of each step, weights, statistics, optimizers, random states."""
    for step, terms in found["losses"].items():
        assert terms == pytest.approx(expected["losses"][step], abs=1e-7), step
    state, wanted = dict(tensors(found["state"])), dict(tensors(expected["state"]))
    assert state.keys() == wanted.keys()
    for place, value in wanted.items():
        torch.testing.assert_close(state[place], value, rtol=0, atol=1e-6, msg=lambda text, at=place: f"{at}: {text}")


def assert_same(folder: Path, name: str) -> None:
    """Check that the two processes came to the very same."""
    first, second = (outcome(folder, name, rank) for rank in (0, 1))
    assert first["losses"] == second["losses"]
    state, other = dict(tensors(first["state"])), dict(tensors(second["state"]))
    assert state.keys() == other.keys()
    assert [place for place in state if not torch.equal(state[place], other[place])] == []


@pytest.mark.parametrize("name", FAST)
def test_both_processes_have_the_same_weights_and_losses(together: Path, name: str) -> None:
    assert_same(together, name)


def test_two_processes_come_to_what_one_comes_to(alone: Path, together: Path) -> None:
    found = outcome(together, "texture")
    assert max(found["losses"]) == trainings.STEPS
    assert any("running_var" in place for place, _ in tensors(found["state"]))
    assert_close(found, outcome(alone, "texture"))


def test_so_they_do_in_single_precision(alone: Path, together: Path) -> None:
    found, expected = outcome(together, "shape_single"), outcome(alone, "shape_single")
    last = trainings.STEPS
    assert found["losses"][last] == pytest.approx(expected["losses"][last], abs=1e-4)
    variances = {place: value for place, value in tensors(expected["state"]) if place.endswith("running_var")}
    state = dict(tensors(found["state"]))
    assert len(variances) == 14  # of seven batch norms, and of their copies in the moving average
    for place, value in variances.items():
        torch.testing.assert_close(state[place], value, rtol=0, atol=1e-5)


def test_one_process_goes_on_from_a_checkpoint_of_two(alone: Path, together: Path) -> None:
    resumed = trainings.run("texture", together / "texture.pt")
    assert list(resumed["losses"]) == list(range(trainings.STEPS // 2 + 1, trainings.STEPS + 1))
    assert_close(resumed, outcome(alone, "texture"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(trainings.TRAININGS.keys() - set(FAST)))
def test_other_trainings_come_to_the_same(tmp_path: Path, name: str) -> None:
    in_two(tmp_path, name)
    assert_same(tmp_path, name)
    assert_close(outcome(tmp_path, name), trainings.run(name, tmp_path / "alone.pt"))


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint_of_one(tmp_path: Path) -> None:
    expected = trainings.run("cgn", tmp_path / "cgn.pt")
    in_two(tmp_path, "cgn")
    assert min(outcome(tmp_path, "cgn")["losses"]) == trainings.STEPS // 2 + 1
    assert_close(outcome(tmp_path, "cgn"), expected)


def test_what_processes_say_to_each_other(together: Path) -> None:
    first, second = (torch.load(together / f"agreement-{rank}.pt") for rank in (0, 1))
    whole = torch.arange(6.0).reshape(6, 1)
    factors = torch.rand(6, 1, generator=stream(0, "draws"))
    for rank, report in enumerate((first, second)):
        assert report["rank"] == rank
        assert report["heard"] == "from 0"
        assert report["signal"] == 15
        assert "shared out over 2 processes" in report["refused"]
        assert torch.equal(report["gathered"], whole)
        assert torch.equal(report["mean"], (whole[0::2] + whole[1::2]) / 2)
        assert torch.equal(report["drawn"], (whole * factors)[rank::2])
        assert torch.equal(report["gradient"], factors[rank::2])


def test_alone_nothing_changes() -> None:
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert (distributed.any_of(15), distributed.any_of(None)) == (15, None)
    assert distributed.broadcast("x") == distributed.decide(lambda: "x") == "x"
    records = torch.arange(6)
    assert torch.equal(records[distributed.share(6)], records)
    assert distributed.gather(records) is distributed.mean(records) is records
    assert torch.equal(distributed.as_whole(lambda whole: whole + 1, records), records + 1)
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())
    assert distributed.parallel(network) is network
    assert [type(layer) for layer in network] == [nn.BatchNorm2d, nn.Dropout]
    with distributed.group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")


def test_a_refusal_is_one_alone_too() -> None:
    def refuse() -> None:
        raise InputError("bad input")

    with pytest.raises(InputError, match="bad input"):
        distributed.decide(refuse)


REFUSE = """
import sys
import time
import torch
from skdcgn import cli, distributed
from skdcgn.errors import InputError

def choose():
    time.sleep(1)
    raise InputError("process 0 refuses")

def main():
    if sys.argv[1] == "both":
        time.sleep(distributed.leads())  # the other process is there first
        raise InputError("both refuse")
    with distributed.group(torch.device("cpu")):
        distributed.decide(choose)

cli.entry(main)
"""


@pytest.mark.parametrize(
    ("who", "sentence"), [("first", "process 0 refuses"), pytest.param("both", "both refuse", marks=pytest.mark.slow)]
)
def test_processes_refuse_together_and_say_so_once(tmp_path: Path, who: str, sentence: str) -> None:
    (tmp_path / "refuse.py").write_text(REFUSE)
    done = torchrun(tmp_path, str(tmp_path / "refuse.py"), who)
    assert done.stderr.count(f"error: {sentence}") == 1
    assert done.stderr.count("exitcode  : 2 ") == 2, done.stderr  # torchrun lists the exit codes of all


def test_a_process_that_alone_refuses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.speaks(patience=0.1)
    monkeypatch.setenv("RANK", "0")
    assert cli.speaks()


def test_checkpointed_state_is_that_of_any_process() -> None:
    """What process 0 writes serves the others too: each draws the noise of the whole batch."""
    teacher, states = miniature(stream(0, "test")), []
    whole = next(FreshBatches(teacher, Mechanism.TEXTURE, 4, stream(0, "batches")))
    for rank in (0, 1):
        batches = FreshBatches(teacher, Mechanism.TEXTURE, 4, stream(0, "batches"))
        batches._share = slice(rank, None, 2)
        own = next(batches)
        assert torch.equal(own.labels, whole.labels[rank::2])
        assert torch.equal(own.noise, whole.noise[rank::2])
        torch.testing.assert_close(own.images, whole.images[rank::2])
        states.append(batches.state_dict()["generator"])
    assert torch.equal(*states)


@pytest.mark.slow
def test_torchrun_runs_a_distillation_unchanged(tmp_path: Path) -> None:
    script = ("experiments/imagenet_kd.py", "--profile", "smoke", "--mechanism", "texture", "--distill.steps", "6")
    done = torchrun(tmp_path, *script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("teacher_parameters") == 1  # process 0 alone prints
    store = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (student,) = store.runs("imagenet_kd")
    assert student.status == "FINISHED"
    history = store.client.get_metric_history(student.run_id, "loss/total")
    assert len({metric.step for metric in history}) == len(history)
    assert student.final["l1"] > 0
    assert load_student(store, student.run_id).config.resolution == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "options", "runs"),
    [
        ("train_cgn_mnist", ("--dataset", "digits"), 1),
        ("baseline_mnist", ("--dataset", "digits"), 1),
        ("baseline_cgn_tinygan", (), 5),
    ],
)
def test_torchrun_runs_the_training_of_cgns_unchanged(
    tmp_path: Path, experiment: str, options: tuple[str, ...], runs: int
) -> None:
    done = torchrun(tmp_path, f"experiments/{experiment}.py", "--profile", "smoke", *options)
    assert done.returncode == 0, done.stderr
    store = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = store.runs(experiment)
    assert [run.status for run in made] == ["FINISHED"] * runs
