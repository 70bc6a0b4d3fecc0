"""One training in several processes, as torchrun starts them: who is who, and what they have to agree on.

    torchrun --nproc_per_node 4 experiments/imagenet_kd.py --profile paper

Gradients are averaged by PyTorch's DistributedDataParallel. A batch is shared out over the processes, so that a config
means the same on any number of GPUs, but each process normalises over its own share. Process 0 alone logs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skdcgn.distributed import broadcast, world

if TYPE_CHECKING:
    from skdcgn.runs.run import Run
    from skdcgn.runs.store import Store


@dataclass(frozen=True)
class Follower:
    """A run as all processes but the first see it: they take part in it and log nothing."""

    store: "Store"
    run_id: str
    finished: bool
    resumed: bool
    checkpoint: Path
    final: Mapping[str, float]

    def log_metrics(self, prefix: str, metrics: Mapping[str, float], step: int = 0) -> None: ...

    def flush(self) -> None: ...


def lead(run: "Run") -> None:
    """Tell the other processes about a run that process 0 has started."""
    if world() > 1:
        broadcast((run.run_id, run.finished, run.resumed, run.checkpoint))


def follow(store: "Store") -> Follower:
    """Wait for process 0 to start a run, and return it as the others see it."""
    return Follower(store, *broadcast(None), final={})
