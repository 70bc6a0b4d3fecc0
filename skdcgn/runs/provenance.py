"""Where a run comes from: the commit of the code, and the machine."""

import socket
import subprocess
import sys
from pathlib import Path

import torch

from skdcgn.runtime import hardware

PROJECT = Path(__file__).resolve().parents[2]
"""The clone, or the folder of installed packages."""

COMMIT = "mlflow.source.git.commit"
"""Tag of the commit, as MLflow calls it."""


def provenance() -> dict[str, object]:
    """Return the tags that say where a run comes from: commit, hardware, host and versions."""
    return {
        "hardware": hardware(),
        "torch": torch.__version__,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "host": socket.gethostname(),
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
