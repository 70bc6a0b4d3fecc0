"""Who is at a run: a lease in the run's tags, which a heartbeat renews for as long as its process lives.

Where the process can be looked up (same kernel, same process namespace), a lease ends with it. Elsewhere, as on other
hosts and in other containers, it ends when it has not been renewed for a while on the clock of whoever watches: clocks
of different machines are never compared.
"""

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import psutil

from skdcgn.errors import InputError

LEASE = "lease"
"""The tag of a run that has its lease; written by whoever takes the run, and by nobody else."""
_HEARTBEAT = "heartbeat"
"""The tag with the key of a lease and its number of heartbeats: of its own, so that a process that was stopped in the
middle of a heartbeat, and goes on once another one has the run, does not take it back."""

_EVERY = 10.0  # seconds between two heartbeats
_MISSED = 6  # a lease is over after so many intervals without one


@cache
def machine() -> str:
    """Identify the kernel and the process namespace that this process is in: two containers have two."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def started(pid: int) -> str:
    """Say when a process started, whatever has been done to the clock since; empty where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # ticks since the kernel started
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        return str(int(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return ""


def _interval() -> float:
    """Return the seconds between two heartbeats."""
    text = os.environ.get("SKDCGN_HEARTBEAT", str(_EVERY))
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise InputError(f"SKDCGN_HEARTBEAT is {text!r}: give a number of seconds above 0, or unset it.")


@dataclass(frozen=True)
class Lease:
    """A process's hold of a run."""

    key: str
    """Tells this lease apart from all others."""
    host: str
    machine: str
    """Where the pid means something: see `machine`."""
    pid: int
    started: str
    """Of the process: the pid may have been given to another one since."""
    every: float
    """Seconds between two heartbeats."""
    beat: int = 0
    """Number of heartbeats so far."""

    @classmethod
    def take(cls) -> "Lease":
        """Return a new lease of this process."""
        return cls(uuid.uuid4().hex, socket.gethostname(), machine(), os.getpid(), started(os.getpid()), _interval())

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "Lease | None":
        """Return the lease that is in a run's tags; None where there is none."""
        if LEASE not in tags:
            return None
        lease = cls(**json.loads(tags[LEASE]))
        key, _, beat = tags.get(_HEARTBEAT, "").partition(" ")
        return replace(lease, beat=int(beat)) if key == lease.key else lease

    @property
    def tags(self) -> dict[str, str]:
        """The lease as tags of its run."""
        return {LEASE: json.dumps(asdict(replace(self, beat=0))), **self.pulse}

    @property
    def pulse(self) -> dict[str, str]:
        """What a heartbeat writes."""
        return {_HEARTBEAT: f"{self.key} {self.beat}"}

    @property
    def here(self) -> bool:
        """Whether the lease is this process's."""
        return self.machine == machine() and self.pid == os.getpid()

    def holder(self) -> Literal["alive", "gone", "elsewhere"]:
        """Tell whether the process is alive or gone, or that it cannot be looked up from here."""
        if self.machine != machine():
            return "elsewhere"
        return "alive" if started(self.pid) == self.started else "gone"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Watch:
    """Tells whether whoever was at a run is gone; has to be asked repeatedly to notice that on other machines."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Lease | None, float]] = {}

    def gone(self, run_id: str, tags: Mapping[str, str]) -> bool:
        """Tell whether the process that holds a run with these tags is known to be gone by now."""
        lease, now = Lease.read(tags), time.monotonic()
        if lease is not None and lease.holder() != "elsewhere":
            return lease.holder() == "gone"
        seen, since = self._seen.get(run_id, (lease, now))
        self._seen[run_id] = (lease, since if seen == lease else now)
        return seen == lease and now - since > _MISSED * (lease.every if lease else _EVERY)


class Leases(Protocol):
    """What keeps leases: the run store."""

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None: ...

    def is_held(self, run_id: str, lease: Lease) -> bool: ...


class Heartbeat:
    """Renews a lease from a thread of its own, for the length of a block."""

    def __init__(self, store: Leases, run_id: str, lease: Lease) -> None:
        self._store, self._run_id, self._lease = store, run_id, lease
        self._end, self._renewing, self._renewed = threading.Event(), threading.Lock(), time.monotonic()
        self._thread = threading.Thread(target=self._renew, name=f"heartbeat of run {run_id}", daemon=True)
        self._lost = False

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Whether somebody else took this process for dead: it must not write to the run any more.

        Where the last heartbeat is long ago, as after the process was stopped, the store is asked.
        """
        if time.monotonic() - self._renewed > 2 * self._lease.every:
            self._beat()
        return self._lost

    def _renew(self) -> None:
        while not self._end.wait(self._lease.every) and not self._lost:
            self._beat()

    def _beat(self) -> None:
        asked = time.monotonic()  # the process may be stopped before it gets the answer
        with self._renewing, contextlib.suppress(Exception):  # a server that restarts: the next one may get through
            self._lost = self._lost or not self._store.is_held(self._run_id, self._lease)
            if not self._lost:
                self._lease = replace(self._lease, beat=self._lease.beat + 1)
                self._store.set_tags(self._run_id, self._lease.pulse)
            self._renewed = asked
