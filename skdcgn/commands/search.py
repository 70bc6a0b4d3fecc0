"""What the command line of every search does: read a config, run trials, and confirm the best of them."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from skdcgn.commands import experiment
from skdcgn.recipes.sweep import DistillationSearch, conduct
from skdcgn.runs.lifecycle import Plan
from skdcgn.runs.search import check_same
from skdcgn.runs.store import open_store
from skdcgn.runs.studies import find_study, load_study


def main(defaults: Mapping[str, Any], plan: Callable[[Any], DistillationSearch], description: str) -> NoReturn:
    """Run a search as its command line says, and exit.

    With `--dry-run` it says how many trials there are, and which runs of the confirmation.

    Args:
        defaults: the config of each profile.
        plan: from a config to the search.
        description: the script's docstring, shown by `--help`.
    """
    experiment.start(defaults, description, lambda config: dry_run(plan(config)), lambda config: conduct(plan(config)))


def dry_run(search: DistillationSearch) -> list[str]:
    """Say how far the study is, and each run of its confirmation once the best trial is known.

    Raises:
        InputError: a study of this name searches something else.
    """
    store, experiment_name, name = open_store(), search.definition.experiment, search.definition.name
    trials, study = search.search.trials, f"{experiment_name}: study {name!r}"
    runs = f"{len(search.confirmation({}).cases)} runs to confirm the best of them"
    run = find_study(store, experiment_name, name)
    if run is None:
        needed = experiment.dry_run(Plan(list(search.needs.values()), ()))
        return [*needed, f"{study}: {trials} trials to run, then {runs}"]
    check_same(search.definition, run)
    found = load_study(store, experiment_name, name)
    states = found.trials["state"].value_counts()
    told = f"{study}: {', '.join(f'{count} {state}' for state, count in states.items())}; {trials} trials wanted"
    if found.best is None or not found.is_complete(trials):
        return [f"{told}, then {runs}"]
    return [told, *experiment.dry_run(search.confirmation(found.best))]
