"""What the engine executes: tasks, each of which makes a run and needs the runs of others."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import NamedTuple, Protocol

from skdcgn.errors import InputError
from skdcgn.runs.identity import identify
from skdcgn.runs.lifecycle import Terminal, make
from skdcgn.runs.plan import Case
from skdcgn.runs.store import RunRecord, Store


class Task(Protocol):
    """A piece of work in the run store for one worker, to which it is sent pickled."""

    key: str
    """Tells it apart from all other tasks."""
    experiment: str
    name: str
    profile: str
    seconds: float
    """What it takes on one CPU core, about."""
    needs: Mapping[str, str]
    """The keys of the tasks whose runs it needs, by name."""
    device: str
    """See `Runtime.device`."""

    def find(self, finished: Mapping[str, RunRecord]) -> RunRecord | None:
        """Return the run that the task would make, if it is among the finished ones (by their identities)."""
        ...

    def perform(self, store: Store, needs: Mapping[str, RunRecord], terminal: Terminal) -> RunRecord:
        """Make the run, or return it where it has been made since.

        Raises:
            InputError: bad input.
            Interrupted: it was asked to stop.
        """
        ...


class Stage(NamedTuple):
    """Tasks, and what comes after all of them: it may depend on their results."""

    tasks: Sequence[Task]
    then: "Callable[[Mapping[str, RunRecord]], Stage | None]" = lambda runs: None
    """Called in the driver with the runs by the keys of their tasks, when all tasks have ended well."""


def key_of(case: Case, force: str) -> str:
    """Return the key of a case's task."""
    return f"{case.experiment}-{case.identity.digest}{force if case.config.runtime.force else ''}"


class Making:
    """The task that makes the run of a case."""

    def __init__(self, case: Case, force: str) -> None:
        """Prepare the task; `force` is that of `lifecycle.make`."""
        self.case, self.force, self.digest = case, force, case.identity.digest
        self.key, self.experiment, self.name = key_of(case, force), case.experiment, case.name
        self.seconds = case.seconds
        self.needs = {name: key_of(needed, force) for name, needed in case.needs.items()}
        self.profile, self.device = str(case.tags.get("profile", "")), case.config.runtime.device

    def __str__(self) -> str:
        return str(self.case)

    def find(self, finished: Mapping[str, RunRecord]) -> RunRecord | None:
        """See `Task`."""
        return None if self.case.config.runtime.force else finished.get(self.digest)

    def perform(self, store: Store, needs: Mapping[str, RunRecord], terminal: Terminal) -> RunRecord:
        """See `Task`.

        Raises:
            InputError: bad input, or this worker's code is not the driver's.
        """
        inputs = {**self.case.inputs, **{name: case.identity.digest for name, case in self.case.needs.items()}}
        differences = self.case.identity.differences(*astuple(identify(self.case.config, self.case.make, inputs)))
        if differences:
            host = socket.gethostname()
            reason = "; ".join(differences)
            raise InputError(f"the worker on {host} has other code than the driver ({reason}): update one of them.")
        return make(self.case, store, needs, self.force, terminal)
