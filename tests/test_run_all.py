"""run_all.sh, and the suite that it runs: set-up, plan, failures, interruption."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from experiments import __main__ as suite
from skdcgn.errors import InputError, Interrupted
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import Interruption

ROOT = Path(__file__).resolve().parents[1]
DIGITS = suite.Datasets("digits", "digits", "because")
ESTIMATES = dict.fromkeys(get_args(suite.Profile), suite.Estimate(1, 2.0))

FAKE_PYTHON = """#!/bin/sh
# Stands for a Python: notes how it is called; makes a virtual environment whose Python is a copy of itself.
case "$*" in
  "-c "*) exit 0 ;;
  *"-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
echo "$*" >>"$LOG"
case "$*" in *"${FAILING:-nothing}"*) exit "${CODE:-1}" ;; esac
"""


class FolderStore:
    """Stands for the run store: a file for each finished run, in a folder for each experiment."""

    uri = "http://tracking.example:5000"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def search(self, experiment: str, _filter_string: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=path.name)) for path in (self.folder / experiment).glob("*")
        ]


def entry(name: str, *arguments: str, after: tuple[str, ...] = ()) -> suite.Entry:
    return suite.Entry(name, arguments, ESTIMATES, after)


def script(folder: Path, name: str, body: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(body)
    return str(path)


# --- the plan -----------------------------------------------------------------------------------------------------


def test_every_script_is_in_the_plan() -> None:
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__", "__main__"}
    scripts -= {"fit_miniature"}  # makes a file of the package, once
    assert {step.name for step in suite.PLAN} - {"report"} == scripts


@pytest.mark.parametrize("profile", get_args(suite.Profile))
def test_the_plan_names_real_commands(profile: suite.Profile) -> None:
    for step in suite.PLAN:
        target = step.command(profile, DIGITS)
        path = target[1].replace(".", "/") + ".py" if target[0] == "-m" else target[0]
        assert (ROOT / path).exists()
        assert Path(path).stem == step.name or step.name == "report"
        assert step.estimates[profile].minutes > 0
    assert suite.PLAN[-1].name == "report"


def test_steps_come_after_what_they_use() -> None:
    seen = set()
    for step in suite.PLAN:
        assert set(step.after) <= seen
        seen.add(step.name)
    assert set(suite.PLAN[-1].after) == seen - {"report"}


def test_duration_of_steps_side_by_side() -> None:
    first, second, third = entry("a"), entry("b"), entry("c", after=("a",))  # two minutes each
    assert suite.duration([first, second, third], "quick", 1) == 6
    assert suite.duration([first, second, third], "quick", 2) == 4
    assert suite.duration([first, second], "quick", 2) == 2
    assert suite.duration([third], "quick", 2) == 2
    fourth = entry("d")
    assert suite.duration([first, third, second, fourth], "quick", 2) == 4  # while the third waits, others run


def test_dry_run_shows_the_plan_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    touching = script(tmp_path, "touching", f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr(suite, "PLAN", (entry("one", touching, "--profile", "{profile}"), entry("two", touching)))
    suite.main(suite.Config(profile="full", dataset="digits", jobs=1, dry_run=True))
    output = capfd.readouterr().out
    assert re.search(r"data: digits", output)
    assert re.search(r"2 steps at --profile full, about 4 min", output)
    assert re.search(r"\[1/2\] one +1 run +about 2 min +python \S+touching.py --profile full", output)
    assert not (tmp_path / "ran").exists()


def test_only_with_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'table_9'.*mnist_kd, .*report"):
        suite.select(["mnist_kd", "table_9"])
    with pytest.raises(InputError, match="--jobs -1"):
        suite.Config(jobs=-1)


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


@pytest.mark.data
def test_the_real_teacher_is_taken_where_it_is(data_dir: Path) -> None:
    distilled, real, reason = suite.choose_datasets("auto")
    assert distilled == real == "double_colored"
    assert str(data_dir) in reason


# --- running it ---------------------------------------------------------------------------------------------------


def test_a_failing_experiment_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: run_store.Store, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = (
        entry("broken", script(tmp_path, "broken", "raise SystemExit(3)")),
        entry("killed", script(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)")),
        entry("sound", script(tmp_path, "sound", "print('the third one speaks')")),
    )
    monkeypatch.setattr(suite, "PLAN", plan)
    with pytest.raises(SystemExit) as exit_:
        suite.main(suite.Config(dataset="digits", jobs=1))
    assert exit_.value.code == 1
    output = capfd.readouterr().out
    assert re.search(r"\[1/3\] broken \.\.\. about 2 min\n", output)
    assert re.search(r"broken +\d\d:\d\d +failed \(exit code 3\)", output)
    assert re.search(r"killed +\d\d:\d\d +failed \(exit code 137\)", output)
    assert "the third one speaks" in output
    assert re.search(r"sound +\d\d:\d\d +done", output)
    assert f"ui --backend-store-uri {store.uri} --workers 1" in output


def test_steps_run_side_by_side_and_after_what_they_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: run_store.Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """`one` and `two` end only if both run at the same time; `three` fails if it starts before `one` has ended."""
    meeting = """
import pathlib, sys, time
folder, me, other = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / me).touch()
for _ in range(200):
    if (folder / other).exists():
        break
    time.sleep(0.05)
else:
    sys.exit(4)
time.sleep(0.3)
(folder / f"{me} ended").touch()
print("met", other)
"""
    path = script(tmp_path, "meeting", meeting)
    late = f"""
import pathlib, sys
assert pathlib.Path({str(tmp_path / "one ended")!r}).exists()
print("x")
sys.exit(5)
"""
    plan = (
        entry("one", path, str(tmp_path), "one", "two"),
        entry("three", script(tmp_path, "late", late), after=("one",)),
        entry("two", path, str(tmp_path), "two", "one"),
    )
    monkeypatch.setattr(suite, "PLAN", plan)
    with pytest.raises(SystemExit):
        suite.main(suite.Config(dataset="digits", jobs=2))
    output = capfd.readouterr().out
    assert "3 steps at --profile quick, 2 at a time, about 4 min" in output
    assert re.search(r"one: done", output)
    assert re.search(r"two: done", output)
    assert re.search(r"three: failed \(exit code 5\), \d\d:\d\d\n +\| x\n", output)
    assert "met two" not in output
    assert (store.folder / "logs" / "one.log").read_text() == "met two\n"


def test_a_second_call_says_that_all_was_finished(tmp_path: Path) -> None:
    runs = FolderStore(tmp_path / "runs")
    training = script(
        tmp_path, "training", f"import pathlib; pathlib.Path({str(runs.folder / 'kd' / 'run 1')!r}).touch()"
    )
    (runs.folder / "kd").mkdir(parents=True)
    step = entry("kd", training)
    results = [suite.run([step], suite.Config(jobs=1), DIGITS, runs, Interruption()) for _ in range(2)]
    assert [result.status for (result,) in results] == ["done", "finished before, skipped"]


def test_an_interruption_ends_the_experiment_cleanly_and_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_store, "open_store", lambda: FolderStore(tmp_path / "runs"))
    started, checkpoint = tmp_path / "started", tmp_path / "checkpoint"
    training = f"""
import pathlib, signal, time
def stop(signum, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second signal would lose the checkpoint
    time.sleep(0.5)
    pathlib.Path({str(checkpoint)!r}).touch()
    raise SystemExit(130)
signal.signal(signal.SIGINT, stop)
pathlib.Path({str(started)!r}).touch()
time.sleep(60)
"""
    plan = (entry("first", script(tmp_path, "first", training)), entry("second", script(tmp_path, "second", "")))
    monkeypatch.setattr(suite, "PLAN", plan)

    def press_ctrl_c() -> None:
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    with pytest.raises(Interrupted) as interrupted:
        suite.main(suite.Config(dataset="digits", jobs=1))
    assert interrupted.value.signum == signal.SIGINT  # cli.entry makes it exit code 130
    assert checkpoint.exists()
    output = capfd.readouterr().out
    assert re.search(r"first +\d\d:\d\d +interrupted", output)
    assert re.search(r"second +not run", output)


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
    assert calls(tools) == ["-m ruff check .", "-m ruff format --check .", "-m pytest -m slow"]


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
