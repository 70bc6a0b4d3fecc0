"""Checkpoints: written whole, checked when read, and with the one before them to fall back on."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skdcgn import files
from skdcgn.files import load_checkpoint, remove_checkpoint, save_checkpoint


def saved(path: Path, count: int) -> Path:
    """Save checkpoints of the steps 1 to `count` at a path."""
    for step in range(1, count + 1):
        save_checkpoint(path, {"step": step, "weight": torch.full((3,), float(step))})
    return path


def step_of(path: Path) -> int | None:
    state = load_checkpoint(path)
    assert state is None or torch.equal(state["weight"], torch.full((3,), float(state["step"])))
    return state and state["step"]


def test_the_latest_checkpoint_is_read_and_the_one_before_it_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "run.pt", 3)
    assert step_of(path) == 3
    path.unlink()
    assert step_of(path) == 2
    remove_checkpoint(saved(path, 2))
    assert list(tmp_path.iterdir()) == []
    assert step_of(path) is None
    remove_checkpoint(path)
    assert capsys.readouterr().err == ""


@given(st.data())
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder) / "run.pt", 2)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[place:]
        path.write_bytes(content)
        assert step_of(path) == 1
        assert not path.exists()  # else the next one would push the good one out
        save_checkpoint(path, {"step": 3, "weight": torch.full((3,), 3.0)})
        path.write_bytes(b"")
        assert step_of(path) == 1


def test_damage_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "run.pt", 2)
    path.write_bytes(b"")
    assert step_of(path) == 1
    assert capsys.readouterr().err == f"warning: the checkpoint {path} is damaged: going on from the one before it.\n"
    for candidate in (saved(path, 2), files._previous(path)):
        candidate.write_bytes(candidate.read_bytes()[:-1])
    assert step_of(path) is None
    assert capsys.readouterr().err == f"warning: the checkpoint {path} is damaged: starting anew.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crash", range(6))
def test_a_crash_at_any_moment_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int) -> None:
    """The process ends before, between or after the system calls that put a checkpoint into its place."""
    path = saved(tmp_path / "run.pt", 2)
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > crash:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "open"), (Path, "unlink")):
            patched.setattr(owner, name, counted(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {"step": 3, "weight": torch.full((3,), 3.0)})
    assert step_of(path) == (3 if crash == 5 else 2)


class _Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "run.pt", 1)
    save_checkpoint(path, {"step": _Payload()})
    assert step_of(path) == 1
    assert not Path("executed").exists()
