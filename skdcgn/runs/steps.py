"""Commands side by side: a step starts when there is a free slot and what it comes after has ended."""

import graphlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from skdcgn.runs.loop import Interruption
from skdcgn.runs.provenance import PROJECT

# glibc would hand memory back after every training step, and fetch it anew for the next: 5 to 14 % of a step on a quiet
# machine, and most of the suite's system time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}


@dataclass(frozen=True)
class Step:
    """A command, run in a process of its own."""

    name: str
    command: tuple[str, ...]
    after: frozenset[str] = frozenset()
    """Names of the steps that must have ended before; names of others are ignored."""
    seconds: float = 0.0
    """What it takes, about: of several that could start, the longest one does."""


@dataclass
class Result:
    """How a step ended."""

    name: str
    status: str = "not run"
    seconds: float = 0.0
    log: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.status.startswith("failed")


@dataclass
class _Running:
    """A step that runs, in a process group of its own.

    From the terminal's Ctrl-C it would otherwise get the signal twice, which ends an experiment before it can write
    its checkpoint.
    """

    step: Step
    log: Path | None
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._output: IO[bytes] | None = self.log.open("wb") if self.log else None
        paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Threads that spin while they wait make everything many times slower where cores are shared.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **_KEEP_MEMORY, **os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._output, "stderr": self._output}
        self.process = subprocess.Popen(self.step.command, cwd=PROJECT, env=environment, process_group=0, **streams)

    def result(self, interrupted: bool) -> Result | None:
        """Tell how it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        if self._output:
            self._output.close()
        status = "interrupted" if interrupted else "done"
        if code and not interrupted:
            status = f"failed (exit code {code if code > 0 else 128 - code})"
        return Result(self.step.name, status, time.perf_counter() - self.start, self.log)


def run_steps(
    steps: Sequence[Step],
    jobs: int,
    interruption: Interruption,
    logs: Path | None = None,
    started: Callable[[Step, Path | None], None] = lambda step, log: None,
    ended: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run steps, several at a time; a failed one does not stop the others.

    Args:
        steps: each name once.
        jobs: how many run at the same time.
        interruption: where a signal came in, the running steps get it too, and no other one starts.
        logs: folder for a log file of each; by default they write to the terminal.
        started: called when a step starts, with its log.
        ended: called when a step has ended.

    Returns:
        How each ended, in the order in which they did; steps that never started come last.
    """
    names = {step.name: step for step in steps}
    order = graphlib.TopologicalSorter({step.name: step.after & names.keys() for step in steps})
    order.prepare()
    ready, running, results = list[str](), list[_Running](), list[Result]()
    signal_sent = False
    if logs:
        logs.mkdir(parents=True, exist_ok=True)
    try:
        while order.is_active() and (running or interruption.signum is None):
            ready = sorted([*ready, *order.get_ready()], key=lambda name: -names[name].seconds)
            while ready and len(running) < jobs and interruption.signum is None:
                step = names[ready.pop(0)]
                log = logs / f"{step.name}.log" if logs else None
                started(step, log)
                running.append(_Running(step, log))
            if interruption.signum is not None and not signal_sent:
                _send(running, interruption.signum)
                signal_sent = True
            time.sleep(0.1)
            for one in list(running):
                result = one.result(interruption.signum is not None)
                if result is not None:
                    running.remove(one)
                    order.done(result.name)
                    results.append(result)
                    ended(result)
    except KeyboardInterrupt:  # a second Ctrl-C, which `Interruption` lets through: do not wait for the checkpoints
        _send(running, signal.SIGINT)
        for one in running:
            one.process.wait()
            results.append(Result(one.step.name, "interrupted"))
    known = {result.name for result in results}
    return [*results, *(Result(name) for name in names if name not in known)]


def _send(running: Sequence[_Running], signum: int) -> None:
    for one in running:
        one.process.send_signal(signum)


def total_seconds(steps: Sequence[Step], jobs: int) -> float:
    """Estimate how long steps take together, by the rule that starts them."""
    names: Mapping[str, Step] = {step.name: step for step in steps}
    order = graphlib.TopologicalSorter({step.name: step.after & names.keys() for step in steps})
    order.prepare()
    now, ready, ends = 0.0, list[str](), dict[str, float]()
    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=lambda name: -names[name].seconds)
        while ready and len(ends) < jobs:
            name = ready.pop(0)
            ends[name] = now + names[name].seconds
        name = min(ends, key=ends.get)
        now = ends.pop(name)
        order.done(name)
    return now
