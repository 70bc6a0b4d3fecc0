"""The package's commands: how they are found, what they say of themselves, and what a wrong name leads to."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import skdcgn.commands
from skdcgn import __main__ as dispatcher
from skdcgn.cli import entry
from skdcgn.errors import InputError
from skdcgn.runtime import Runtime, setup


def module_of(command: str) -> str:
    return command.replace("-", "_")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Return the exit code of `python -m skdcgn ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["skdcgn", *arguments])
    with pytest.raises(SystemExit) as ending:
        entry(dispatcher.main)
    return ending.value.code


def test_every_module_is_a_command_and_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {path.stem for path in Path(skdcgn.commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert {module_of(command) for command in dispatcher.COMMANDS} == modules
    assert call(monkeypatch) == call(monkeypatch, "--help") == 0
    listed = capsys.readouterr().out
    assert all(f"  {command} " in listed for command in dispatcher.COMMANDS)


@pytest.mark.parametrize("command", dispatcher.COMMANDS)
def test_each_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: python -m skdcgn {command} ")
    assert f"python -m skdcgn {command}" in import_module(f"skdcgn.commands.{module_of(command)}").__doc__


def test_wrong_command_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "nonsense") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: there is no command 'nonsense': choose from {', '.join(dispatcher.COMMANDS)}.\n"


def test_commands_are_loaded_when_called() -> None:
    code = "import sys, skdcgn.__main__; print([name for name in sys.modules if name.startswith('skdcgn.commands')])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"


@pytest.mark.parametrize("device", ["cuda:99", "mps:99"])
def test_wrong_device_is_one_short_sentence(device: str) -> None:
    with pytest.raises(InputError) as caught:
        setup(Runtime(device=device))
    assert str(caught.value) == f"There is no device {device!r} on this machine: give cpu, or auto."
