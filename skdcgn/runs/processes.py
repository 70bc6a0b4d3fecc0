"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

import os
import socket
from typing import Literal

import psutil


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
