"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

import subprocess
import sys
from pathlib import Path

import torch
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME

from skdcgn.runs.identity import _PROJECT, code_version
from skdcgn.runtime import hardware


def provenance(experiment: str, description: str = "") -> dict[str, object]:
    """Return the tags that say what a run is and where it comes from: code, commit, hardware and versions.

    Args:
        experiment: see `code_version`.
        description: markdown, shown in the UI.
    """
    tags = {
        "code_version": code_version(experiment),
        "hardware": hardware(),
        "torch": torch.__version__,
        MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
        **_git_tags(),
    }
    return {**tags, MLFLOW_RUN_NOTE: description} if description else tags


def _git_tags() -> dict[str, object]:
    """The commit of the code and whether the tree differs from it; nothing where this is no git clone."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {MLFLOW_GIT_COMMIT: commit, "git_dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
