"""Metrics against numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from skdcgn.classifiers import features as classifier_features
from skdcgn.measure import cost, fidelity, statistics
from skdcgn.measure import features as image_features
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


def test_frechet_distance_of_shifted_features_is_the_squared_shift() -> None:
    features = np.random.default_rng(0).normal(size=(500, 4))
    assert image_features.frechet_distance(features, features + 2.0) == pytest.approx(4 * 2.0**2, rel=1e-6)


def test_interval_by_hand() -> None:
    interval = statistics.mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high - 2 == pytest.approx(4.30265 * 1 / math.sqrt(3), rel=1e-4)  # t(0.975, 2 degrees of freedom)
    assert interval.n == 3
    assert math.isnan(statistics.mean_interval([5.0]).low)
    with pytest.raises(ValueError, match="no values"):
        statistics.mean_interval([])


def test_macs_and_parameters_by_hand() -> None:
    network = nn.Conv2d(2, 4, 3, padding=1)
    assert cost.parameters(network) == 2 * 4 * 9 + 4
    assert cost.macs(lambda: network(torch.zeros(1, 2, 8, 8))) == 2 * 4 * 9 * 64


def test_latency_is_positive() -> None:
    assert cost.latency_ms(lambda: torch.zeros(10).sum(), repeats=3) > 0


def test_digit_features_tell_digits_of_different_colours_apart() -> None:
    images = torch.rand(3, 3, 32, 32, generator=stream(0, "images")) * 2 - 1
    features = classifier_features.digit_features(images)
    assert features.shape == (3, 64)
    assert np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 0
