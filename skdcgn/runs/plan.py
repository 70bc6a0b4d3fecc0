"""A study as a plan of cases: config in, run out, what it needs, what it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from skdcgn.configs.fields import Checked, PositiveFloat, PositiveInt, Seed, StudyName
from skdcgn.configs.names import Profile
from skdcgn.runs.identity import Identity, identify
from skdcgn.runtime import Runtime

if TYPE_CHECKING:  # a plan is made without the store, which is slow to import
    from skdcgn.runs.run import Run
    from skdcgn.runs.store import RunRecord

Make = Callable[["Run", Any, Mapping[str, "RunRecord"]], None]
"""Makes a run: takes the run to log to, the case's config, and the finished runs that the case needs, by name."""


@dataclass(frozen=True)
class RunConfig(Checked):
    """What the config of every run has, and that of every study."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    runtime: Runtime = field(default_factory=Runtime, kw_only=True)


@dataclass(frozen=True)
class SearchConfig(Checked):
    """How a study searches; what its trials train is said elsewhere."""

    study: StudyName | None = None
    """Name of the study to begin or to go on with; by default one for each setting."""
    trials: PositiveInt = 30
    """Trials of the study in all, whoever runs them, the pruned ones included."""
    sampler: Literal["tpe", "random", "gp", "qmc"] = "tpe"
    """What proposes trials: Parzen estimators, chance, a Gaussian process, or a low-discrepancy sequence."""
    pruner: Literal["median", "none"] = "median"
    """What stops trials early: being below the median of the earlier ones at the same step, or nothing."""
    seed: Seed = 0
    """Of the sampler."""
    dead_after: PositiveFloat = 60.0
    """Minutes after which a trial of another machine that has not ended is taken for dead."""


@dataclass(frozen=True, eq=False)
class Case:
    """One run of a study: config in, run out."""

    experiment: str
    """The MLflow experiment: the stem of the script that it belongs to."""
    name: str
    """For messages and the UI; it tells apart the cases of an experiment, profile and data set."""
    config: RunConfig
    """With `inputs` and `needs` all that the result depends on but the code."""
    make: Make
    """At the top level of a module."""
    tags: Mapping[str, object] = field(default_factory=dict)
    needs: Mapping[str, "Case"] = field(default_factory=dict)
    """Cases whose runs it uses, by the names under which `make` gets them."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What else it reads, by name: the SHA-256 of a file, such as the teacher's."""
    seconds: float = 1.0
    """What it takes on one CPU core, about."""
    parallel: bool = False
    """Whether the processes that torchrun starts share the work; else the first one does it."""
    description: str = ""
    """Markdown, shown in the UI."""

    @cached_property
    def identity(self) -> Identity:
        """What decides the result."""
        needed = {name: case.identity.digest for name, case in self.needs.items()}
        return identify(self.config, self.make, {**self.inputs, **needed})

    def __str__(self) -> str:
        return f"{self.experiment}: {self.name}"


@dataclass(frozen=True)
class Plan:
    """The cases of one start of a script."""

    cases: Sequence[Case]
    index: Sequence[str]
    """The tags that tell its results apart."""
    shown: Sequence[str] = ()
    """The final metrics to print; all of them by default."""
    runtime: Runtime = field(default_factory=Runtime)

    def everything(self) -> list[Case]:
        """Return the cases and all that they need, each once, needed ones first."""
        found: dict[tuple[str, str], Case] = {}

        def add(case: Case) -> None:
            for needed in case.needs.values():
                add(needed)
            found.setdefault((case.experiment, case.identity.digest), case)

        for case in self.cases:
            add(case)
        return list(found.values())
