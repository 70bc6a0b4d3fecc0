"""Command lines: one typed config per script, defaults from a scale profile, and errors a user can act on."""

import argparse
import dataclasses
import difflib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro
import yaml

from skdcgn.configs.fields import check
from skdcgn.errors import InputError, Interrupted, disk_fault

Config = TypeVar("Config")


def parse(defaults: Mapping[str, Config], description: str | None = None, args: Sequence[str] | None = None) -> Config:
    """Read a config from the command line, over the defaults of the profile that `--profile` names.

    `--config FILE` puts the fields that a YAML or JSON file names in between: over the profile, under the flags.

    Args:
        defaults: the config of each profile. Its `profile` field is that name; every other flag overrides a field.
        description: shown by `--help`; usually the script's docstring.
        args: the arguments, `sys.argv[1:]` by default.

    Raises:
        InputError: the file cannot be read, or names a field or a value that the config cannot have.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    early.add_argument("--profile")
    known, arguments = early.parse_known_args(args)
    overrides = read_overrides(known.config) if known.config else {}
    if known.profile:
        arguments += ["--profile", known.profile]
    profile = known.profile or overrides.get("profile", "quick")
    default = defaults.get(profile) if isinstance(profile, str) else None  # tyro complains of a wrong --profile
    default = override(default or defaults["quick"], overrides, str(known.config))
    description = f"{description or ''}\n\n--config FILE takes fields from a YAML or JSON file, such as a sweep's best."
    # A field of several kinds keeps the kind of its default.
    kinds = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(type(default), default=default, description=description, args=arguments, config=kinds)


def read_overrides(path: Path) -> dict[str, Any]:
    """Read a file of config fields: nested mappings in YAML or JSON, such as `loss: {kl: 0.5}`.

    Raises:
        InputError: there is no such file, or it is something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"--config {path} cannot be read ({reason}): give a YAML or JSON file of fields.") from None
    if not isinstance(content, dict):
        raise InputError(f"--config {path} holds no fields: it should look like `loss: {{kl: 0.5}}`.")
    return content


def override(config: Config, values: Mapping[str, Any], source: str, prefix: str = "") -> Config:
    """Return a config with fields replaced, in nested configs too.

    Args:
        config: a dataclass.
        values: field to value, or to a mapping where the field is a config itself.
        source: where they come from, for messages.
        prefix: of the fields, for messages.

    Raises:
        InputError: there is no such field, or it cannot have such a value.
    """
    hints = get_type_hints(type(config), include_extras=True)
    hints = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    changes = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, 1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(hints)}."
            raise InputError(f"{source} names a field {name}, which this script does not have: {hint}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise InputError(f"{source} gives {name} the value {value!r}: it takes fields, as in `{key}: {{...}}`.")
            changes[key] = override(current, value, source, f"{name}.")
            continue
        changes[key] = check(f"{source}: {name}", value, hints[key], strict=False)
    return dataclasses.replace(config, **changes)


def entry(main: Callable[[], object]) -> NoReturn:
    """Run a script's main and exit: 0 when done, 2 on bad input or a disk's refusal, 128 + N when signal N ended it.

    A reader that has seen enough, as in `... --help | head`, ends it quietly. Of several processes that refuse the same
    bad input, the first one says so.
    """
    try:
        main()
    except InputError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Interrupted as interruption:
        print(f"{interruption}; the same command resumes the run from its checkpoint.", file=sys.stderr)
        sys.exit(128 + interruption.signum)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush has nowhere to go
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if (told := disk_fault(error) or _out_of_memory(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _out_of_memory(error: Exception) -> str | None:
    """Return one sentence on the memory that an error is about, if it is."""
    if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
        return None
    return f"there is not enough memory for this ({' '.join(str(error).split())[:200]}): give smaller numbers."


def speaks(patience: float = 30.0) -> bool:
    """Whether this process, which is about to refuse its input, is the one to say why.

    torchrun ends the other processes by a signal as soon as one has failed. So the first process speaks, and another
    one waits for that signal before it leaves; where none comes, it alone has something to refuse, and says so.

    Args:
        patience: seconds to wait.
    """
    if os.environ.get("RANK", "0") == "0":
        return True
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    deadline = time.monotonic() + patience
    while not signals and time.monotonic() < deadline:
        time.sleep(0.05)  # a signal may come to another thread, and would not end one long sleep
    return not signals
