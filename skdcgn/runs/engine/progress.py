"""One line that says how far the work is: done, running, failed, to do, the time it took and takes, and what is on."""

import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TextIO

from tqdm import tqdm

from skdcgn.runs.engine.durations import Durations, chains
from skdcgn.runs.engine.tasks import Task

_QUIET = 30.0  # seconds between two lines where the output is no terminal


class Progress:
    """Follows the tasks of a start."""

    def __init__(self, durations: Durations, workers: int, stream: TextIO | None = None) -> None:
        self.running: dict[str, tuple[Task, float]] = {}
        self._durations, self._workers, self._stream = durations, workers, stream or sys.stderr
        self._tasks: dict[str, Task] = {}
        self._left: dict[str, Task] = {}
        self._failed = self._not_run = 0
        self._begun: dict[str, float] = {}
        self._busy = 0.0
        self._start = self._shown = time.monotonic()
        self._bar = tqdm(
            bar_format="{desc}", file=self._stream, leave=False, disable=not self._stream.isatty(), total=0
        )

    def add(self, tasks: Iterable[Task], done: Iterable[str] = ()) -> None:
        """Take in tasks, needed ones first, and the keys of those that are done already."""
        self._tasks |= {task.key: task for task in tasks}
        self._left |= {task.key: task for task in tasks if task.key not in set(done)}

    def event(self, task: Task, event: Mapping[str, str]) -> None:
        """Take in what a worker tells of a task."""
        if "begun" in event:
            self._begun[task.key] = time.monotonic()
        elif "started" in event:
            self.running[task.key] = (task, time.monotonic())
        elif "said" in event:
            self.say(event["said"])
        elif "waiting" in event:
            self._begun.pop(task.key, None)  # its worker goes on with others
            self.say(f"{event['waiting']}: going on with other runs meanwhile.")

    def ended(self, task: Task, status: str = "", reason: str = "") -> None:
        """Take in how a task has ended: well, `failed` or `not run`."""
        if task.key in self.running and not status:
            self._durations.note(task, time.monotonic() - self.running[task.key][1])
        self._busy += time.monotonic() - self._begun.pop(task.key, time.monotonic())
        self.running.pop(task.key, None)
        self._left.pop(task.key, None)
        self._failed += status == "failed"
        self._not_run += status == "not run"
        if status == "failed":
            self.say(f"{task}: failed: {reason}")

    def busy(self) -> str:
        """Say how long the work took, and how much of that time the workers had something to do."""
        elapsed = time.monotonic() - self._start
        share = min(1.0, self._busy / (elapsed * self._workers))
        return f"{tqdm.format_interval(elapsed)} on {self._workers} workers, which were busy {share:.1%} of the time"

    def say(self, message: str) -> None:
        """Write a line of its own."""
        tqdm.write(message, file=self._stream)

    def show(self) -> None:
        """Bring the line up to date; where the output is no terminal, write it now and then."""
        now = time.monotonic()
        if self._bar.disable:
            if now - self._shown >= _QUIET:
                self._shown = now
                print(self.line(), file=self._stream, flush=True)
        elif now - self._shown >= 0.5:
            self._shown = now
            self._bar.set_description_str(self.line()[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Take the line away."""
        self._bar.close()

    def line(self) -> str:
        """Return the line."""
        done = len(self._tasks) - len(self._left) - self._failed - self._not_run
        failed = f", {self._failed} failed" if self._failed else ""
        not_run = f", {self._not_run} cannot run" if self._not_run else ""
        waiting = len(self._left) - len(self.running)
        now = time.monotonic()
        elapsed = tqdm.format_interval(now - self._start)
        on = "; ".join(f"{task} ({tqdm.format_interval(now - since)})" for task, since in self.running.values())
        return (
            f"{done} of {len(self._tasks)} runs done, {len(self.running)} running{failed}{not_run}, {waiting} to do; "
            f"{elapsed} so far, about {tqdm.format_interval(self.seconds_left())} left{': ' if on else ''}{on}"
        )

    def seconds_left(self) -> float:
        """Estimate how long it still takes."""
        now = time.monotonic()
        own = {key: self._durations.of(task) for key, task in self._left.items()}
        spent = {key: min(now - since, 0.95 * own.get(key, 0.0)) for key, (_, since) in self.running.items()}
        longest = chains(list(self._left.values()), self._durations)
        left = sum(own.values()) - sum(spent.values())
        return max([left / max(self._workers, 1), *(longest[key] - spent.get(key, 0.0) for key in longest)])
