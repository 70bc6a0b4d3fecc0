"""run_all.sh, and the suite that it runs: set-up, plan, failures, interruption."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trivial import Config as RunConfig
from trivial import carry_out_one, case

from experiments import __main__ as program
from skdcgn import cli
from skdcgn.commands import suite
from skdcgn.commands.suite import Config, Datasets, Entry
from skdcgn.errors import InputError, Interrupted
from skdcgn.runs import steps
from skdcgn.runs.loop import Interruption
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.steps import Step, run_steps, total_seconds
from skdcgn.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]

FAKE_PYTHON = """#!/bin/sh
# Stands for a Python: notes how it is called; makes a virtual environment whose Python is a copy of itself.
case "$*" in
  "-c "*) exit 0 ;;
  *"-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
echo "$*" >>"$LOG"
case "$*" in *"${FAILING:-nothing}"*) exit "${CODE:-1}" ;; esac
"""


# --- steps ----------------------------------------------------------------------------------------------------------


def step(name: str, body: str = "", after: tuple[str, ...] = (), seconds: float = 120.0) -> Step:
    """Return a step that runs a few lines of Python."""
    return Step(name, (sys.executable, "-c", body), frozenset(after), seconds)


def test_duration_of_steps_side_by_side() -> None:
    first, second, third = step("a"), step("b"), step("c", after=("a",))  # two minutes each
    assert total_seconds([], 2) == 0
    assert total_seconds([first, second, third], 1) == 360
    assert total_seconds([first, second, third], 2) == 240
    assert total_seconds([first, second], 2) == 120
    assert total_seconds([third], 2) == 120  # what it comes after is not in the plan
    assert total_seconds([first, third, second, step("d")], 2) == 240  # while the third waits, others run
    assert total_seconds([step("short", seconds=1), step("short too", seconds=1), step("long", seconds=10)], 2) == 10


def test_steps_that_fail_do_not_stop_the_others() -> None:
    broken, killed = step("broken", "raise SystemExit(3)"), step("killed", "import os; os.kill(os.getpid(), 9)")
    results = run_steps([broken, killed, step("sound", after=("broken",))], 1, Interruption())
    assert {result.name: (result.status, result.failed) for result in results} == {
        "broken": ("failed (exit code 3)", True),
        "killed": ("failed (exit code 137)", True),
        "sound": ("done", False),
    }
    assert all(result.seconds > 0 for result in results)


MEETING = """
import pathlib, sys, time
folder, me, other = pathlib.Path({folder!r}), {me!r}, {other!r}
(folder / me).touch()
for _ in range(400):
    if (folder / other).exists():
        break
    time.sleep(0.05)
else:
    sys.exit(4)
time.sleep(0.3)
(folder / f"{{me}} ended").touch()
print("met", other)
"""
"""A step that ends well only if another one runs at the same time."""


def test_steps_run_side_by_side_and_after_what_they_use(tmp_path: Path) -> None:
    one, two = (
        step(me, MEETING.format(folder=str(tmp_path), me=me, other=other))
        for me, other in (("one", "two"), ("two", "one"))
    )
    late = f"""
import pathlib, sys
assert pathlib.Path({str(tmp_path / "one ended")!r}).exists()
print("x")
sys.exit(5)
"""
    started: list[str] = []
    plan = [one, step("three", late, after=("one", "no step of this plan")), two]
    logs = tmp_path / "logs"
    results = run_steps(plan, 2, Interruption(), logs, lambda step, log: started.append(step.name))
    assert {result.name: result.status for result in results} == {
        "one": "done",
        "two": "done",
        "three": "failed (exit code 5)",
    }
    assert started[2] == "three"
    assert (logs / "one.log").read_text() == "met two\n"
    assert (logs / "three.log").read_text() == "x\n"
    assert {result.name: result.log for result in results}["two"] == logs / "two.log"


def test_the_longest_step_starts_first() -> None:
    started: list[str] = []
    run_steps(
        [step("short", seconds=1), step("long", seconds=9), step("middle", seconds=5)],
        1,
        Interruption(),
        started=lambda step, log: started.append(step.name),
    )
    assert started == ["long", "middle", "short"]


STOPPING = """
import pathlib, signal, time
def stop(signum, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second signal would lose the checkpoint
    time.sleep(0.5)
    pathlib.Path({checkpoint!r}).touch()
    raise SystemExit(130)
signal.signal(signal.SIGINT, stop)
pathlib.Path({started!r}).touch()
time.sleep(60)
"""
"""An experiment that writes a checkpoint when it is interrupted."""


def press_ctrl_c_when(*files: Path) -> None:
    """Send this process a SIGINT as soon as there is a file, for one file after the other."""

    def press() -> None:
        for file in files:
            while not file.exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_an_interruption_lets_running_steps_end_and_starts_no_other(tmp_path: Path) -> None:
    started, checkpoint = tmp_path / "started", tmp_path / "checkpoint"
    training = STOPPING.format(started=str(started), checkpoint=str(checkpoint))
    press_ctrl_c_when(started)
    with Interruption() as interruption:
        results = run_steps([step("first", training, seconds=200), step("second")], 1, interruption)
    assert checkpoint.exists()
    assert [(result.name, result.status) for result in results] == [("first", "interrupted"), ("second", "not run")]
    assert interruption.signum == signal.SIGINT


def test_a_second_interruption_does_not_wait_for_checkpoints(tmp_path: Path) -> None:
    started, noted, checkpoint = (tmp_path / name for name in ("started", "noted", "checkpoint"))
    slow = STOPPING.format(started=str(started), checkpoint=str(checkpoint))
    slow = slow.replace("time.sleep(0.5)", f"pathlib.Path({str(noted)!r}).touch(); time.sleep(60)")
    press_ctrl_c_when(started, noted)
    with Interruption() as interruption:
        results = run_steps([step("first", slow, seconds=200), step("second")], 1, interruption)
    assert noted.exists()
    assert not checkpoint.exists()
    assert [(result.name, result.status) for result in results] == [("first", "interrupted"), ("second", "not run")]


# --- the suite ------------------------------------------------------------------------------------------------------


class Scripts:
    """Stands for the clone: experiments of a few lines each, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "experiments").mkdir()

    def add(self, name: str, body: str = "", cases: tuple[Case, ...] = (), **parts: Any) -> Entry:
        """Write a script, and return its entry: its cases make their runs elsewhere, in other words never."""
        (self.folder / "experiments" / f"{name}.py").write_text(body)
        planned = cases or (Case(name, "run", RunConfig(), case().make, {"seed": 0}, seconds=120.0),)
        defaults = dict.fromkeys(("smoke", "quick", "full", "paper"), RunConfig())
        return Entry(name, SimpleNamespace(DEFAULTS=defaults, plan=lambda config: Plan(planned, ("seed",))), **parts)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    folder = tmp_path / "clone"
    folder.mkdir()
    monkeypatch.setattr(steps, "PROJECT", folder)
    return Scripts(folder)


def run_suite(entries: list[Entry], **config: Any) -> None:
    """Run a suite without its report."""
    suite.run(
        entries, Config(**{"dataset": "digits", "jobs": 1, "only": tuple(each.name for each in entries), **config})
    )


def test_dry_run_shows_the_plan_and_runs_nothing(
    scripts: Scripts, tmp_path: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    touching = f"open({str(tmp_path / 'ran')!r}, 'w')"
    done = carry_out_one(store, case(seconds=600.0))
    entries = [scripts.add("one", touching), scripts.add("two", touching, (case(), case("new", RunConfig(weight=3.0))))]
    run_suite(entries, profile="full", dry_run=True, only=())
    output = capfd.readouterr().out
    assert "data: digits, as --dataset says" in output
    assert "plan: 3 steps at --profile full, about 3 min on CPU" in output
    assert "\none: about 2 min, python experiments/one.py --profile full\n  one: run: to run\n" in output
    assert f"  trivial: run: finished (run {done.run_id[:8]})\n  trivial: new: to run\n" in output
    assert "\nreport: about 1 min, python -m analysis.report.render\n" in output
    assert not (tmp_path / "ran").exists()


def test_only_with_an_unknown_name_lists_the_known_ones(scripts: Scripts) -> None:
    with pytest.raises(InputError, match=r"'table_9': --only takes one, two, report\."):
        run_suite([scripts.add("one"), scripts.add("two")], only=("one", "table_9"))
    with pytest.raises(InputError, match="--jobs -1"):
        Config(jobs=-1)


def test_an_experiment_without_its_data_fails_alone(
    scripts: Scripts, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its plan cannot be made; the process that runs it says so, as it would on its own."""

    def plan(_: RunConfig) -> Plan:
        raise InputError("the weights are not on this machine.")

    entries = [scripts.add("without", "raise SystemExit(2)"), scripts.add("sound")]
    entries[0].script.plan = plan
    run_suite(entries, dry_run=True)
    assert "\n  error: the weights are not on this machine.\n" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        run_suite(entries)
    output = capfd.readouterr().out
    assert "without: failed (exit code 2)" in output
    assert "sound: done" in output


def test_a_step_comes_after_those_whose_runs_it_needs(
    scripts: Scripts, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would wait for one that needs longer, were it not first in the list."""
    teacher = Case("teachers", "run", RunConfig(), case().make, {"seed": 0})
    student = Case("students", "run", RunConfig(), case().make, {"seed": 0}, {"teacher": teacher}, seconds=900.0)
    entries = [scripts.add("students", cases=(student,)), scripts.add("teachers", cases=(teacher,))]
    run_suite(entries)
    output = capfd.readouterr().out
    assert output.index("teachers: done") < output.index("[1/2] students ... about 15 min")


def test_data_sets_are_chosen_by_what_an_experiment_needs(
    scripts: Scripts, store: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "choose_datasets", lambda _: Datasets("double_colored", "digits", "because"))
    configs: list[RunConfig] = []
    entries = [
        scripts.add("teacher_only", flag="--name"),
        scripts.add("real_images", flag="--name", real=True),
        scripts.add("another"),
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


def test_a_failing_experiment_does_not_hide_the_others(
    scripts: Scripts, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = [
        scripts.add("broken", "raise SystemExit(3)"),
        scripts.add("sound", "import sys; print(*sys.argv[1:], 'speaks')"),
    ]
    with pytest.raises(SystemExit) as exit_:
        run_suite(entries)
    assert exit_.value.code == 1
    output = capfd.readouterr().out
    assert "plan: 2 steps at --profile quick, about 4 min on CPU" in output
    assert re.search(r"\[1/2\] broken \.\.\. about 2 min\n", output)
    assert "--profile quick speaks" in output
    assert re.search(r"broken +\d\d:\d\d +failed \(exit code 3\)", output)
    assert re.search(r"sound +\d\d:\d\d +done", output)
    assert f"ui --backend-store-uri {store.uri} --workers 1" in output


def test_steps_side_by_side_write_to_logs_and_a_failed_one_shows_its_end(
    scripts: Scripts, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = [scripts.add("sound", "print('works')"), scripts.add("broken", "print('a\\nb'); raise SystemExit(5)")]
    with pytest.raises(SystemExit):
        run_suite(entries, jobs=2)
    output = capfd.readouterr().out
    log = store.folder / "logs" / "sound.log"
    assert "2 steps at --profile quick, 2 at a time, about 2 min" in output
    assert f"[1/2] sound ... about 2 min (log: {log})" in output
    assert re.search(r"broken: failed \(exit code 5\), \d\d:\d\d\n +\| a\n +\| b\n", output)
    assert "works" not in output
    assert log.read_text() == "works\n"


def test_the_report_comes_last_and_can_come_alone(
    scripts: Scripts, store: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = scripts.folder / "analysis" / "report"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "render.py").write_text("print('a report')")
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it names the real clone
    quick = scripts.add("short", "print('short')", (case(seconds=1.0),))
    run_suite([quick], only=())
    output = capfd.readouterr().out
    assert output.index("short: done") < output.index("[2/2] report") < output.index("a report")
    run_suite([quick], only=("report",))
    output = capfd.readouterr().out
    assert "plan: 1 step at" in output
    assert "short" not in output


def test_an_interruption_ends_the_experiment_cleanly_and_the_suite(
    scripts: Scripts, tmp_path: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    started, checkpoint = tmp_path / "started", tmp_path / "checkpoint"
    training = STOPPING.format(started=str(started), checkpoint=str(checkpoint))
    entries = [scripts.add("first", training), scripts.add("second")]
    press_ctrl_c_when(started)
    with pytest.raises(Interrupted) as interrupted:
        run_suite(entries)
    assert interrupted.value.signum == signal.SIGINT  # cli.entry makes it exit code 130
    assert checkpoint.exists()
    output = capfd.readouterr().out
    assert re.search(r"first +\d\d:\d\d +interrupted", output)
    assert re.search(r"second +not run", output)


def test_the_whole_suite_has_a_plan_where_nothing_is_to_be_had(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    suite.run(program.entries(), Config(dry_run=True))
    output = capfd.readouterr().out
    for entry in program.entries():
        assert re.search(rf"\n{entry.name}: .*, python experiments/{entry.name}.py --profile quick", output)
        assert (ROOT / "experiments" / f"{entry.name}.py").exists()
    assert "to run again" not in output
    assert output.rindex("\nreport: ") > output.index("\nmnist_kd: ")
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
