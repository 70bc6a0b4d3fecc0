"""TinyGAN (Chang and Lu, 2020; paper Sec. A.2): the student generator and its projection discriminator.

One generator and one discriminator cover every setting: the published ones (64x64 for MNIST, 256x256 for ImageNet)
and the right-sized native 32x32 student. Images are in [-1, 1].
"""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from skdcgn.configs.architecture import Architecture
from skdcgn.configs.slim import SlimConfig
from skdcgn.configs.tinygan import TinyGANConfig
from skdcgn.data.weights import save_state_dict
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.mechanisms import NORMAL, NoisePrior
from skdcgn.tinygan.slim import SlimGenerator


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are a linear map of the class embedding (gamma starts at 1, beta at 0)."""

    def __init__(self, channels: int, class_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.affine = nn.Linear(class_dim, 2 * channels)
        nn.init.normal_(self.affine.weight, std=0.02)
        with torch.no_grad():
            self.affine.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.affine(condition)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        return torch.addcmul(beta, gamma, self.norm(features))


class GeneratorBlock(nn.Module):
    """Residual block with conditional batch norm and depthwise separable convolutions; doubles the side."""

    def __init__(self, in_channels: int, out_channels: int, class_dim: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(in_channels, class_dim)
        self.depthwise1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.pointwise1 = nn.Conv2d(in_channels, out_channels, 1)
        self.norm2 = ConditionalBatchNorm(out_channels, class_dim)
        self.depthwise2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.pointwise2 = nn.Conv2d(out_channels, out_channels, 1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        residual = _upsample(F.relu(self.norm1(features, condition)))
        residual = self.pointwise1(self.depthwise1(residual))
        residual = F.relu(self.norm2(residual, condition))
        residual = self.pointwise2(self.depthwise2(residual))
        # The original upsamples first. A 1x1 convolution commutes with bilinear interpolation (whose weights sum
        # to one), and is four times cheaper on the small side.
        return residual + _upsample(self.shortcut(features))


def _upsample(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


class TinyGANGenerator(nn.Module):
    """TinyGAN's generator: a ResNet with class-conditional batch norm and depthwise separable convolutions."""

    def __init__(
        self, config: TinyGANConfig, class_embedding: Tensor | None = None, prior: NoisePrior = NORMAL
    ) -> None:
        """Build the generator.

        Args:
            config: the architecture.
            class_embedding: initial class embedding (rows, class_dim), such as BigGAN's, which TinyGAN starts
                from; random normal by default.
            prior: distribution of the noise that it learns to answer to: its teacher's.
        """
        super().__init__()
        self.config, self.prior = config, prior
        widest = config.width * 2 ** (config.blocks - 1)
        widths = [widest] + [widest >> block for block in range(config.blocks)]  # e.g. 64, 64, 32, 16
        self.start = config.resolution >> config.blocks
        self.class_embedding = nn.Embedding(config.class_rows, config.class_dim)
        if class_embedding is not None:
            with torch.no_grad():
                self.class_embedding.weight.copy_(class_embedding)
        if config.label_input == "embedding":
            self.label_embedding = nn.Embedding(config.num_classes, config.label_dim)
        self.fc = nn.Linear(config.input_dim, widest * self.start**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(in_channels, out_channels, config.class_dim)
            for in_channels, out_channels in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(config.width)
        self.to_image = nn.Conv2d(config.width, config.channels, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Generate images (B, channels, resolution, resolution) in [-1, 1] from z (B, noise_dim) and y (B,)."""
        if self.config.label_input == "one_hot":
            noise = torch.cat([noise, F.one_hot(labels, self.config.num_classes).to(noise)], dim=1)
        elif self.config.label_input == "embedding":
            noise = torch.cat([noise, self.label_embedding(labels)], dim=1)
        condition = self.class_embedding(labels)
        features = self.fc(noise).unflatten(1, (-1, self.start, self.start))
        features = features.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            features = block(features, condition)
        # In bf16 tanh could not come closer to ±1 than 1/256, too coarse for masks.
        return torch.tanh(self.to_image(F.relu(self.norm(features))).float())


class TinyGANDiscriminator(nn.Module):
    """Spectral-norm projection discriminator: strided 4x4 convolutions, sum pooling, class projection."""

    def __init__(self, config: Architecture, width: int = 32) -> None:
        """Build a discriminator for images of `config`, with `width` channels in its first layer."""
        super().__init__()
        widths = [config.channels] + [width << layer for layer in range(config.levels)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1))
            for in_channels, out_channels in itertools.pairwise(widths)
        )
        self.score = spectral_norm(nn.Linear(widths[-1], 1))
        self.class_embedding = spectral_norm(nn.Embedding(config.discriminator_classes, widths[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Score images.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: y, (B,).

        Returns:
            Unbounded scores (B,), and the activations D_i of Eq. 5, first to last layer.
        """
        activations = []
        features = images.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            features = F.leaky_relu(layer(features), 0.01)
            activations.append(features)
        pooled = features.sum(dim=(2, 3))  # (B, C)
        projection = (self.class_embedding(labels) * pooled).sum(dim=1)
        return self.score(pooled).squeeze(1) + projection, activations


def load_class_embedding(path: Path, config: Architecture) -> Tensor:
    """Read a class embedding (rows, class_dim) from a .npy file, such as BigGAN's that TinyGAN starts from.

    Raises:
        InputError: the file is not such an array, or does not fit the config.
    """
    if not isinstance(config, TinyGANConfig):
        raise InputError(f"class_embedding is of TinyGAN students: leave it out for a {config.family} one.")
    try:
        embedding = torch.from_numpy(np.array(np.lib.format.open_memmap(path, mode="r")))  # pickles are refused
    except Exception as error:  # a damaged file can raise almost anything
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} is not a readable .npy class embedding ({reason}): give a file of numbers.") from None
    if embedding.shape != (config.class_rows, config.class_dim):
        raise InputError(
            f"{path} holds an array of shape {tuple(embedding.shape)}, but the student's class embedding is "
            f"({config.class_rows}, {config.class_dim}): set --student.class-rows and --student.class-dim to match."
        )
    return embedding


Student = TinyGANGenerator | SlimGenerator


def build_student(config: Architecture, class_embedding: Tensor | None = None, prior: NoisePrior = NORMAL) -> Student:
    """Build the student of an architecture; a `TinyGANGenerator` may start from a class embedding."""
    if isinstance(config, SlimConfig):
        return SlimGenerator(config, prior)
    return TinyGANGenerator(config, class_embedding, prior)


def save_generator(generator: Student, folder: Path) -> None:
    """Write a generator as `model.safetensors`, its architecture and its noise prior as `config.json`."""
    save_state_dict(folder / "model.safetensors", generator.state_dict())
    with atomic_path(folder / "config.json") as path:
        content = {"family": generator.config.family, **asdict(generator.config), "prior": asdict(generator.prior)}
        path.write_text(json.dumps(content, indent=2) + "\n")


def load_generator(folder: Path) -> Student:
    """Read a generator of `save_generator`, in eval mode.

    A file that names no noise prior means the normal one; one that names no family means TinyGAN.

    Raises:
        InputError: the folder does not hold one.
    """
    try:
        content = json.loads((folder / "config.json").read_text())
        prior = NoisePrior(**content.pop("prior", {}))
        kind = {"tinygan": TinyGANConfig, "slim": SlimConfig}[content.pop("family", "tinygan")]
        generator = build_student(kind(**content), prior=prior)
        generator.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} does not hold a student (config.json and model.safetensors): {error}") from None
    return generator.eval()
