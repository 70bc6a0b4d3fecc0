"""The CGN for MNIST variants: three mechanism networks, state-dict compatible with the authors' weights.

Each mechanism sees the noise u ~ N(0, I_32) beside a learned 10-d label embedding that all three share. The random
patch shuffle that the original applies after texture and background is not in here: see
`mechanisms.shuffle_patches`.
"""

import abc
import math

import torch
from torch import Tensor, nn

from skdcgn.configs.names import MNIST_NOISE
from skdcgn.mechanisms import MASK_EPSILON, Mechanism
from skdcgn.tinygan.layers import FullTanh, UpsampledConv2d

NOISE_DIM = MNIST_NOISE
LABEL_DIM = 10
RESOLUTION = 32


def _start(width: int) -> tuple[nn.Module, ...]:
    """Noise and label embedding to the first feature map, 42 -> (B, width, 8, 8)."""
    return nn.Linear(NOISE_DIM + LABEL_DIM, width * 8 * 8), nn.Unflatten(1, (width, 8, 8))


def _stage(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Double the side: (B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
    convolution = UpsampledConv2d(in_channels, out_channels)
    return nn.Identity(), convolution, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2)


def _shape_net(width: int = 64) -> nn.Sequential:
    """Mask network: 42 -> (B, 1, 32, 32), instance-normalized after every stage."""
    return nn.Sequential(
        *(*_start(width), nn.InstanceNorm2d(width)),
        *(*_stage(width, width // 2), nn.InstanceNorm2d(width // 2)),
        *(*_stage(width // 2, 1), nn.InstanceNorm2d(1)),
    )


def _texture_net(width: int = 64) -> nn.Sequential:
    """Texture or background network: 42 -> (B, 3, 32, 32) in [-1, 1]."""
    return nn.Sequential(
        *(*_start(width), *_stage(width, width), *_stage(width, width // 2)),
        *(nn.Conv2d(width // 2, 3, 3, padding=1), nn.BatchNorm2d(3), FullTanh()),
    )


class MechanismNetworks(nn.Module, abc.ABC):
    """What a CGN for MNIST offers, whatever its networks: `CGN` itself, and the paper's baseline of TinyGANs."""

    num_classes: int
    """Labels are integers below this."""

    @abc.abstractmethod
    def network(self, mechanism: Mechanism) -> nn.Module:
        """Return the network of one mechanism."""

    @abc.abstractmethod
    def forward(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism.

        Args:
            mechanism: which of the three.
            noise: u, (B, 32).
            labels: y, (B,) integers.

        Returns:
            The mask (B, 1, 32, 32), clamped to [0.0001, 0.9999], or a texture or background (B, 3, 32, 32) in
            [-1, 1].
        """


class CGN(MechanismNetworks):
    """Counterfactual generative network for 32x32 MNIST variants (Sauer and Geiger, 2021).

    The sub-modules are named as in the authors' checkpoints: `f_text1` is the texture of the object, `f_text2` the
    background.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_emb = nn.Embedding(num_classes, LABEL_DIM)
        self.f_shape = _shape_net()
        self.f_text1 = _texture_net()
        self.f_text2 = _texture_net()

    def network(self, mechanism: Mechanism) -> nn.Sequential:
        """Return the network of one mechanism."""
        return {
            Mechanism.SHAPE: self.f_shape,
            Mechanism.TEXTURE: self.f_text1,
            Mechanism.BACKGROUND: self.f_text2,
        }[mechanism]

    def forward(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism; see `MechanismNetworks.forward`."""
        output = self.network(mechanism)(torch.cat([noise, self.label_emb(labels)], dim=1))
        output = output.float()  # under autocast: bf16 would round the mask's bounds to 0 and 1
        return output.clamp(MASK_EPSILON, 1 - MASK_EPSILON) if mechanism is Mechanism.SHAPE else output


def initialize_orthogonally(cgn: CGN, flat_start: bool = False, gain: float = 0.2) -> None:
    """Start a CGN as its authors do: orthogonal weights of a small gain, biases 0, batch norm scales about 1.

    Args:
        cgn: to initialize, in place, from PyTorch's global generator.
        flat_start: start with label embeddings at right angles, and with texture and background as flat colors of
            high contrast. Otherwise two labels that happen to be close can stay mixed up; the first patterns may
            take the part that the mask should have; and saturated colors are thousands of Adam's steps away.
        gain: of the weights, and deviation of batch norm's scales.
    """
    for module in cgn.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, gain)
    if flat_start:
        orthogonalize_labels(cgn.label_emb)
        with torch.no_grad():
            for linear, unflatten, *_, norm, _ in (cgn.f_text1, cgn.f_text2):
                channels, *grid = unflatten.unflattened_size
                weight = linear.weight.view(channels, math.prod(grid), -1)
                weight.copy_(weight[:, :1].clone())
                norm.weight.mul_(2.5)  # tanh(2.5) = 0.987


def orthogonalize_labels(embedding: nn.Embedding) -> None:
    """Put embeddings at right angles, at the length that standard normal ones have on average."""
    nn.init.orthogonal_(embedding.weight, gain=embedding.embedding_dim**0.5)


class LinearDiscriminator(nn.Module):
    """CGN's discriminator for the colored variants: image and label embedding through four linear layers."""

    def __init__(self, num_classes: int = 10, width: int = 512) -> None:
        super().__init__()
        self.label_emb = nn.Embedding(num_classes, num_classes)
        self.layers = nn.Sequential(
            nn.Linear(num_classes + 3 * RESOLUTION**2, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Score images (B, 3, 32, 32) of labels (B,): (B,), unbounded."""
        return self.layers(torch.cat([images.flatten(1), self.label_emb(labels)], dim=1)).squeeze(1)


class ConvDiscriminator(nn.Module):
    """Convolutional discriminator for the textured variant; the label enters as constant feature planes."""

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.label_emb = nn.Embedding(num_classes, num_classes)
        self.layers = nn.Sequential(
            nn.Conv2d(3 + num_classes, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Score images (B, 3, 32, 32) of labels (B,): (B,), unbounded."""
        planes = self.label_emb(labels)[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return self.layers(torch.cat([images, planes], dim=1)).flatten()
