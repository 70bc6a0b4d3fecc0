"""Move runs between stores: write them into one archive, or add archives to the store.

    python -m skdcgn archive export runs.zip                       all finished runs of the store, with all they kept
    python -m skdcgn archive export some.zip --experiment mnist_kd sweep_kl --status all
    python -m skdcgn archive import laptop.zip server.zip          adds to the store what it does not have

MLFLOW_TRACKING_URI names the store. An archive is verified before anything of it is added. No run is added twice, and
of finished runs of one identity from several machines the first one stays alone: they are one result. The same command
goes on with an import that was cut short. mlruns/README.md says more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from skdcgn.errors import InputError
from skdcgn.files import format_size


@dataclass(frozen=True)
class Export:
    """Write runs of the store into an archive."""

    file: Positional[Path]
    """The archive, a zip file that is not there yet."""
    experiment: tuple[str, ...] = ()
    """Experiments to export; all of the store by default."""
    status: Literal["finished", "all"] = "finished"
    """Finished runs, or unfinished ones as well, without their checkpoints."""


@dataclass(frozen=True)
class Import:
    """Add the runs of archives to the store."""

    files: Positional[tuple[Path, ...]]
    """Archives."""


Config = Annotated[Export, subcommand("export")] | Annotated[Import, subcommand("import")]


def main(config: Export | Import) -> None:
    """Export or import runs.

    Raises:
        InputError: no archive is named; or see `export_runs` and `import_runs`.
    """
    # Imports that take seconds, which --help need not pay.
    from skdcgn.runs.archive.exports import export_runs
    from skdcgn.runs.archive.imports import import_runs
    from skdcgn.runs.store import open_store

    if isinstance(config, Import):
        if not config.files:
            raise InputError("no archive is named: python -m skdcgn archive import FILE...")
        print(import_runs(open_store(), config.files))
        return
    counts = export_runs(open_store(), config.file, config.experiment, config.status == "all")
    size = format_size(config.file.stat().st_size)
    print(f"exported {counts.total()} runs of {len(counts)} experiments: {config.file}, {size}")
