"""Every experiment at smoke scale, run as a user runs it, with its headline metric checked."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_training import PROJECT, _environment

from experiments import mnist_kd
from skdcgn import cli
from skdcgn.mechanisms import Mechanism
from skdcgn.runs import store as run_store


def _run(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "experiments" / f"{script}.py"), *options]
    return subprocess.run(command, env=_environment(folder), capture_output=True, text=True, check=False)


def test_mnist_kd_on_digits_without_data_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    options = ("--profile", "smoke", "--dataset", "digits", "--runtime.threads", "1")
    first = _run("mnist_kd", tmp_path, *options)
    assert first.returncode == 0, first.stderr
    store = run_store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    children = [run for run in store.search("mnist_kd") if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mechanism"] for run in children} == set(Mechanism)
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.tags["stand_in"] == "true"
        assert run.data.metrics["final/parameters"] < run.data.metrics["final/teacher_parameters"]
        assert 0 < run.data.metrics["final/l1"] < 2
        assert run.data.metrics["final/frechet"] > 0
        assert store.load_student(run.info.run_id).config.resolution == 32
    (shape,) = [run for run in children if run.data.tags["mechanism"] == "shape"]
    assert 0 <= shape.data.metrics["final/iou"] <= 1

    again = _run("mnist_kd", tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped") == 4  # three students and their teacher
    assert len(store.search("mnist_kd")) == 4


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["double_colored", "wildlife"])
def test_mnist_kd_on_the_authors_teacher(data_dir: Path, tmp_path: Path, dataset: str) -> None:
    options = ("--profile", "smoke", "--dataset", dataset, "--mechanism", "shape", "--runtime.threads", "1")
    done = _run("mnist_kd", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    store = run_store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (child,) = [run for run in store.search("mnist_kd") if "mlflow.parentRunId" in run.data.tags]
    assert child.data.tags["stand_in"] == "false"
    assert dataset in child.data.tags["teacher"]
    assert {"loss/feature", "loss/kl", "loss/discriminator", "final/iou", "final/seen_iou"} <= set(child.data.metrics)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dataset", "digits", "--teacher", "x.pth"), "leave --teacher out"),
        (("--teacher", "missing.pth"), "missing.pth"),
        (("--runtime.device", "cuda:99"), "try cpu or auto"),
        (("--loss.kl", "-1"), "negative"),
        (("--student.resolution", "30"), "multiple of 8"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    store: run_store.Store, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    arguments = ["--profile", "smoke", *options]
    with pytest.raises(SystemExit) as exit_:
        cli.entry(lambda: mnist_kd.main(cli.parse(mnist_kd.DEFAULTS, args=arguments)))
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not store.search("mnist_kd")  # nothing half-done is left behind


def test_wrong_flag_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.parse(mnist_kd.DEFAULTS, args=["--mechanism", "shade"])
    assert exit_.value.code == 2
    assert "shape" in capsys.readouterr().err


def test_profile_sets_the_defaults_and_flags_override_them() -> None:
    assert cli.parse(mnist_kd.DEFAULTS, args=[]) == mnist_kd.DEFAULTS["quick"]
    for arguments in (["--profile", "paper", "--loss.kl", "0.5"], ["--loss.kl=0.5", "--profile=paper"]):
        config = cli.parse(mnist_kd.DEFAULTS, args=arguments)
        assert config.student == mnist_kd.DEFAULTS["paper"].student
        assert config.loss.kl == 0.5


def test_a_reader_that_leaves_early_ends_a_script_quietly() -> None:
    program = "from skdcgn import cli\ndef main():\n    raise BrokenPipeError\ncli.entry(main)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + 13  # as the shell reports a program that SIGPIPE ended
    assert ended.stderr == ""
