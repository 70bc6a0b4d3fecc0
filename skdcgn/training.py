"""The base of every training: the loop over steps, what a checkpoint holds, moving averages, and schedules.

A subclass of `Trainer` sets up its networks, registers whatever has a state, and says what a batch is and what one
step learns from it. `skdcgn.runs.loop.train` then runs it as a tracked run.
"""

import abc
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from skdcgn import distributed

Batch = TypeVar("Batch")

Schedule = Callable[[int], float]
"""From the number of steps done to the factor on the learning rate."""


class Stateful(Protocol):
    """What a checkpoint can hold: networks, optimizers, schedules, averages and resumable streams of data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


class RandomState:
    """The state of a random generator, as part of a checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"].cpu())


Part = TypeVar("Part", bound=Stateful)


class Trainer(abc.ABC, Generic[Batch]):
    """A training that can stop after any step, and resume from its `state_dict` bit for bit.

    Attributes:
        step: steps done.
        steps: steps to do in all.
        parallel: whether all processes that torchrun started take each step together, on their shares of the batch
            (see `distributed`); otherwise a process trains alone.
    """

    def __init__(self, steps: int, parallel: bool = False) -> None:
        self.step, self.steps, self.parallel = 0, steps, parallel
        self._parts: dict[str, Stateful] = {}
        self._averages: list[tuple[AveragedModel, nn.Module]] = []

    @abc.abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the steps that are still to do, each drawn when its step begins."""

    @abc.abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Move the weights by one step, and return the loss terms by name, each a scalar."""

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train to the last step, from wherever the trainer is, yielding (steps done, losses) after each."""
        for batch in self.batches():
            losses = self.update(batch)
            yield self.step, losses

    def update(self, batch: Batch) -> dict[str, float]:
        """Take one step on a batch, schedules and averages included, and return the loss terms by name."""
        terms = self.training_step(batch)
        for part in self._parts.values():
            if isinstance(part, LRScheduler):
                part.step()
        for average, network in self._averages:
            average.update_parameters(network)
        self.step += 1
        values = torch.stack([term.detach() for term in terms.values()])
        if self.parallel:
            values = distributed.mean(values)
        return dict(zip(terms, values.tolist(), strict=True))  # one transfer from the device

    def register(self, name: str, part: Part) -> Part:
        """Make something part of the checkpoint, under a name of its own, and return it; schedules advance by step."""
        self._parts[name] = part
        return part

    def register_optimizer(self, name: str, optimizer: Optimizer, schedule: Schedule | None = None) -> Optimizer:
        """Register an optimizer, and what its learning rate is multiplied by from step to step; return it."""
        if schedule is not None:
            self.register(f"{name}_schedule", LambdaLR(optimizer, schedule))
        if self.parallel:
            distributed.average_gradients(optimizer)
        return self.register(name, optimizer)

    def average(self, name: str, network: nn.Module, decay: float, average_buffers: bool = True) -> nn.Module:
        """Register a moving average of a network's weights, and return the network that has these weights.

        After n steps the decay is min(decay, n / (9 + n)), so that the random initial weights are soon forgotten.

        Args:
            name: in the checkpoint.
            network: the network in training.
            decay: share of the average that a step keeps, in [0, 1).
            average_buffers: whether batch norm's statistics are averaged too; otherwise they are copied.

        Returns:
            A frozen copy of the network, in evaluation mode.
        """
        average = AveragedModel(network, multi_avg_fn=functools.partial(_move, decay), use_buffers=average_buffers)
        average.n_averaged += 1  # the initial weights: PyTorch would put the first step's in their place
        self._averages.append((self.register(name, average), network))
        return average.module.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later step depends on, as tensors and plain values."""
        return {"step": self.step, **{name: part.state_dict() for name, part in self._parts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the trainer stopped that `state` comes from; it must have had the same config."""
        self.step = state["step"]
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


@torch.no_grad()
def _move(decay: float, averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor) -> None:
    """Move averages of one data type towards the present values; integers, such as counters, are copied."""
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, values, 1 - min(decay, count.item() / (9 + count.item())))
    else:
        torch._foreach_copy_(averages, values)


def descend(optimizer: Optimizer, terms: Mapping[str, Tensor]) -> Tensor:
    """Take one step of an optimizer down the sum of the terms, and return the sum."""
    total = sum(terms.values())
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    return total


def cosine(steps: int) -> Schedule:
    """Lower the learning rate along half a cosine to 0."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def warm_cosine(steps: int, warmup: int) -> Schedule:
    """Raise the learning rate linearly over `warmup` steps, a tenth of all at most; then as `cosine`."""
    warmup = min(warmup, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        # In single precision: the students that exist were trained so, and a factor's last bit would change them.
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())

    return factor


def one_cycle(steps: int, warmup: float) -> Schedule:
    """Raise the learning rate linearly over the fraction `warmup` of the steps, then lower it along half a cosine."""
    rising = warmup * steps

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))

    return factor


def linear_decay(steps: int, start: float) -> Schedule:
    """Lower the learning rate linearly to 0 after the fraction `start` of the steps; 1 keeps it."""
    return lambda step: min(1.0, (steps - step) / steps / (1 - start)) if start < 1 else 1.0


def thirds(steps: int) -> Schedule:
    """Lower the learning rate to a tenth after each third of the steps."""
    return lambda step: 0.1 ** (3 * step // steps)


def state_digest(*states: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of one or several networks' weights: of the names and bytes of their tensors."""
    digest = hashlib.sha256()
    for state in states:
        for key, tensor in sorted(state.items()):
            digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
