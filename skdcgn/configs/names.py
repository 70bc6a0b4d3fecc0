"""The names that configs choose from."""

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "bf16"]

Dataset = Literal["double_colored", "colored", "wildlife", "digits"]
"""The MNIST variants: the keys of `data.mnist.DATASETS`."""

Family = Literal["tinygan", "slim"]
"""Of students: the paper's TinyGAN, or the slim one in the manner of the teacher."""

Intervention = Literal["none", "noise", "rotation", "transparency", "rotation_transparency"]
"""Modifications of shape masks (see `mechanisms.intervene`)."""

Perceptual = Literal["vgg16", "random", "none"]
"""Features of a style loss."""

Backbone = Literal["resnet50", "small"]
"""Of the invariant ensemble."""

MNIST_CLASSES, MNIST_NOISE, MNIST_SIDE = 10, 32, 32
"""Of every CGN for an MNIST variant: its labels, the length of its noise vector, and the side of its images."""


class Mechanism(StrEnum):
    """One of the independent mechanisms (IM) of a CGN."""

    SHAPE = "shape"
    TEXTURE = "texture"
    BACKGROUND = "background"

    @property
    def channels(self) -> int:
        """Channels of the mechanism's output: 1 for a mask, 3 for color."""
        return 1 if self is Mechanism.SHAPE else 3

    def to_image(self, output: "Tensor", channels: int) -> "Tensor":
        """Map a mechanism's output (B, C, H, W) to an image in [-1, 1] with `channels` channels.

        A one-channel mask becomes gray RGB where three channels are asked for, as the published students see it.
        """
        image = 2 * output - 1 if self is Mechanism.SHAPE else output
        return image.expand(-1, channels, -1, -1)

    def from_image(self, image: "Tensor") -> "Tensor":
        """Invert `to_image`: (B, C, H, W) in [-1, 1] to this mechanism's own range and channels."""
        return (image.mean(dim=1, keepdim=True) + 1) / 2 if self is Mechanism.SHAPE else image


Profile = Literal["smoke", "quick", "full", "paper"]
"""smoke: tests. quick: a first look on a laptop. full: our best answer. paper: the published setting."""
