"""What the command line of every experiment does: read a config, carry out its plan, and print what came of it."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import pandas as pd

from skdcgn import cli
from skdcgn.distributed import leads
from skdcgn.measure.statistics import mean_interval
from skdcgn.runs.lifecycle import Plan, carry_out, state_of
from skdcgn.runs.store import open_store

_DRY_RUN = "--dry-run"


def main(defaults: Mapping[str, Any], plan: Callable[[Any], Plan], description: str) -> NoReturn:
    """Run an experiment as its command line says, and exit.

    With `--dry-run` it says for each run whether it is finished or resumable, or why it would run (again).

    Args:
        defaults: the config of each profile.
        plan: from a config to the cases to run.
        description: the script's docstring, shown by `--help`.
    """
    start(defaults, description, lambda config: dry_run(plan(config)), lambda config: _carry_out(plan(config)))


def start(
    defaults: Mapping[str, Any],
    description: str,
    dry_run: Callable[[Any], list[str]],
    work: Callable[[Any], None],
) -> NoReturn:
    """Do what a script's command line says, and exit.

    Args:
        defaults: the config of each profile.
        description: the script's docstring, shown by `--help`.
        dry_run: from a config to what there is and what would run, line by line.
        work: runs it, and prints what came of it.
    """

    def main() -> None:
        arguments = [argument for argument in sys.argv[1:] if argument != _DRY_RUN]
        help_text = f"{description}\n{_DRY_RUN} says for each run whether it is finished, and if not why it would run."
        config = cli.parse(defaults, help_text, arguments)
        if _DRY_RUN in sys.argv[1:]:
            print(*dry_run(config), sep="\n")
        else:
            work(config)

    cli.entry(main)


def _carry_out(plan: Plan) -> None:
    results = carry_out(plan)
    if leads():
        print(summary(results, plan.shown))


def dry_run(plan: Plan) -> list[str]:
    """Say for each run of a plan how far it is, a line each."""
    store = open_store()
    return [f"{case}: {state_of(case, store, case.config.runtime.force)}" for case in plan.everything()]


def summary(results: pd.DataFrame, shown: tuple[str, ...] = ()) -> str:
    """Return a table of final metrics: means over seeds with their 95 % Student-t interval and n.

    Args:
        results: see `runs.lifecycle.carry_out`.
        shown: the metrics; all of them by default.
    """
    metrics = [name for name in (shown or results.columns) if name in results and name != "run_id"]
    told = [name for name in results.index.names if name != "seed"]
    groups = results.groupby(level=told, sort=False) if told else [("all", results)]
    rows = {
        key: {name: _interval(rows[name].dropna().tolist()) for name in metrics if rows[name].notna().any()}
        for key, rows in groups
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(told or [""]).to_string(na_rep="")


def _interval(values: list[float]) -> str:
    mean, low, high, n = mean_interval(values)
    return f"{mean:.4g}, n=1" if n == 1 else f"{mean:.4g} [{low:.4g}, {high:.4g}], n={n}"
