"""Plans and searches on workers; how far they are, and what came of them."""

from collections.abc import Sequence

import pandas as pd

from skdcgn.distributed import leads
from skdcgn.errors import InputError, Interrupted
from skdcgn.measure.statistics import mean_interval
from skdcgn.recipes.sweep import DistillationSearch, stage_of
from skdcgn.runs.engine.cluster import Where, connect, size
from skdcgn.runs.engine.execute import Driver, Outcome
from skdcgn.runs.engine.tasks import key_of
from skdcgn.runs.lifecycle import nearest, new_force, results, state_of
from skdcgn.runs.plan import Plan
from skdcgn.runs.search.studies import find_study, load_study
from skdcgn.runs.search.sweep import check_same
from skdcgn.runs.store import Store, open_store


def run_on_workers(planned: Plan | DistillationSearch, jobs: int, scheduler: str | None) -> None:
    """Run a plan or a search on workers, and print what came of it; see `Where` for the last two.

    Raises:
        InputError: bad input.
        Interrupted: a signal ended the work.
        SystemExit: with code 1 where a run failed.
    """
    store, force = open_store(), new_force()
    outcome = execute([planned], store, Where(jobs, scheduler), force)
    check(outcome)
    if isinstance(planned, Plan):
        made = {case.identity.digest: outcome.runs[key_of(case, force)] for case in planned.cases}
        show(results(planned, made), planned)


def show(made: pd.DataFrame, plan: Plan) -> None:
    """Print the results of a plan; of several processes the first one does."""
    if leads():
        print(summary(made, plan.shown))


def execute(planned: Sequence[Plan | DistillationSearch], store: Store, where: Where, force: str) -> Outcome:
    """Run plans and searches side by side on workers.

    Args:
        planned: what to run.
        store: the run store.
        where: the workers.
        force: see `lifecycle.make`.

    Raises:
        InputError: bad input.
    """
    stages = [stage_of(plan, store, force) for plan in planned]
    with connect(where, store) as client:
        return Driver(client, store, size(client)).execute(stages)


def check(outcome: Outcome) -> None:
    """See that everything was run.

    Raises:
        Interrupted: a signal ended the work.
        InputError: bad input was all that failed.
        SystemExit: with code 1 where something else failed.
    """
    if outcome.signum is not None:
        raise Interrupted(outcome.signum)
    reasons = {failed.reason for failed in outcome.failed.values()}
    if reasons and all(failed.status == "input" for failed in outcome.failed.values()):
        raise InputError(" ".join(sorted(reasons)))
    if outcome.failed:
        raise SystemExit(1)


def dry_run(plan: Plan | DistillationSearch) -> list[str]:
    """Say how far each run of a plan is, a line each: finished, resumable, or why it would run (again).

    Of a search it says how many trials there are, and each run of the confirmation once the best trial is known.

    Raises:
        InputError: a study of the search's name searches something else.
    """

    store = open_store()
    if isinstance(plan, Plan):
        return [
            f"{case}: {state_of(case, store, 'never' if case.config.runtime.force else '')}"
            for case in plan.everything()
        ]
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


def summary(results: pd.DataFrame, shown: tuple[str, ...] = ()) -> str:
    """Return a table of final metrics: means over seeds with their 95 % Student-t interval and n.

    Runs without any of the metrics, such as students put together, are listed below it with their addresses.

    Args:
        results: see `runs.lifecycle.carry_out`.
        shown: the metrics; all of them by default.
    """

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

    mean, low, high, n = mean_interval(values)
    return f"{mean:.4g}, n=1" if n == 1 else f"{mean:.4g} [{low:.4g}, {high:.4g}], n={n}"
