"""Where a run comes from: the commit of the code, the machine, and the process, which may be alive or gone."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import psutil
import torch

from skdcgn.runtime import hardware

PROJECT = Path(__file__).resolve().parents[2]
"""The clone, or the folder of installed packages."""

COMMIT = "mlflow.source.git.commit"
"""Tag of the commit, as MLflow calls it."""


def provenance() -> dict[str, object]:
    """Return the tags that say where a run comes from: commit, hardware, versions and process."""
    return {
        "hardware": hardware(),
        "torch": torch.__version__,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "process": this_process(),
        **_git_tags(),
    }


def _git_tags() -> dict[str, object]:
    """The commit of the code and whether the tree differs from it; nothing where this is no git clone."""
    try:
        return {COMMIT: _git("rev-parse", "HEAD"), "git_dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def this_process() -> str:
    """Describe this process for `process_state`: host:pid@start."""
    return f"{socket.gethostname()}:{os.getpid()}@{psutil.Process().create_time():.0f}"


def process_state(process: str) -> Literal["alive", "gone", "elsewhere"]:
    """Tell whether the process that `this_process` described is alive, or gone, or not one of this machine."""
    host, _, identity = process.partition(":")
    if host != socket.gethostname():
        return "elsewhere"
    pid, _, started = identity.partition("@")
    try:  # a pid alone may have been given to another process since
        return "alive" if f"{psutil.Process(int(pid)).create_time():.0f}" == started else "gone"
    except (psutil.NoSuchProcess, ValueError):
        return "gone"
