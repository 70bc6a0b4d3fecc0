"""run_all.sh, and the suite that it runs: set-up, plan, failures, interruption."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client
from trivial import Config as RunConfig
from trivial import carry_out_one, case
from walks import FAILING, Walk, walk

from experiments import __main__ as program
from skdcgn import cli
from skdcgn.commands.experiments import suite
from skdcgn.commands.experiments.suite import Datasets, Entry
from skdcgn.configs.suite import Config
from skdcgn.errors import InputError
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import create
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = Lease("key", "another-host", "another machine", 1, "2", every=10.0)

FAKE_PYTHON = """#!/bin/sh
# Stands for a Python: notes how it is called; makes a virtual environment whose Python is a copy of itself.
case "$*" in
  "-c "*) exit 0 ;;
  *"-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
echo "$*" >>"$LOG"
case "$*" in *"${FAILING:-nothing}"*) exit "${CODE:-1}" ;; esac
"""


# --- the suite ------------------------------------------------------------------------------------------------------

Suite = Callable[..., None]


@pytest.fixture
def run_suite(client: Client, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Runs a suite on a worker of this process, without its report."""
    monkeypatch.setattr(suite, "connect", lambda where, store: contextlib.nullcontext(client))
    monkeypatch.setattr(Walk, "pause", 0.0)

    def run(entries: list[Entry], **config: Any) -> None:
        only = tuple(entry.name for entry in entries)
        suite.run(entries, Config(**{"dataset": "digits", "only": only, **config}))

    return run


def script(name: str, *cases: Case, **parts: Any) -> Entry:
    """Return the entry of an experiment with these cases, or a walk of a minute."""
    planned = cases or (replace(walk(0, seconds=60.0), experiment=name),)
    defaults = dict.fromkeys(("smoke", "quick", "full", "paper"), RunConfig())
    return Entry(name, SimpleNamespace(DEFAULTS=defaults, plan=lambda config: Plan(planned, ("seed",))), **parts)


def test_dry_run_shows_the_plan_and_runs_nothing(
    store: Store, run_suite: Suite, capfd: pytest.CaptureFixture[str]
) -> None:
    done = carry_out_one(store, case(seconds=600.0))
    entries = [script("one"), script("two", case(), case("new", RunConfig(weight=3.0)))]
    run_suite(entries, profile="full", dry_run=True, only=(), jobs=2)
    output = capfd.readouterr().out
    assert "data: digits, as --dataset says" in output
    assert "\none: python experiments/one.py --profile full\n  one: walk 0: to run\n" in output
    assert f"  trivial: run: finished (run {done.run_id[:8]})\n  trivial: new: to run\n" in output
    assert output.endswith("\n2 at a time, about 1 min. This was a dry run: nothing was run.\n")
    assert store.experiments() == ["Default", "trivial"]


def test_only_with_an_unknown_name_lists_the_known_ones(run_suite: Suite) -> None:
    with pytest.raises(InputError, match=r"'table_9': --only takes one, two, report\."):
        run_suite([script("one"), script("two")], only=("one", "table_9"))
    with pytest.raises(InputError, match="jobs is -1"):
        run_suite([script("one")], jobs=-1)


def test_an_experiment_without_its_data_fails_alone(
    store: Store, run_suite: Suite, capfd: pytest.CaptureFixture[str]
) -> None:
    def plan(_: RunConfig) -> Plan:
        raise InputError("the weights are not on this machine.")

    entries = [script("without"), script("sound")]
    entries[0].script.plan = plan
    run_suite(entries, dry_run=True)
    assert "\n  error: the weights are not on this machine.\n" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run_suite(entries)
    assert ended.value.code == 1
    output = capfd.readouterr().out
    assert "\nwithout cannot run: the weights are not on this machine.\n" in output
    assert "\n  sound  1 done\n" in output


def test_data_sets_are_chosen_by_what_an_experiment_needs(
    store: Store, run_suite: Suite, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "choose_datasets", lambda _: Datasets("double_colored", "digits", "because"))
    configs: list[RunConfig] = []
    entries = [
        script("teacher_only", flag="--name"),
        script("real_images", flag="--name", real=True),
        script("another"),
    ]
    for entry in entries:
        plan = entry.script.plan
        entry.script.plan = lambda config, plan=plan: configs.append(config) or plan(config)
    run_suite(entries, dry_run=True, dataset="auto")
    output = capfd.readouterr().out
    assert "python experiments/teacher_only.py --profile quick --name double_colored\n" in output
    assert "python experiments/real_images.py --profile quick --name digits\n" in output
    assert "python experiments/another.py --profile quick\n" in output
    assert [config.name for config in configs] == ["double_colored", "digits", None]


def test_the_package_and_the_digits_serve_where_nothing_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    distilled, real, reason = suite.choose_datasets("auto")
    assert (distilled, real) == ("double_colored", "digits")
    assert "teacher in the package" in reason
    assert "SKDCGN_OFFLINE is set" in reason
    assert "\n" not in reason
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path / "mistyped"))
    with pytest.raises(InputError, match="mistyped"):
        suite.choose_datasets("auto")
    assert suite.choose_datasets("digits")[:2] == ("digits", "digits")


@pytest.mark.parametrize("damaged", ["cgn/cgn_double_colored_mnist.pth", "MNIST/raw/train-images-idx3-ubyte"])
def test_damaged_files_of_the_user_end_the_suite_and_lead_to_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(tmp_path))
    file = tmp_path / damaged
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a file")
    with pytest.raises(SystemExit) as exit_:
        cli.entry(lambda: suite.choose_datasets("auto"))
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert "replace it" in line


@pytest.mark.data
def test_the_real_teacher_is_taken_where_it_is(data_dir: Path) -> None:
    distilled, real, reason = suite.choose_datasets("auto")
    assert distilled == real == "double_colored"
    assert str(data_dir) in reason


def test_a_failing_run_does_not_hide_the_others(
    store: Store, run_suite: Suite, capfd: pytest.CaptureFixture[str]
) -> None:
    failing = walk(FAILING)
    entries = [script("walks", failing, walk(1, needs={"start": failing}), walk(2)), script("sound")]
    with pytest.raises(SystemExit) as ended:
        run_suite(entries)
    assert ended.value.code == 1
    output = capfd.readouterr().out
    assert re.search(r"\n  walks  (1 done, 1 failed, 1 not run|.*)\n  sound  1 done\n", output)
    assert {"1 done", "1 failed", "1 not run"} == set(re.search(r"\n  walks  (.*)\n", output)[1].split(", "))
    assert re.search(r"\n  failed: walks: walk 99: ValueError: this way is closed \(log: .*\.log\)\n", output)
    assert f"ui --backend-store-uri {store.uri} --workers 1" in output


def test_the_report_comes_last_and_can_come_alone(
    tmp_path: Path,
    store: Store,
    run_suite: Suite,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path / "analysis" / "report"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "render.py").write_text("print('a report')")
    monkeypatch.setattr(suite, "PROJECT", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it names the real clone
    short = script("short")
    run_suite([short], only=())
    output = capfd.readouterr().out
    assert output.index("report ...") < output.index("a report") < output.index("  short  1 done")
    run_suite([short], only=("report",))
    output = capfd.readouterr().out
    assert "a report" in output
    assert "short" not in output
    (package / "render.py").write_text("raise SystemExit(1)")
    with pytest.raises(SystemExit):
        run_suite([short], only=("report",))


def test_status_says_who_is_at_which_run(store: Store, run_suite: Suite, capfd: pytest.CaptureFixture[str]) -> None:
    run_suite([script("walks", walk(0))])
    create(walk(1), store, ELSEWHERE)
    capfd.readouterr()
    entries = [script("walks", walk(0), walk(1), walk(2)), script("other")]
    suite.status(entries, Config(dataset="digits"))
    assert capfd.readouterr().out == (
        "data: digits, as --dataset says\n"
        "walks    1 of   3 runs done\n"
        "       running: walk 1, process 1 on another-host\n"
        "other    0 of   1 runs done\n"
    )


def test_the_whole_suite_has_a_plan_where_nothing_is_to_be_had(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    suite.run(program.entries(), Config(dry_run=True))
    output = capfd.readouterr().out
    for entry in program.entries():
        assert re.search(rf"\n{entry.name}: python experiments/{entry.name}.py --profile quick", output)
        assert (ROOT / "experiments" / f"{entry.name}.py").exists()
    assert "to run again" not in output
    assert len(store.experiments()) == 1


# --- run_all.sh ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in a path with spaces: run_all.sh and what it reads."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("run_all.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The folder of a PATH on which there is neither Python nor conda."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "cmp", "cp", "dirname", "mkdir", "mv", "rm", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def add_program(tools: Path, name: str, text: str = FAKE_PYTHON) -> Path:
    path = tools / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_all(clone: Path, tools: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(tools), "LOG": str(tools / "log"), **variables}
    command = [str(clone / "run_all.sh"), *arguments]
    return subprocess.run(command, cwd=tools, env=environment, capture_output=True, text=True, check=False)


def calls(tools: Path) -> list[str]:
    """Return what the fake Pythons were called with since the last time."""
    log = tools / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize("name", ["run_all.sh", ".ci/run"])
def test_shell_scripts_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_help_needs_no_set_up(clone: Path, tools: Path) -> None:
    shown = run_all(clone, tools, "--help")
    assert shown.returncode == 0
    for word in ("--profile", "--only", "--dry-run", "test", "SKDCGN_PYTHON", "SKDCGN_DATA_DIR"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--profil", "quick"], "'--profil'"),
        (["--profile", "huge"], "smoke, quick, full or paper"),
        (["--profile"], "--profile needs a name"),
        (["--dataset=cifar"], "auto, double_colored or digits"),
        (["--jobs", "many"], "--jobs needs a number"),
        (["--jobs="], "--jobs needs a number"),
        (["--scheduler"], "--scheduler needs the address"),
        (["status", "--jobs", "many"], "--jobs needs a number"),
        (["--only"], "--only needs the name"),
        (["--only", "--dry-run"], "--only needs the name"),
        (["smoke"], "'smoke'"),
    ],
)
def test_bad_usage_is_one_sentence_before_any_set_up(clone: Path, tools: Path, arguments: list[str], hint: str) -> None:
    refused = run_all(clone, tools, *arguments)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\.\n", refused.stderr)
    assert hint in refused.stderr
    assert not (clone / ".venv").exists()


def test_set_up_is_done_once_and_again_after_a_change(clone: Path, tools: Path) -> None:
    add_program(tools, "python3.11")
    arguments = ["--profile", "smoke", "--only", "mnist_kd", "report", "--dry-run"]
    suite_call = f"-m experiments {' '.join(arguments)}"
    pip_call = "-m pip install --disable-pip-version-check -e .[dev]"
    assert run_all(clone, tools, *arguments).returncode == 0
    assert calls(tools) == ["-m venv --clear .venv", pip_call, suite_call]
    assert run_all(clone, tools, *arguments).returncode == 0
    assert calls(tools) == [suite_call]
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# another pin\n")
    run_all(clone, tools, *arguments)
    assert calls(tools) == [pip_call, suite_call]
    moved = clone.rename(clone.with_name("moved clone"))
    run_all(moved, tools, *arguments)
    assert calls(tools) == [pip_call, suite_call]


def test_an_unfinished_installation_is_not_taken_for_complete(clone: Path, tools: Path) -> None:
    add_program(tools, "python3")
    broken = run_all(clone, tools, FAILING="pip install")
    assert broken.returncode == 1
    assert re.search(r"error: the dependencies could not be installed", broken.stderr)
    calls(tools)
    assert run_all(clone, tools).returncode == 0
    assert [call.split()[1] for call in calls(tools)] == ["pip", "experiments"]


def test_conda_serves_where_there_is_no_python(clone: Path, tools: Path) -> None:
    prefix = clone / ".venv"
    python = add_program(tools, "what-conda-installs")
    conda = f'#!/bin/sh\necho "conda $*" >>"$LOG"; mkdir -p "{prefix}/bin"; cp "{python}" "{prefix}/bin/python"\n'
    add_program(tools, "conda", conda)
    assert run_all(clone, tools).returncode == 0
    created, pip, _ = calls(tools)
    assert created == f"conda create --yes --prefix {prefix} --channel conda-forge python=3.11 pip"
    assert pip.startswith("-m pip install")


def test_without_python_and_conda_one_sentence_says_what_to_install(clone: Path, tools: Path) -> None:
    refused = run_all(clone, tools)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: [^\n]*install Python 3\.11[^\n]*\.\n", refused.stderr)


def test_an_interpreter_of_the_users_is_used_as_it_is(clone: Path, tools: Path) -> None:
    add_program(tools, "mine")
    assert run_all(clone, tools, SKDCGN_PYTHON="./mine").returncode == 0
    assert calls(tools) == ["-m experiments"]
    assert not (clone / ".venv").exists()
    refused = run_all(clone, tools, SKDCGN_PYTHON="./missing")
    assert refused.returncode == 2
    assert re.fullmatch(r"error: SKDCGN_PYTHON is [^\n]+\n", refused.stderr)


@pytest.mark.parametrize(
    ("failing", "code", "expected"), [("nothing", 1, 0), ("-m pytest", 5, 5), ("-m ruff format", 1, 1)]
)
def test_the_tests_exit_code_is_pytests(clone: Path, tools: Path, failing: str, code: int, expected: int) -> None:
    add_program(tools, "mine")
    tested = run_all(clone, tools, "test", "-m", "slow", SKDCGN_PYTHON="mine", FAILING=failing, CODE=str(code))
    assert tested.returncode == expected
    *style, tests = calls(tools)
    linters = ["-m ruff check .", "-m ruff format --check .", "-m codespell_lib"]
    assert style == (linters[:2] if failing == "-m ruff format" else linters)
    assert tests == "-m pytest -m slow"


def test_relative_folders_are_the_callers(clone: Path, tools: Path) -> None:
    add_program(tools, "mine", FAKE_PYTHON + 'echo "$SKDCGN_DATA_DIR|$PYTHONPATH|$PWD" >>"$LOG"\n')
    run_all(clone, tools, SKDCGN_PYTHON="mine", SKDCGN_DATA_DIR="my data")
    assert calls(tools)[-1] == f"{tools}/my data|{clone}|{clone}"


def test_conda_and_run_all_install_the_same_thing() -> None:
    (pip_line,) = re.findall(r"^ +- (-e .+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    (python,) = re.findall(r"^ +- (python=.+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    text = (ROOT / "run_all.sh").read_text()
    (installed,) = re.findall(r"-m pip install --disable-pip-version-check (-e \S+)", text)
    assert installed.replace('"', "") == pip_line == "-e .[dev]"
    assert f"--channel conda-forge {python} pip" in text
