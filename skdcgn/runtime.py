"""Where and how a run executes: device, threads, precision, and what this machine is."""

import contextlib
import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skdcgn.configs.fields import Checked, Device, PositiveInt, Threads
from skdcgn.configs.names import Precision
from skdcgn.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Runtime(Checked):
    """Where and how a run executes: nothing here is part of its identity (`skdcgn.runs.identity`)."""

    device: Device = "auto"
    """Device to run on: auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    threads: Threads = 1
    """CPU threads; 0 lets PyTorch choose. One is fastest here: in bf16, several wait for each other more than they
    work, several times over where other programs share the cores."""
    compile: bool = False
    """Compile the student with torch.compile (worth it on GPU only: slower than eager on CPU)."""
    checkpoint_every: PositiveInt = 250
    """Steps between checkpoints, from which a killed run resumes."""
    log_every: PositiveInt = 10
    """Steps between two logged values of the losses."""
    force: bool = False
    """Run again even where a finished run with the same config and code exists."""


def setup(runtime: Runtime) -> "torch.device":
    """Apply a `Runtime` to this process and return its device.

    Raises:
        InputError: the device does not exist on this machine.
    """
    import torch  # takes seconds, which reading a config need not pay

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(runtime.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # their messages list PyTorch's twenty back ends, or its build options
        raise InputError(f"There is no device {runtime.device!r} on this machine: give cpu, or auto.") from None
    return device


def autocast(device: "torch.device", precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a precision: bf16 mixed precision, or nothing for fp32."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def hardware() -> str:
    """Describe this machine in one line, for a run's tags."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """Return the processor's name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
