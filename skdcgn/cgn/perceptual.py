"""Style of images by the Gram matrices of a frozen convolutional net: the perceptual losses of CGN's trainings."""

import itertools
import warnings
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.data import weights
from skdcgn.errors import InputError

Perceptual = Literal["vgg16", "random", "none"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)

_IMAGENET_STD = (0.229, 0.224, 0.225)

_STYLE_SCALE = 5e3  # the authors' Gram distances enter as w^2 * 5e3


def gram_matrix(features: Tensor) -> Tensor:
    """Gram matrices of features (B, C, H, W), divided by C * H * W: (B, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


class StyleFeatures(nn.Module):
    """Four blocks of a frozen convolutional net whose Gram matrices describe an image's style."""

    def __init__(self, blocks: list[nn.Sequential], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @classmethod
    def vgg16(cls, path: Path) -> Self:
        """ImageNet VGG16 up to relu4_3, from torchvision's weights file at `path`."""
        from torchvision.models import vgg  # here, because it takes seconds that few runs need to pay

        layers = vgg.make_layers(vgg.cfgs["D"])[:23]
        state = weights.load_state_dict(path)
        layers.load_state_dict({key: state[f"features.{key}"] for key in layers.state_dict()})
        return cls([layers[:4], layers[4:9], layers[9:16], layers[16:23]], _IMAGENET_MEAN, _IMAGENET_STD)

    @classmethod
    def random(cls) -> Self:
        """A small net as PyTorch initialises it, for where no pretrained one is at hand."""
        widths = (3, 16, 32, 64, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
            for i, o in itertools.pairwise(widths)
        ]
        return cls(blocks, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of images (B, 3, H, W) in [-1, 1] after each block."""
        features = ((images + 1) / 2 - self.mean) / self.std
        outputs = []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        return outputs


def style_distance(generated: list[Tensor], real: list[Tensor], block_weights: tuple[float, ...]) -> Tensor:
    """CGN's perceptual style loss: sum over blocks of w^2 * 5000 * L1 between Gram matrices."""
    return sum(
        weight**2 * _STYLE_SCALE * F.l1_loss(gram_matrix(g.float()), gram_matrix(r.float()))
        for weight, g, r in zip(block_weights, generated, real, strict=True)
        if weight
    )


def style_features(perceptual: Perceptual) -> tuple[Perceptual, StyleFeatures | None]:
    """Return the features that a style loss will really use, and the net.

    Args:
        perceptual: the features to use. Where "vgg16" is not at hand, a warning says that there will be none.
    """
    if perceptual == "random":
        return "random", StyleFeatures.random()
    if perceptual == "vgg16":
        try:
            return "vgg16", StyleFeatures.vgg16(weights.locate("vgg16"))
        except InputError as error:
            warnings.warn(f"CGN training goes on without a perceptual loss: {error}", stacklevel=3)
    return "none", None
