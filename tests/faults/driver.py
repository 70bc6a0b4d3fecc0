"""What the tests of faults disturb: a command that makes runs on workers, to be started again until it is done.

python driver.py walks FIRST WIDTH [--scheduler FILE]        walks of `walks.tree`, the first with seed FIRST
python driver.py real [--scheduler FILE]                     a teacher, students, a reading of Table 1, a search

Where FAULTS_CLOCK names a file, the clock on the wall is moved (clock.py).
"""

import sys

import clock  # noqa: F401 (first, and in all workers too, which read this module)
from walks import tree

from experiments import mnist_kd, sweep_kl, table1_shape_im
from skdcgn import cli
from skdcgn.commands.experiments import execution
from skdcgn.recipes.sweep import DistillationSearch
from skdcgn.runs.engine.cluster import Where
from skdcgn.runs.plan import Plan
from skdcgn.runs.store import open_store

_COMMON = ["--profile=smoke", "--dataset=digits", "--runtime.device=cpu", "--runtime.checkpoint-every=2"]
_REAL = {
    mnist_kd: [],
    table1_shape_im: ["--interventions=noise", "--when=training", "--labels=permuted", "--strengths"],
    sweep_kl: ["--search.trials=3", "--confirm-seeds=1"],
}


def planned(what: str, *numbers: str) -> list[Plan | DistillationSearch]:
    """Return what to run."""
    if what == "walks":
        first, width = map(int, numbers)
        return [tree(width, first=first)]
    return [script.plan(cli.parse(script.DEFAULTS, args=[*_COMMON, *options])) for script, options in _REAL.items()]


def work() -> None:
    """Run it."""
    arguments, _, scheduler = " ".join(sys.argv[1:]).partition(" --scheduler ")
    where = Where(scheduler=scheduler) if scheduler else Where(2)
    execution.check(execution.execute(planned(*arguments.split()), open_store(), where, ""))


if __name__ == "__main__":
    cli.entry(work)
