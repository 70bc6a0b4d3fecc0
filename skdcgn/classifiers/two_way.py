"""The task of telling counterfactuals from real images: what the caption of the paper's Table 1 describes."""

import math

import torch
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.randomness import stream


def two_way_sets(
    real: Tensor, counterfactual: Tensor, images: int, seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Put real images (0) and counterfactuals (1) together, as many of both, for training and held out.

    Args:
        real: pixels (N, 3, H, W).
        counterfactual: pixels (M, 3, H, W), those of one mask next to each other.
        images: of each kind in training, at most three quarters of the smaller set; a third of them is held out.
        seed: of the choice of real images.

    Returns:
        Pixels and labels of the training set, and of the held-out set. No image is in both, and no mask either, but
        perhaps one.

    Raises:
        InputError: fewer than 4 images of a kind.
    """
    available = min(len(real), len(counterfactual))
    training = min(images, 3 * available // 4)
    held_out = min(math.ceil(training / 3), available - training)
    if training < 1 or held_out < 1:
        raise InputError(f"the two-way classifier needs at least 4 images of each kind, got {available}.")
    order = torch.randperm(len(real), generator=stream(seed, "two-way", "real images"))
    parts = []
    for start, count in ((0, training), (training, held_out)):
        pixels = torch.cat([real[order[start : start + count]], counterfactual[start : start + count]])
        parts.append((pixels, torch.arange(2).repeat_interleave(count)))
    return parts[0], parts[1]
