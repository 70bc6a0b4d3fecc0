"""Ways to strike a command that runs."""

import random
from collections.abc import Callable

from harness import Work, kill


def any_worker(chance: random.Random) -> Callable[[Work], bool]:
    """Return a strike that kills a worker of the driver."""

    def strike(work: Work) -> bool:
        workers = work.children()
        return bool(workers) and kill(chance.choice(workers))

    return strike


def driver(work: Work) -> bool:
    """Kill the driver: its workers have to notice that themselves."""
    return kill(work.process)


def everything(work: Work) -> bool:
    """Kill the driver and all of its workers at once, as when a machine goes down."""
    return all([kill(process) for process in [*work.children(), work.process]])
