"""Each loss against numbers worked out by hand, and proof that every weight reaches the gradient."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.randomness import stream
from skdcgn.tinygan import losses
from skdcgn.tinygan.losses import LossConfig

EVERYTHING = LossConfig(kl=0.5, cross_entropy=0.5)


def test_pixel_distance_is_the_mean_absolute_difference() -> None:
    teacher = torch.tensor([[[[1.0, -1.0]]]])
    student = torch.tensor([[[[0.5, 0.0]]]])
    assert losses.pixel_distance(teacher, student).item() == pytest.approx(0.75)


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert losses.adversarial_discriminator(real, fake).item() == pytest.approx((0 + 1) / 2 + (0 + 2) / 2)
    assert losses.adversarial_student(fake).item() == pytest.approx(0.5)


def test_feature_distance_weighs_each_level_and_takes_the_last_alphas() -> None:
    teacher = [torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)]
    student = [torch.ones(1, 2, 1, 1), 3 * torch.ones(1, 2, 1, 1)]
    alphas = (100.0, 0.25, 1.0)
    assert losses.feature_distance(teacher, student, alphas).item() == pytest.approx(0.25 * 1 + 3)
    assert losses.feature_distance(teacher, student, alphas, "mse").item() == pytest.approx(0.25 * 1 + 9)
    with pytest.raises(ValueError, match="2 discriminator levels"):
        losses.feature_distance(teacher, student, (1.0,))


def test_channel_kl_by_hand() -> None:
    teacher = torch.log(torch.tensor([0.75, 0.25])).view(1, 2, 1, 1)
    student = torch.log(torch.tensor([0.5, 0.5])).view(1, 2, 1, 1)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.channel_kl(teacher, student).item() == pytest.approx(expected, abs=1e-6)
    assert losses.feature_distance([teacher], [student], (2.0,), "kl").item() == pytest.approx(2 * expected, abs=1e-6)


def test_pixel_kl_by_hand() -> None:
    teacher, student = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, 1, 1, 1)  # probabilities 0.75 and 0.5
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.pixel_kl(teacher, student).item() == pytest.approx(expected, abs=1e-6)


def test_kl_is_zero_for_equal_images_finite_at_the_ends_and_directed() -> None:
    teacher = torch.rand(2, 3, 4, 4, generator=stream(0, "kl")) * 2 - 1
    student = torch.rand(2, 3, 4, 4, generator=stream(1, "kl")) * 2 - 1
    for divergence in (losses.pixel_kl, losses.image_kl, losses.channel_kl):
        assert divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
        assert divergence(teacher, student).item() > 0
        assert divergence(teacher, student).item() != pytest.approx(divergence(student, teacher).item(), rel=1e-3)
    assert math.isfinite(losses.pixel_kl(torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)).item())


def test_temperature_flattens_the_distributions() -> None:
    teacher, student = (torch.randn(2, 5, 2, 2, generator=stream(seed, "t")) for seed in (0, 1))
    assert losses.channel_kl(teacher, student, 8.0) < losses.channel_kl(teacher, student, 1.0) / 8


def _terms(config: LossConfig, student: Tensor, epoch: int = 0, adversarial: bool = True) -> dict[str, Tensor]:
    """The student's terms with a stand-in discriminator whose activations and scores depend on the image."""
    teacher = torch.rand(2, 3, 4, 4, generator=stream(5, "teacher")) * 2 - 1
    weight = torch.randn(6, 3, generator=stream(6, "weight"))

    def activations(images: Tensor) -> list[Tensor]:
        return [images, torch.einsum("oc,bchw->bohw", weight, images)]

    scores = activations(student)[1].square().sum(dim=(1, 2, 3)) / 50
    return losses.generator_terms(
        teacher, student, activations(teacher), activations(student), scores, config, epoch, adversarial
    )


def _gradient(config: LossConfig) -> Tensor:
    student = (torch.rand(2, 3, 4, 4, generator=stream(7, "student")) * 1.8 - 0.9).requires_grad_()
    sum(_terms(config, student).values()).backward()
    return student.grad


@pytest.mark.parametrize("kl_on", ["pixels", "image", "activations"])
@pytest.mark.parametrize("weight", ["feature", "lambda_1", "lambda_2", "kl", "cross_entropy"])
def test_each_weight_changes_the_gradient(weight: str, kl_on: str) -> None:
    config = replace(EVERYTHING, kl_on=kl_on)
    doubled = replace(config, **{weight: 2 * getattr(config, weight)})
    without = replace(config, **{weight: 0.0})
    assert not torch.allclose(_gradient(config), _gradient(doubled), rtol=1e-4, atol=1e-9)
    assert not torch.allclose(_gradient(config), _gradient(without), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_kl_really_enters_the_loss(direction: str) -> None:
    """In the published code the KL term could be 10^6 times larger and the loss stayed the same, bit for bit."""
    student = torch.zeros(2, 3, 4, 4)
    config = replace(EVERYTHING, kl_direction=direction)
    huge = replace(config, kl=1e6 * config.kl)
    total, huge_total = (sum(_terms(c, student).values()).item() for c in (config, huge))
    assert huge_total > 1e4 * total


def test_only_weighted_terms_are_in_the_dict() -> None:
    student = torch.zeros(2, 3, 4, 4)
    assert set(_terms(EVERYTHING, student)) == {"feature", "pixel", "adversarial", "kl", "cross_entropy"}
    assert set(_terms(LossConfig(), student)) == {"feature", "pixel", "adversarial"}
    assert set(_terms(LossConfig(lambda_2=0, feature=0), student)) == {"pixel"}
    assert "adversarial" not in _terms(EVERYTHING, student, adversarial=False)


def test_lambda_1_decays_by_epoch_to_zero() -> None:
    config = LossConfig()
    assert [config.lambda_1_at(epoch) for epoch in (0, 10, 20, 29)] == pytest.approx([0.2, 0.1, 0.0, 0.0])
    student = torch.zeros(2, 3, 4, 4)
    assert _terms(config, student, epoch=10)["pixel"].item() == pytest.approx(
        _terms(config, student, epoch=0)["pixel"].item() / 2
    )


def test_discriminator_cross_entropy_pushes_fakes_down() -> None:
    real = torch.tensor([5.0])
    low, high = (
        losses.discriminator_terms(real, torch.tensor([score]), EVERYTHING)["discriminator_cross_entropy"]
        for score in (-3.0, 3.0)
    )
    assert low < high
    assert set(losses.discriminator_terms(real, real, LossConfig())) == {"discriminator"}


def test_needs_discriminator() -> None:
    native = LossConfig(feature=0, lambda_2=0, lambda_1=1, kl=1)
    assert not native.needs_discriminator
    assert replace(native, kl_on="activations").needs_discriminator
    assert replace(native, cross_entropy=0.1).needs_discriminator
    assert LossConfig().needs_discriminator


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lambda_1": -1.0}, "lambda_1 is -1.0: give a number of 0 or more"),
        ({"feature": 0.0, "lambda_1": 0.0}, "nothing to learn"),
        ({"temperature": 0.0}, "temperature"),
        ({"n_critic": 0}, "n_critic is 0"),
    ],
)
def test_impossible_weights_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LossConfig(**change)
