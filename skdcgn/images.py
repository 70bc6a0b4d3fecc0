"""Images as people look at them: pixels and comparison grids."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB values in [0, 1]: what torchvision's networks expect to be taken off their input."""


def to_uint8(images: Tensor) -> Tensor:
    """Quantize images in [-1, 1] to 0..255."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Map 0..255 back to [-1, 1]."""
    return images.float() / 127.5 - 1


PADDING = 2
"""White pixels around each image of a grid."""


def enlargement(side: int) -> int:
    """Return how many times larger pictures of a side are logged, so that people see something."""
    return max(1, 64 // side)


def grid(rows: Sequence[Tensor], scale: int = 1) -> np.ndarray:
    """Lay out rows of images in one picture.

    Args:
        rows: each (N, 1 or 3, H, W) in [-1, 1]; all rows have the same N, H and W.
        scale: every pixel becomes scale x scale.

    Returns:
        (height, width, 3) uint8. Values are mapped by (x + 1) / 2, never stretched.
    """
    images = torch.stack([row.expand(-1, 3, -1, -1) for row in rows]).float().cpu()  # (R, N, 3, H, W)
    images = F.pad(((images + 1) / 2).clamp(0, 1), (0, PADDING, 0, PADDING), value=1.0)
    count, columns, _, height, width = images.shape
    picture = images.permute(2, 0, 3, 1, 4).reshape(3, count * height, columns * width)
    picture = F.pad(picture, (PADDING, 0, PADDING, 0), value=1.0)
    pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def fit_resolution(images: Tensor, resolution: int) -> Tensor:
    """Bring images (B, C, H, H) to another side: nearest when growing (as the paper did), area when shrinking."""
    if images.shape[-1] == resolution:
        return images
    mode = "nearest" if images.shape[-1] < resolution else "area"
    return F.interpolate(images, size=(resolution, resolution), mode=mode)
