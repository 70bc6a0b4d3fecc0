"""The base of the trainers: averages and schedules by hand, and what a checkpoint holds."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from skdcgn.training import (
    RandomState,
    Trainer,
    cosine,
    descend,
    linear_decay,
    state_digest,
    thirds,
    warm_cosine,
)


class Line(Trainer[Tensor]):
    """Fits a line, with batch norm in front of it, to noise; its loss is the distance to 1."""

    def __init__(self, steps: int = 6, decay: float = 0.5, average_buffers: bool = True) -> None:
        super().__init__(steps)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.network = self.register("network", network)
        sgd = torch.optim.SGD(network.parameters(), lr=0.1)
        self.optimizer = self.register_optimizer("optimizer", sgd, cosine(steps))
        self.result = self.average("result", network, decay, average_buffers)
        self.draws = torch.Generator().manual_seed(0)
        self.register("draws", RandomState(self.draws))

    def batches(self) -> Iterator[Tensor]:
        while self.step < self.steps:
            yield torch.randn(4, 2, generator=self.draws)

    def training_step(self, batch: Tensor) -> dict[str, Tensor]:
        terms = {"near": (self.network(batch) - 1).square().mean(), "far": 0.5 * batch.mean()}
        return {**terms, "total": descend(self.optimizer, terms)}


def test_a_step_reports_its_terms_and_advances() -> None:
    trainer = Line()
    steps = list(trainer.fit())
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert trainer.step == trainer.steps == 6
    for _, losses in steps:
        assert losses["total"] == pytest.approx(losses["near"] + losses["far"])
    assert steps[-1][1]["near"] < steps[0][1]["near"]


@pytest.mark.parametrize("average_buffers", [True, False])
def test_the_average_by_hand(average_buffers: bool) -> None:
    trainer = Line(decay=0.3, average_buffers=average_buffers)
    mean = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    for step, _ in trainer.fit():
        decay = min(0.3, step / (9 + step))
        for name, value in trainer.network.state_dict().items():
            averaged = value.is_floating_point() and (average_buffers or "running" not in name)
            mean[name] = mean[name].lerp(value, 1 - decay) if averaged else value.clone()
    for name, value in trainer.result.state_dict().items():
        assert torch.equal(value, mean[name]), name
    assert not trainer.result.training
    assert not any(parameter.requires_grad for parameter in trainer.result.parameters())


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_training_is_bit_identical(stop: int) -> None:
    whole, first, second = Line(), Line(), Line()
    expected = dict(whole.fit())
    steps = first.fit()
    seen = dict(next(steps) for _ in range(stop))
    second.load_state_dict(first.state_dict())
    assert second.step == stop
    assert seen | dict(second.fit()) == expected
    assert state_digest(whole.result.state_dict()) == state_digest(second.result.state_dict())


def test_schedules_by_hand() -> None:
    assert [cosine(4)(step) for step in (0, 1, 2, 4)] == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0])
    assert [linear_decay(100, 0.5)(step) for step in (0, 49, 50, 75, 99)] == pytest.approx([1, 1, 1, 0.5, 0.02])
    assert linear_decay(100, 1.0)(99) == 1
    assert [thirds(9)(step) for step in (0, 2, 3, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [warm_cosine(100, 4)(step) for step in (0, 3, 4, 52, 100)] == pytest.approx([0.25, 1, 1, 0.5, 0], abs=1e-6)
    assert warm_cosine(20, 100)(1) == 1  # a tenth of the steps at most


def test_the_digest_is_of_names_and_values_alone() -> None:
    a, b = torch.zeros(2), torch.ones(3)
    assert state_digest({"a": a, "b": b}) == state_digest({"b": b, "a": a}) == state_digest({"a": a}, {"b": b})
    others = [{"a": b, "b": b}, {"c": a, "b": b}, {"a": a}]
    assert len({state_digest(state) for state in ({"a": a, "b": b}, *others)}) == 4
