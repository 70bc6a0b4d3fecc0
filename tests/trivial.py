"""Runs that do next to nothing: a config, a case, and a `make` whose work a test puts in.

A module of its own, so that processes that a test starts make the same runs as the test does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.run import Run
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import Runtime


@dataclass(frozen=True)
class Loss:
    kl: float = 1.0


@dataclass(frozen=True)
class Config:
    weight: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None
    loss: Loss = field(default_factory=Loss)
    data: Path | None = None
    runtime: Runtime = field(default_factory=lambda: Runtime(checkpoint_every=3, log_every=1))


class Work:
    """What `make` does; tests replace `do`, which changes no identity: that is of the code as it is written."""

    @staticmethod
    def do(run: Run, config: Config, needs: Mapping[str, RunRecord]) -> None:
        run.log_metrics("final", {"weight": config.weight})


def make(run: Run, config: Config, needs: Mapping[str, RunRecord]) -> None:
    Work.do(run, config, needs)


def other_make(run: Run, config: Config, needs: Mapping[str, RunRecord]) -> None:
    Work.do(run, config, needs)


def case(name: str = "run", config: Config | None = None, **parts: Any) -> Case:
    """Return a case of the experiment `trivial`."""
    tags = {"profile": "smoke", "seed": 0, **parts.pop("tags", {})}
    return Case("trivial", name, config or Config(), parts.pop("make", make), tags, **parts)


def carry_out_one(store: Store, one: Case | None = None) -> RunRecord:
    """Make a run and return it."""
    return store.record(carry_out(Plan([one or case()], ("seed",)), store).iloc[0]["run_id"])
