"""The experiments' scripts: what each of them has, what every command line does, and one run as a user runs it."""

import ast
import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pandas as pd
import pytest
from test_training import environment, script

from experiments import __main__ as suite
from experiments import mnist_kd, presets
from experiments.cases import style_inputs
from skdcgn import cli
from skdcgn.commands.experiments import execution, experiment
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.students import load_student
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import carry_out, create
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import Store, open_store

SHARED = ("__init__", "__main__", "cases", "presets", "searches")
STEMS = sorted(
    path.stem for path in (PROJECT / "experiments").glob("*.py") if not path.stem.startswith(("presets_", *SHARED))
)


@pytest.fixture(params=STEMS)
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Each script."""
    return importlib.import_module(f"experiments.{request.param}")


# --- what every script has ------------------------------------------------------------------------------------------


def test_a_script_has_a_config_for_each_profile_and_a_plan(module: ModuleType) -> None:
    assert list(module.DEFAULTS) == list(presets.PROFILES)
    for profile, config in module.DEFAULTS.items():
        assert config.profile == profile
        assert dataclasses.is_dataclass(config)
        assert cli.parse(module.DEFAULTS, args=["--profile", profile]) == config
    assert module.plan.__annotations__["config"] is type(module.DEFAULTS["smoke"])


def test_a_script_is_short_and_says_how_to_call_it(module: ModuleType) -> None:
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    first, _, rest = module.__doc__.partition("\n")
    assert first[0].isupper()
    assert first.rstrip().endswith((".", "?"))
    stem = Path(module.__file__).stem
    assert f"\n    python experiments/{stem}.py" in rest
    *for_types, main = [each for each in ast.parse(text).body if isinstance(each, ast.If)]
    assert [ast.unparse(each.test) for each in for_types] in ([], ["TYPE_CHECKING"])
    assert ast.unparse(main.test) == "__name__ == '__main__'"
    families = ", families(DEFAULTS)" if hasattr(module, "families") else ""
    assert ast.unparse(main.body) == f"experiment.main(DEFAULTS, plan, __doc__{families})"


def test_a_scripts_numbers_have_the_types_of_their_fields(module: ModuleType) -> None:
    """A config's identity is of its values as text: 1 in a float's place would not be what --field 1 gives."""
    for profile, config in module.DEFAULTS.items():
        for name, hint, value in _fields(config):
            if hint is float or (type(None) in getattr(hint, "__args__", ()) and float in hint.__args__):
                assert value is None or type(value) is float, f"{profile}: {name} = {value!r}"


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint, value


def test_the_suite_has_every_script() -> None:
    names = [entry.name for entry in suite.entries()]
    assert sorted(names) == sorted({*STEMS} - {"fit_miniature"})  # that one makes a file of the package, once
    for entry in suite.entries():
        assert entry.flag in ("", "--dataset", "--datasets")
        assert hasattr(entry.script.DEFAULTS["quick"], entry.flag.removeprefix("--") or "profile")


# --- what every command line does -----------------------------------------------------------------------------------


def _main(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mnist_kd.py", "--profile", "smoke", *options])
    with pytest.raises(SystemExit) as exit_:
        experiment.main(mnist_kd.DEFAULTS, mnist_kd.plan, mnist_kd.__doc__)
    return exit_.value.code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dataset", "digits", "--teacher", "x.pth"), "leave --teacher out"),
        (("--teacher", "missing.pth"), "missing.pth"),
        (("--dataset", "digits", "--runtime.device", "cuda:99"), "give cpu, or auto"),
        (("--loss.kl", "-1"), "kl is -1.0: give a number of 0 or more"),
        (("--dataset", "digits", "--student.resolution", "30"), "multiple of 8"),
        (("--dataset", "digits", "--class-embedding", "missing.npy"), "missing.npy"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    assert _main(monkeypatch, *options) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not store.runs("mnist_kd")  # nothing half-done is left behind


def test_wrong_flag_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(monkeypatch, "--mechanism", "shade") == 2
    assert "shape" in capsys.readouterr().err


def test_help_is_the_docstring(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(monkeypatch, "--help") == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Distill the mechanisms of an MNIST CGN" in words
    assert "--dry-run" in words


def test_dry_run_says_of_each_run_why_it_would_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, "--dataset", "digits", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "train_cgn_mnist: CGN on digits: to run",
        "mnist_kd: shape seed 0: to run",
        "mnist_kd: texture seed 0: to run",
        "mnist_kd: background seed 0: to run",
        "mnist_kd: SKDCGN seed 0: to run",
    ]
    assert store.experiments() == ["Default"]


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


def test_summary_has_means_over_seeds_with_their_interval_and_names_runs_without() -> None:
    rows = [{"mechanism": "shape", "seed": seed, "run_id": "x", "iou": iou} for seed, iou in ((0, 0.5), (1, 0.7))]
    rows.append({"mechanism": "texture", "seed": 0, "run_id": "y", "l1": 0.25})
    rows.append({"mechanism": "", "seed": 0, "run_id": "z"})
    lines = execution.summary(pd.DataFrame(rows).set_index(["mechanism", "seed"]), ("iou", "l1", "none")).splitlines()
    assert lines[0].split() == ["iou", "l1"]
    shape, texture, composed = lines[2:]
    assert composed == "seed 0: runs:/z"
    assert "0.6 [-0.6706, 1.871], n=2" in shape  # t(0.975, 1) = 12.706 times the standard error 0.1
    assert texture.split() == ["texture", "0.25,", "n=1"]


# --- as a user runs it ----------------------------------------------------------------------------------------------


def _run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = script("mnist_kd", "--profile", "smoke", "--runtime.threads", "1", *options)
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False)


def test_mnist_kd_on_digits_without_data_or_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    first = _run(tmp_path, "--dataset", "digits")
    assert first.returncode == 0, first.stderr
    store = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = store.runs("mnist_kd")
    students = {run.tags["mechanism"]: run for run in runs if run.tags["kind"] == "student"}
    assert set(students) == set(Mechanism)
    for run in runs:
        assert run.status == "FINISHED"
        assert run.tags["stand_in"] == "true"
    for run in students.values():
        assert run.final["parameters"] < run.final["teacher_parameters"]
        assert 0 < run.final["l1"] < 2
        assert run.final["frechet"] > 0
        assert load_student(store, run.run_id).config.resolution == 32
    assert 0 <= students["shape"].final["iou"] <= 1
    (composed,) = [run for run in runs if run.tags["kind"] == "skdcgn"]
    assert all(load_student(store, composed.run_id, mechanism.value) for mechanism in Mechanism)
    assert store.load_tensors(composed.run_id, "counterfactuals")["student"].shape[1:] == (3, 32, 32)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert _main(monkeypatch, "--dataset", "digits", "--runtime.threads", "1") == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 5  # three students, all together, their teacher
    assert len(store.runs("mnist_kd")) == 4


def test_a_student_that_was_killed_before_its_first_step_keeps_what_it_was_then(digits: Store) -> None:
    plan = mnist_kd.plan(replace(mnist_kd.DEFAULTS["smoke"], dataset="digits", mechanism="shape"))
    (case,) = plan.cases
    run = create(case, digits, Lease.take())
    digits.set_status(run.run_id, "KILLED")
    carry_out(plan, digits)
    assert digits.record(run.run_id).status == "FINISHED"
    assert "heldout_0000000.safetensors" in digits.files(run.run_id)


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["double_colored", "wildlife"])
def test_mnist_kd_on_the_authors_teacher(
    data_dir: Path, store: Store, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    assert _main(monkeypatch, "--dataset", dataset, "--mechanism", "shape", "--runtime.threads", "1") == 0
    (run,) = store.runs("mnist_kd")
    assert run.tags["stand_in"] == "false"
    assert dataset in run.tags["teacher"]
    assert {"loss/feature", "loss/kl", "loss/discriminator", "final/iou", "final/seen_iou"} <= set(run.metrics)


@pytest.mark.parametrize("name", ["train_cgn_mnist", "baseline_mnist", "ood_robustness"])
def test_missing_mnist_is_told_before_anything_runs(
    name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    script = importlib.import_module(f"experiments.{name}")
    with pytest.raises(InputError, match="MNIST cannot be downloaded"):
        script.plan(script.DEFAULTS["smoke"])
    assert store.experiments() == ["Default"]


def test_vgg16_counts_for_a_cgn_that_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    assert style_inputs("random") == style_inputs("none") == {}
    assert style_inputs("vgg16") == {"perceptual": "none"}
    monkeypatch.setattr("skdcgn.data.weights.locate", lambda name: tmp_path / f"{name}.pth")
    assert style_inputs("vgg16") == {"perceptual": "vgg16.pth"}


def test_cases_are_of_the_recipes_whoever_plans_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that is started is the module `__main__`, and another one to the suite: nothing in it may count."""
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    for entry in suite.entries():
        config = entry.script.DEFAULTS["smoke"]
        if entry.flag:
            name = entry.flag.removeprefix("--")
            config = replace(config, **{name: ("digits",) if name == "datasets" else "digits"})
        plan = entry.script.plan(config)
        cases = (
            plan.everything() if hasattr(plan, "everything") else [*plan.needs.values(), *plan.confirmation({}).cases]
        )
        assert cases
        for case in cases:
            rooms = {case.make.__module__, type(case.config).__module__}
            assert all(room.startswith("skdcgn.recipes.") for room in rooms), f"{case}: {rooms}"
