"""How long tasks take: as earlier runs of the store did, or else as estimated, corrected by what others took here."""

from collections.abc import Iterable, Sequence

from skdcgn.runs.engine.tasks import Task
from skdcgn.runs.store import RunRecord


class Durations:
    """Durations of the tasks of one start."""

    def __init__(self) -> None:
        self._earlier: dict[tuple[str, str, str], float] = {}
        self._estimated = self._taken = 0.0

    def learn(self, runs: Iterable[RunRecord]) -> None:
        """Take in finished runs of the store, the newest last: the same task, perhaps with other code, took as long."""
        for run in runs:
            if run.seconds is not None:
                self._earlier[run.experiment, run.name, run.tags.get("profile", "")] = run.seconds

    def note(self, task: Task, seconds: float) -> None:
        """Take in how long a task has just taken."""
        self._estimated += task.seconds
        self._taken += seconds

    def of(self, task: Task) -> float:
        """Estimate the seconds that a task takes on a core."""
        known = self._earlier.get((task.experiment, task.name, task.profile))
        return task.seconds * (self._taken / self._estimated if self._estimated else 1.0) if known is None else known


def chains(tasks: Sequence[Task], durations: Durations) -> dict[str, float]:
    """Return by task the seconds of the longest chain that begins with it: all that has to wait for it.

    Args:
        tasks: needed ones first.
        durations: of each.
    """
    own = {task.key: durations.of(task) for task in tasks}
    longest: dict[str, float] = {}
    after: dict[str, float] = {}
    for task in reversed(tasks):
        longest[task.key] = own[task.key] + after.get(task.key, 0.0)
        for need in task.needs.values():
            after[need] = max(after.get(need, 0.0), longest[task.key])
    return longest
