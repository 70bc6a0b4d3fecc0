"""What the command line of every experiment and search does: read a config, run it, and print what came of it."""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from skdcgn import cli
from skdcgn.runs.plan import Plan

if TYPE_CHECKING:  # what takes seconds to import is so where it is used: --help answers at once
    import pandas as pd

    from skdcgn.recipes.sweep import DistillationSearch

_DRY_RUN = "--dry-run"


def main(defaults: Mapping[str, Any], plan: "Callable[[Any], Plan | DistillationSearch]", description: str) -> NoReturn:
    """Run an experiment or a search as its command line says, and exit; with `--dry-run` say how far it is.

    Args:
        defaults: the config of each profile.
        plan: from a config to the cases to run, or to the search.
        description: the script's docstring, shown by `--help`.
    """

    def work() -> None:
        arguments = [argument for argument in sys.argv[1:] if argument != _DRY_RUN]
        help_text = f"{description}\n{_DRY_RUN} says for each run whether it is finished, and if not why it would run."
        planned = plan(cli.parse(defaults, help_text, arguments))
        if _DRY_RUN in sys.argv[1:]:
            print(*dry_run(planned), sep="\n")
        elif isinstance(planned, Plan):
            from skdcgn.distributed import leads
            from skdcgn.runs.lifecycle import carry_out

            results = carry_out(planned)
            if leads():
                print(summary(results, planned.shown))
        else:
            from skdcgn.recipes.sweep import conduct

            conduct(planned)

    cli.entry(work)


def dry_run(plan: "Plan | DistillationSearch") -> list[str]:
    """Say how far each run of a plan is, a line each: finished, resumable, or why it would run (again).

    Of a search it says how many trials there are, and each run of the confirmation once the best trial is known.

    Raises:
        InputError: a study of the search's name searches something else.
    """
    from skdcgn.runs.lifecycle import nearest, state_of
    from skdcgn.runs.search.studies import find_study, load_study
    from skdcgn.runs.search.sweep import check_same
    from skdcgn.runs.store import open_store

    store = open_store()
    if isinstance(plan, Plan):
        return [f"{case}: {state_of(case, store, case.config.runtime.force)}" for case in plan.everything()]
    definition, trials = plan.definition, plan.search.trials
    study = f"{definition.experiment}: study {definition.name!r}"
    runs = f"{len(plan.confirmation({}).cases)} runs to confirm the best of them"
    run = find_study(store, definition.experiment, definition.name)
    if run is None:
        told = {name: str(definition.tags[name]) for name in ("profile", "dataset", "mechanism")}
        earlier = store.runs(definition.experiment, kind="study", **told)
        why = f" ({'; '.join(nearest(definition.identity, earlier)[0])})" if earlier else ""
        return [*dry_run(Plan(list(plan.needs.values()), ())), f"{study}: {trials} trials to run{why}, then {runs}"]
    check_same(definition, run)
    found = load_study(store, definition.experiment, definition.name)
    states = found.trials["state"].value_counts()
    told = f"{study}: {', '.join(f'{count} {state}' for state, count in states.items())}; {trials} trials wanted"
    if found.best is None or not found.is_complete(trials):
        return [f"{told}, then {runs}"]
    return [told, *dry_run(plan.confirmation(found.best))]


def summary(results: "pd.DataFrame", shown: tuple[str, ...] = ()) -> str:
    """Return a table of final metrics: means over seeds with their 95 % Student-t interval and n.

    Runs without any of the metrics, such as students put together, are listed below it with their addresses.

    Args:
        results: see `runs.lifecycle.carry_out`.
        shown: the metrics; all of them by default.
    """
    import pandas as pd

    metrics = [name for name in (shown or results.columns) if name in results and name != "run_id"]
    told = [name for name in results.index.names if name != "seed"]
    has_any = results[metrics].notna().any(axis=1)
    measured, others = results[has_any], results[~has_any]
    groups = measured.groupby(level=told, sort=False) if told else [("all", measured)]
    rows = {
        key: {name: _interval(rows[name].dropna().tolist()) for name in metrics if rows[name].notna().any()}
        for key, rows in groups
    }
    lines = [pd.DataFrame.from_dict(rows, orient="index").rename_axis(told or [""]).to_string(na_rep="")]
    for key, run_id in zip(others.index.to_frame().to_dict("records"), others["run_id"], strict=True):
        lines.append(f"{', '.join(f'{name} {value}' for name, value in key.items() if value != '')}: runs:/{run_id}")
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    from skdcgn.measure.statistics import mean_interval

    mean, low, high, n = mean_interval(values)
    return f"{mean:.4g}, n=1" if n == 1 else f"{mean:.4g} [{low:.4g}, {high:.4g}], n={n}"
