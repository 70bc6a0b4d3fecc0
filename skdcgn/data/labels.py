"""Teachers as black boxes, and the records of theirs that a student learns from.

A teacher turns noise, label and mechanism into an output, and shows nothing else of itself. A record keeps noise, label
and image together, so that a student always meets an image with the noise it came from.
"""

import torch
from torch import Tensor


def balanced_labels(per_class: int, num_classes: int) -> Tensor:
    """Return labels 0, 1, ..., num_classes - 1, 0, 1, ... with `per_class` of each: (per_class * num_classes,)."""
    return torch.arange(num_classes).repeat(per_class)


def spread_labels(count: int, num_classes: int) -> Tensor:
    """Return `count` labels (count,), evenly spread over the classes: 0, 1, ... where there are enough of them."""
    if count >= num_classes:
        return torch.arange(count) % num_classes
    return torch.linspace(0, num_classes - 1, count).round().long()
