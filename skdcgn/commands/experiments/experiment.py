"""What the command line of every experiment and search does: read a config, and run what is planned from it."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from skdcgn import cli
from skdcgn.configs.names import Family
from skdcgn.runs.plan import Plan

if TYPE_CHECKING:
    from skdcgn.recipes.sweep import DistillationSearch

_HELP = """
--dry-run says for each run whether it is finished, and if not why it would run.
--jobs N makes N runs at the same time, a CPU core each; by default one after the other, in the terminal.
--scheduler ADDRESS|FILE has the workers of a Dask scheduler make them, on however many machines they are."""
_FAMILIES = """
--student {0} chooses the family of the students, and the recipe that suits it; by default {1}."""


def main(
    defaults: Mapping[str, Any],
    plan: "Callable[[Any], Plan | DistillationSearch]",
    description: str,
    families: Mapping[Family, Mapping[str, Any]] | None = None,
) -> NoReturn:
    """Run an experiment or a search as its command line says, and exit; with `--dry-run` say how far it is.

    Args:
        defaults: the config of each profile.
        plan: from a config to the cases to run, or to the search.
        description: the script's docstring, shown by `--help`.
        families: of a study that has them, the config of each profile for each family of students, which `--student`
            chooses from; the first one is `defaults`.
    """

    def work() -> None:
        options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        options.add_argument("--dry-run", action="store_true")
        options.add_argument("--jobs", type=int)
        options.add_argument("--scheduler")
        if families is not None:
            options.add_argument("--student", choices=list(families))
        chosen, arguments = options.parse_known_args(sys.argv[1:])
        given, help_text = defaults, f"{description}{_HELP}"
        if families is not None:
            given = families[chosen.student] if chosen.student else defaults
            help_text += _FAMILIES.format("|".join(families), next(iter(families)))
        planned = plan(cli.parse(given, help_text, arguments))
        # Imports that take seconds, which --help need not pay.
        from skdcgn.commands.experiments import execution
        from skdcgn.recipes.sweep import conduct
        from skdcgn.runs.lifecycle import carry_out

        if chosen.dry_run:
            print(*execution.dry_run(planned), sep="\n")
        elif chosen.jobs is not None or chosen.scheduler is not None:
            execution.run_on_workers(planned, chosen.jobs or 0, chosen.scheduler)
        elif isinstance(planned, Plan):
            execution.show(carry_out(planned), planned)
        else:
            conduct(planned)

    cli.entry(work)
