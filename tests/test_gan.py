"""The conditional GAN that counterfactuals are compared with."""

import math

import numpy as np
import pytest
import torch

from skdcgn.counterfactuals.gan import GANConfig, GANTrainer, sample_images
from skdcgn.data.mnist import TensorSet, make_dataset
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.randomness import seeded
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANGenerator

BRIEF = GANConfig(steps=6, batch_size=4, generator=TinyGANConfig(width=4), discriminator_width=4)


@pytest.fixture(scope="module")
def digits() -> TensorSet:
    return make_dataset("digits", "train", seed=0)


def states_equal(a: GANTrainer, b: GANTrainer) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.result.state_dict().values(), b.result.state_dict().values(), strict=True)
    )


def test_labels_fix_the_colors_as_in_the_data(digits: TensorSet) -> None:
    trainer = GANTrainer(GANConfig(steps=120, batch_size=16, lr=5e-3, ema=0.9), digits)
    for _ in trainer.fit():
        pass
    pixels, labels = sample_images(trainer.result, 400, seed=0)

    def colors(images: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return torch.stack([to_float(images[of == label]).mean(dim=(0, 2, 3)) for label in range(10)])

    distance = torch.cdist(colors(pixels, labels), colors(digits.pixels, digits.labels))
    assert distance.diagonal().mean() < distance.mean() / 3


def test_every_step_reports_all_terms(digits: TensorSet) -> None:
    trainer = GANTrainer(BRIEF, digits)
    steps = list(trainer.fit())
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert trainer.step == trainer.steps == 6
    for _, losses in steps:
        assert set(losses) == {"adversarial", "discriminator_real", "discriminator_generated"}
        assert all(math.isfinite(value) and value >= 0 for value in losses.values())


def test_both_networks_learn_and_the_result_is_an_average(digits: TensorSet) -> None:
    trainer = GANTrainer(BRIEF, digits)
    before = [[p.clone() for p in network.parameters()] for network in (trainer.generator, trainer.discriminator)]
    list(trainer.fit())
    for network, old in zip((trainer.generator, trainer.discriminator), before, strict=True):
        assert all(p.requires_grad for p in network.parameters())
        assert not all(torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True))
    assert not trainer.result.training
    averaged, last = trainer.result.fc.weight, trainer.generator.fc.weight
    assert not torch.equal(averaged, last)
    assert (averaged - last).abs().max() < 0.1


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_training_ends_the_same(digits: TensorSet, stop: int) -> None:
    whole, first, second = (GANTrainer(BRIEF, digits) for _ in range(3))
    list(whole.fit())
    for step, _ in first.fit():
        if step == stop:
            break
    second.load_state_dict(first.state_dict())
    assert second.step == stop
    list(second.fit())
    assert states_equal(whole, second)


def test_the_seed_decides_the_result(digits: TensorSet) -> None:
    first, again, other = (
        GANTrainer(GANConfig(2, 4, generator=BRIEF.generator, seed=seed), digits) for seed in (1, 1, 2)
    )
    torch.rand(1)
    for trainer in (first, again, other):
        list(trainer.fit())
    assert states_equal(first, again)
    assert not states_equal(first, other)


def test_learning_rates_fall_over_the_second_half(digits: TensorSet) -> None:
    trainer = GANTrainer(BRIEF, digits)
    optimizers = trainer._optimizer, trainer._discriminator_optimizer
    rates = [[optimizer.param_groups[0]["lr"] for optimizer in optimizers] for _ in trainer.fit()]  # of the next step
    expected = [[factor * rate for rate in (BRIEF.lr, BRIEF.discriminator_lr)] for factor in (1, 1, 1, 2 / 3, 1 / 3, 0)]
    assert np.allclose(rates, expected)


def test_samples() -> None:
    with seeded(0, "generator"):
        generator = TinyGANGenerator(BRIEF.generator).eval()
    pixels, labels = sample_images(generator, 30, seed=1, batch_size=20)
    assert pixels.shape == (30, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert labels.shape == (30,)
    assert 0 <= labels.min() <= labels.max() < 10
    fewer, fewer_labels = sample_images(generator, 25, seed=1, batch_size=20)
    assert torch.equal(fewer, pixels[:25])
    assert torch.equal(fewer_labels, labels[:25])
    assert not torch.equal(sample_images(generator, 30, seed=2, batch_size=20)[1], labels)


@pytest.mark.parametrize(
    ("wrong", "words"), [({"steps": 0}, "steps is 0"), ({"batch_size": 1}, "batch_size"), ({"ema": 1.0}, "ema")]
)
def test_impossible_trainings_are_told(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        GANConfig(**wrong)


def test_images_that_do_not_fit_are_told(digits: TensorSet) -> None:
    with pytest.raises(InputError, match="resolution is 64: give 32"):
        GANConfig(generator=TinyGANConfig(resolution=64))
    nothing = TensorSet(digits.pixels[:0], digits.labels[:0], digits.strokes[:0])
    with pytest.raises(InputError, match="cannot learn"):
        GANTrainer(BRIEF, nothing)
