"""The slim student: a generator in the manner of the CGN's own mechanism networks, with less in it.

What makes it light, compared with TinyGAN: one map from the noise to an 8x8 feature map instead of residual blocks
from 4x4; labels that enter as biases and as scale and shift of one norm; and convolutions on the small side of each
upsampling only. Images are in [-1, 1].
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.configs.slim import SlimConfig
from skdcgn.mechanisms import NORMAL, NoisePrior
from skdcgn.tinygan.layers import FullTanh, UpsampledConv2d


class ClassNorm(nn.Module):
    """Batch norm with a scale and a shift for each class (they start at 1 and 0)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        scale, shift = (embedding(labels)[:, :, None, None] for embedding in (self.scale, self.shift))  # (B, C, 1, 1)
        return torch.addcmul(shift, scale, self.norm(features))


class SlimGenerator(nn.Module):
    """A generator of one linear map, one norm, and an upsampling convolution for each doubling of the side."""

    def __init__(self, config: SlimConfig, prior: NoisePrior = NORMAL) -> None:
        """Build the generator.

        Args:
            config: the architecture.
            prior: distribution of the noise that it learns to answer to: its teacher's.
        """
        super().__init__()
        self.config, self.prior = config, prior
        widths = [max(1, config.width >> stage) for stage in range(config.stages)] + [config.channels]
        self.fc = nn.Linear(config.noise_dim, config.width * config.start**2, bias=False)
        self.class_start = nn.Embedding(config.num_classes, self.fc.out_features)
        nn.init.normal_(self.class_start.weight, std=0.5)
        self.norm = ClassNorm(config.width, config.num_classes)
        self.stages = nn.ModuleList(
            UpsampledConv2d(in_channels, out_channels, bias=True)
            for in_channels, out_channels in itertools.pairwise(widths)
        )
        self.tanh = FullTanh()

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Generate images (B, channels, resolution, resolution) in [-1, 1] from z (B, noise_dim) and y (B,)."""
        start = self.config.start
        features = (self.fc(noise) + self.class_start(labels)).unflatten(1, (-1, start, start))
        features = self.norm(features.contiguous(memory_format=torch.channels_last), labels)
        for stage in self.stages:
            features = stage(F.leaky_relu(features, 0.2))
        return self.tanh(features)
