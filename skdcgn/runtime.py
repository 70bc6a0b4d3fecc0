"""What keeps runs reproducible and alive: seeding, device and precision, atomic files, checkpoints, signals."""

import contextlib
import dataclasses
import hashlib
import os
import platform
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from skdcgn.errors import InputError

Precision = Literal["fp32", "bf16"]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where and how a run executes: nothing here is part of its identity (see `tracking.config_hash`)."""

    device: str = "auto"
    """Device to run on: auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """CPU threads; 0 lets PyTorch choose. One is fastest here: in bf16, several wait for each other more than they
    work, several times over where other programs share the cores."""
    compile: bool = False
    """Compile the student with torch.compile (worth it on GPU only: slower than eager on CPU)."""
    checkpoint_every: int = 250
    """Steps between checkpoints, from which a killed run resumes."""
    log_every: int = 10
    """Steps between two logged values of the losses."""
    force: bool = False
    """Run again even where a finished run with the same config and code exists."""


def setup(runtime: Runtime) -> torch.device:
    """Apply a `Runtime` to this process and return its device.

    Raises:
        InputError: the device does not exist on this machine.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(runtime.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--runtime.device {runtime.device} cannot be used here ({reason}); try cpu or auto."
        ) from None
    return device


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a precision: bf16 mixed precision, or nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def stream(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return an explicit random generator for one named purpose of one seed.

    `stream(0, "heldout", "shape")` and `stream(0, "train", "shape")` are independent of each other, and each is
    the same on every machine.
    """
    digest = hashlib.sha256(repr((seed, *map(str, names))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextlib.contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Make what PyTorch draws from its global generator (initial weights) depend on this seed alone.

    The global state is put back afterwards. Everything else takes an explicit generator from `stream`.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream(seed, *names).initial_seed())
        yield


def hardware() -> str:
    """Describe this machine in one line, for a run's tags."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """Return the processor's name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: tensors and plain values only."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint`."""
    return torch.load(path, map_location=device, weights_only=True)


class Interrupted(Exception):
    """A signal asked the run to end; it left a checkpoint and can be resumed."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Interruption:
    """Turns SIGINT and SIGTERM into a request that the training loop honours between two steps.

    A second signal ends the process the ordinary way, for those who cannot wait.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _request(self, signum: int, _frame: object) -> None:
        self.signum = signum
        signal.signal(signum, self._previous[signum])

    def check(self) -> None:
        """Raise `Interrupted` if a signal came in since the block was entered."""
        if self.signum is not None:
            raise Interrupted(self.signum)
