"""The config of the whole suite."""

from dataclasses import dataclass
from typing import Literal

from skdcgn.configs.fields import Checked, Threads
from skdcgn.configs.names import Profile


@dataclass(frozen=True)
class Config(Checked):
    """What to run of the suite."""

    profile: Profile = "quick"
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    dataset: Literal["auto", "double_colored", "digits"] = "auto"
    """For the MNIST experiments: double-colored MNIST; scikit-learn's digits with a teacher trained here (no network,
    no data); auto takes double_colored wherever what it needs is available."""
    only: tuple[str, ...] = ()
    """Names of the experiments to run, and `report`; all by default."""
    jobs: Threads = 0
    """Runs at the same time, a CPU thread each; 0 is one for each core, as far as the memory goes."""
    scheduler: str | None = None
    """Address of a Dask scheduler, or the file that it wrote: its workers make the runs, on any number of machines."""
    dry_run: bool = False
    """Say for each run whether it is finished, and if not why it would run; run nothing."""
