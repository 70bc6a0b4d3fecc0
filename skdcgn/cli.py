"""Command lines: one typed config per script, defaults from a scale profile, and errors a user can act on."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

import tyro

from skdcgn.errors import InputError
from skdcgn.runtime import Interrupted

Config = TypeVar("Config")


def parse(defaults: Mapping[str, Config], description: str | None = None, args: Sequence[str] | None = None) -> Config:
    """Read a config from the command line, over the defaults of the profile that `--profile` names.

    Args:
        defaults: the config of each profile. Its `profile` field is that name; every other flag overrides a field.
        description: shown by `--help`; usually the script's docstring.
        args: the arguments, `sys.argv[1:]` by default.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    default = defaults.get(_peek_profile(arguments), defaults["quick"])  # tyro complains of a wrong name
    return tyro.cli(type(default), default=default, description=description, args=arguments)


def _peek_profile(arguments: list[str]) -> str | None:
    """Find the value of `--profile NAME` or `--profile=NAME`."""
    for position, argument in enumerate(arguments):
        if argument == "--profile" and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith("--profile="):
            return argument.removeprefix("--profile=")
    return None


def entry(main: Callable[[], object]) -> NoReturn:
    """Run a script's main and exit: 0 when done, 2 on bad input, 128 + N when signal N ended it."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        print(f"{interruption}; the same command resumes the run from its checkpoint.", file=sys.stderr)
        sys.exit(128 + interruption.signum)
    sys.exit(0)
