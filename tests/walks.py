"""Runs that take as long as a test wants, and end where they do only if no step is lost: random walks with checkpoints.

A module of its own, so that workers in other processes can import it.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skdcgn.runs.loop import train
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.run import Run
from skdcgn.runs.store import RunRecord
from skdcgn.runtime import Runtime
from skdcgn.training import RandomState, Trainer


@dataclass(frozen=True)
class Config:
    """A walk."""

    steps: int = 20
    seed: int = 0
    profile: str = "smoke"
    runtime: Runtime = field(default_factory=lambda: Runtime(checkpoint_every=2, log_every=1, device="cpu"))


class Walk(Trainer[Tensor]):
    """A random walk from a start; every step takes `PAUSE`."""

    pause = 0.05

    def __init__(self, config: Config, start: float) -> None:
        super().__init__(config.steps)
        self.place = self.register("place", nn.Linear(1, 1, bias=False))
        nn.init.constant_(self.place.weight, start)
        self._draws = torch.Generator().manual_seed(config.seed)
        self.register("draws", RandomState(self._draws))

    def batches(self) -> Iterator[Tensor]:
        while self.step < self.steps:
            yield torch.randn(1, 1, generator=self._draws)

    def training_step(self, batch: Tensor) -> dict[str, Tensor]:
        time.sleep(self.pause)
        with torch.no_grad():
            self.place.weight += batch
        return {"place": self.place.weight.sum()}


def make_walk(run: Run, config: Config, needs: Mapping[str, RunRecord]) -> None:
    """Walk from where the needed walks ended."""
    trainer = Walk(config, sum(need.final["place"] for need in needs.values()))
    if config.seed == FAILING:
        raise ValueError("this way is closed")
    train(trainer, run, config.runtime, lambda step: None, (), "walk")
    run.log_tensors("walk", trainer.place.state_dict())
    run.log_metrics("final", {"place": trainer.place.weight.item()})


FAILING = 99
"""The seed of a walk that fails."""


def walk(seed: int, steps: int = 20, needs: Mapping[str, Case] | None = None, seconds: float = 1.0) -> Case:
    """Return the case of a walk."""
    name = f"walk {seed}"
    return Case(
        "walks", name, Config(steps, seed), make_walk, {"profile": "smoke", "seed": seed}, needs or {}, {}, seconds
    )


def tree(width: int = 4, steps: int = 20, first: int = 0) -> Plan:
    """Return walks from 0, walks from where two of them end, and one from where all end."""
    roots = [walk(first + seed, steps) for seed in range(width)]
    inner = [
        walk(first + width + index, steps, {"left": left, "right": right})
        for index, (left, right) in enumerate(zip(roots[::2], roots[1::2], strict=True))
    ]
    last = walk(first + 2 * width, steps, {str(index): case for index, case in enumerate(inner)})
    return Plan([*roots, *inner, last], ("seed",))
