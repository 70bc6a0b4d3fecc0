"""Classifiers that shortcuts should not fool: CGN's invariant classifier on MNIST, its ensemble on ImageNet.

Both are those of Sauer and Geiger (2021): the small network of the MNIST experiments (here Sec. 4.5 and Table 1), and
one backbone with a head for each mechanism.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.configs.names import Backbone
from skdcgn.data.weights import fill, load_state_dict
from skdcgn.images import IMAGENET_MEAN, IMAGENET_STD
from skdcgn.mechanisms import Mechanism

FEATURES = 64


class InvariantCNN(nn.Module):
    """CGN's small classifier: input batch norm, four convolutions, average pool, one linear layer.

    Convolutions: 5x5 to 32 channels, max pool 3x3 of stride 2, 3x3 to 32, 3x3 of stride 2 to 64, 3x3 to 64, each
    with a ReLU. The last pool averages the whole map, so that any image size works (the original's 7x7 window
    leaves out the last row and column of the 8x8 map). The outputs are logits, where the original returns their
    log-softmax.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 32, 5, padding=2),
            nn.MaxPool2d(3, stride=2, padding=1),  # before the ReLU: the same function, cheaper
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, FEATURES, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, padding=1),
            nn.ReLU(),
        )
        self.linear = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, 64) before the last layer, of images (B, 3, H, W) in [-1, 1]."""
        norm, convolution, *others = self.convolutions
        images = images.contiguous(memory_format=torch.channels_last)  # on a CPU more than twice as fast
        features = _convolve_normalized(norm, convolution, images)
        for layer in others:
            features = layer(features)
        return features.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, 3, H, W) in [-1, 1]."""
        return self.linear(self.features(images))


def _convolve_normalized(norm: nn.BatchNorm2d, convolution: nn.Conv2d, images: Tensor) -> Tensor:
    """Return `convolution(norm(images))`, without the gradient of the convolution's input.

    Only the norm's six weights want that gradient, a fifth of a training step's time on a CPU. Here they scale the
    kernels instead; the shift comes from a channel of ones, which the convolution pads with zeros as it does images.
    """
    if norm.training:
        norm.num_batches_tracked += 1
    normalized = F.batch_norm(
        images, norm.running_mean, norm.running_var, training=norm.training, momentum=norm.momentum, eps=norm.eps
    )
    ones = torch.ones_like(normalized[:, :1])
    scaled = convolution.weight * norm.weight.view(1, -1, 1, 1)
    shift = (convolution.weight * norm.bias.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    kernels = torch.cat([scaled, shift], dim=1)
    return F.conv2d(torch.cat([normalized, ones], dim=1), kernels, convolution.bias, padding=convolution.padding)


Head = Literal["ensemble", "shape", "texture", "background", "shape_texture"]

HEADS: tuple[Head, ...] = ("ensemble", "shape", "texture", "background", "shape_texture")
"""What an `InvariantEnsemble` predicts with: all heads averaged, each alone, and the average without background."""

RESNET50_ADDRESS = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
"""torchvision's ResNet-50 trained on ImageNet (98 MB), with which CGN's ensemble starts."""


class InvariantEnsemble(nn.Module):
    """CGN's invariant classifier for ImageNet: one backbone, and a linear head for each mechanism.

    On counterfactual images each head learns the label of its own mechanism, so that it should look at nothing else;
    real images are classified by the average of the heads' logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, features: int, num_classes: int = 1000) -> None:
        """Put new heads on a backbone.

        Args:
            backbone: maps normalized images (B, 3, H, W) to (B, features).
            features: their number.
            num_classes: logits of each head.
        """
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({mechanism.value: nn.Linear(features, num_classes) for mechanism in Mechanism})
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[Head, Tensor]:
        """Return the logits (B, num_classes) of each of `HEADS`, of images (B, 3, H, W) in [-1, 1]."""
        features = self.backbone(((images + 1) / 2 - self.mean) / self.std)
        shape, texture, background = (self.heads[mechanism.value](features) for mechanism in Mechanism)
        return {
            "ensemble": (shape + texture + background) / 3,
            "shape": shape,
            "texture": texture,
            "background": background,
            "shape_texture": (shape + texture) / 2,
        }


def invariant_ensemble(backbone: Backbone, num_classes: int, weights: Path | None = None) -> InvariantEnsemble:
    """Make an ensemble; new weights come from PyTorch's global generator (see `randomness.seeded`).

    Args:
        backbone: resnet50 is CGN's, torchvision's network; small is a ResNet for 32x32 images.
        num_classes: logits of each head.
        weights: of the backbone, a file in torchvision's format. Its last layer is left out: the heads are new.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    network, features = _resnet50() if backbone == "resnet50" else _small_resnet()
    if weights is not None:
        state = {key: value for key, value in load_state_dict(weights).items() if not key.startswith("fc.")}
        fill(network, state, f"{weights} holds no weights of the backbone {backbone}").train()
    return InvariantEnsemble(network, features, num_classes)


def _resnet50() -> tuple[nn.Module, int]:
    """ResNet-50 without its last layer, and the number of its features."""
    from torchvision.models import resnet50  # slow to import, and for ImageNet only

    network = resnet50(weights=None)
    features = network.fc.in_features
    network.fc = nn.Identity()
    return network, features


def _small_resnet(width: int = 16) -> tuple[nn.Module, int]:
    """A ResNet for small images: three residual blocks of doubling width, the last two halving the side."""
    from torchvision.models.resnet import BasicBlock

    def halve(channels: int) -> BasicBlock:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False), nn.BatchNorm2d(2 * channels)
        )
        return BasicBlock(channels, 2 * channels, 2, shortcut)

    network = nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        BasicBlock(width, width),
        halve(width),
        halve(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return network, 4 * width
