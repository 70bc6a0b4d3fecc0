"""What is measured, against numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.classifiers.features import digit_features
from skdcgn.data.mnist import TensorSet
from skdcgn.measure import cost, fidelity
from skdcgn.measure.cgn import mask_quality
from skdcgn.measure.features import frechet_distance
from skdcgn.measure.statistics import mean_interval
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream


def test_iou_by_hand() -> None:
    teacher, student = torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    teacher[0, 0, 0, :] = 1  # two pixels, one of them shared: 1 / 3
    student[0, 0, :, 0] = 1
    teacher[1, 0, 0, 0] = student[1, 0, 0, 0] = 0.9  # equal: 1; the third pair is empty: 1
    assert fidelity.mask_iou(teacher, student) == pytest.approx((1 / 3 + 1 + 1) / 3)


def test_nearest_stroke_by_hand() -> None:
    strokes = torch.zeros(3, 1, 2, 2)
    strokes[0, 0, 0, :] = 1  # class 0: a row
    strokes[1, 0, :, 0] = 1  # class 0: a column
    strokes[2, 0, 1, 1] = 1  # class 1: a pixel
    masks = torch.zeros(2, 1, 2, 2)
    masks[0, 0, :, 0] = 0.9  # of class 0: the column itself
    masks[1, 0, 1, :] = 0.6  # of class 1: twice the pixel; the nearer column is of the other class
    measured = fidelity.nearest_stroke_iou(masks, torch.tensor([0, 1]), strokes, torch.tensor([0, 0, 1]))
    assert measured == pytest.approx((1 + 1 / 2) / 2)


def test_equal_images_are_perfect() -> None:
    images = torch.rand(4, 3, 32, 32, generator=stream(0, "images")) * 2 - 1
    measured = fidelity.fidelity(Mechanism.TEXTURE, images, images)
    assert measured["l1"] == 0
    assert measured["ssim"] == pytest.approx(1)
    assert "iou" not in measured


def test_mask_l1_is_measured_in_image_space() -> None:
    measured = fidelity.fidelity(Mechanism.SHAPE, torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.25))
    assert measured["l1"] == pytest.approx(0.5)
    assert measured["iou"] == 1


def test_noise_energy_by_hand() -> None:
    teacher, student = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    teacher[0, 0, 1, 1] = 1.0  # 1 - 0
    student[0, 0, 1, 1] = 0.5
    student[0, 0, 0, 1] = 1.0  # 0.5 - 1 / 4
    assert fidelity.noise_energy(teacher, student) == pytest.approx(0.25**2)
    assert fidelity.noise_energy(teacher, teacher) == pytest.approx(1)
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    assert fidelity.noise_energy(teacher, ramp) == 0  # a slope is no noise
    corners = teacher.clone()
    corners[0, 0, ::2, ::2] = 9.0  # neither inner pixels nor neighbors of one
    assert fidelity.noise_energy(teacher, corners) == pytest.approx(1)


def test_noise_energy_rises_with_noise_and_falls_with_blur() -> None:
    images = torch.rand(8, 3, 16, 16, generator=stream(0, "images"))
    noise = torch.randn(images.shape, generator=stream(0, "noise"))
    energies = [fidelity.noise_energy(images, images + std * noise) for std in (0.0, 0.1, 0.3)]
    assert energies == sorted(energies)
    assert fidelity.noise_energy(images, torch.nn.functional.avg_pool2d(images, 3, 1, 1)) < 0.5


def test_noise_response_is_the_correlation_within_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    teacher = torch.tensor([1.0, -1.0, 5.0, 7.0]).view(4, 1, 1, 1)
    means = torch.tensor([0.0, 0.0, 6.0, 6.0]).view(4, 1, 1, 1)
    half_wrong = torch.tensor([2.0, -2.0, 9.0, 5.0]).view(4, 1, 1, 1)  # deviations 2, -2, 2, -2 against 1, -1, -1, 1
    assert fidelity.noise_response(teacher, 3 * teacher + 2, labels) == pytest.approx(1)
    assert fidelity.noise_response(teacher, -teacher, labels) == pytest.approx(-1)
    assert fidelity.noise_response(teacher, means, labels) == 0
    assert fidelity.noise_response(teacher, half_wrong, labels) == pytest.approx(0)


def test_steps_to_interpolates_and_takes_the_first_crossing() -> None:
    rising = [(10, 0.2), (20, 0.4), (30, 0.3), (40, 0.9)]
    assert fidelity.steps_to(rising, 0.3, rising=True) == pytest.approx(15)
    assert fidelity.steps_to(rising, 0.1, rising=True) == 10
    assert math.isnan(fidelity.steps_to(rising, 0.95, rising=True))
    assert fidelity.steps_to([(4, 1.0), (8, 0.5)], 0.75, rising=False) == pytest.approx(6)


def test_frechet_distance_of_shifted_features_is_the_squared_shift() -> None:
    features = np.random.default_rng(0).normal(size=(500, 4))
    assert frechet_distance(features, features + 2.0) == pytest.approx(4 * 2.0**2, rel=1e-6)


def test_mask_quality_knows_digits_from_masks_that_are_all_the_same() -> None:
    class Stamp(MNISTTeacher):
        """Gives every image of a class the same bar."""

        num_classes = 10

        def __init__(self) -> None:
            pass

        def render(self, mechanism: Mechanism, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(len(labels), 1, 32, 32)
            mask[:, :, 8:24, 14:18] = 1.0
            return mask

    strokes = torch.zeros(20, 1, 32, 32, dtype=torch.bool)
    strokes[:, :, 8:24, 14:18] = True
    pixels = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    quality = mask_quality(Stamp(), TensorSet(pixels, torch.arange(20) % 10, strokes), seed=0)
    assert quality == {"stroke_iou": 1.0, "mask_sameness": 1.0}


def test_interval_by_hand() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high - 2 == pytest.approx(4.30265 * 1 / math.sqrt(3), rel=1e-4)  # t(0.975, 2 degrees of freedom)
    assert interval.n == 3
    assert math.isnan(mean_interval([5.0]).low)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_macs_and_parameters_by_hand() -> None:
    network = nn.Conv2d(2, 4, 3, padding=1)
    assert cost.parameters(network) == 2 * 4 * 9 + 4
    assert cost.macs(lambda: network(torch.zeros(1, 2, 8, 8))) == 2 * 4 * 9 * 64


def test_latency_is_positive() -> None:
    assert cost.latency_ms(lambda: torch.zeros(10).sum(), repeats=3) > 0


def test_digit_features_tell_digits_of_different_colors_apart() -> None:
    images = torch.rand(3, 3, 32, 32, generator=stream(0, "images")) * 2 - 1
    features = digit_features(images)
    assert features.shape == (3, 64)
    assert np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 0
