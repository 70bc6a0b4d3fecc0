"""TinyGAN (Chang and Lu, 2020; paper Sec. A.2): the student generator and its projection discriminator.

One generator and one discriminator cover every setting: the published ones (64x64 for MNIST, 256x256 for ImageNet)
and the right-sized native 32x32 student. Images are in [-1, 1].
"""

import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from skdcgn.data.weights import save_state_dict
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.mechanisms import NORMAL, Mechanism, NoisePrior

LabelInput = Literal["none", "one_hot", "embedding"]


@dataclass(frozen=True)
class TinyGANConfig:
    """Architecture of a TinyGAN generator; the discriminator takes what it shares with it."""

    resolution: int = 32
    """Side of the square images."""
    width: int = 16
    """Channels of the last block (c in the paper's tables)."""
    blocks: int = 3
    """Residual blocks (R), each doubling the side: the first feature map is resolution / 2^R wide."""
    noise_dim: int = 32
    """Length of the noise vector z."""
    label_input: LabelInput = "embedding"
    """How the label joins the noise at the input: a trainable embedding, a one-hot vector, or not at all."""
    label_dim: int = 10
    """Width of that trainable embedding."""
    class_dim: int = 10
    """Width of the class embedding that the conditional batch norms read."""
    class_rows: int = 10
    """Rows of the class embedding (the original keeps ImageNet's 1000 even on MNIST)."""
    num_classes: int = 10
    """Classes of the data."""
    channels: int = 3
    """Channels of the images."""
    mask_channels: int = 1
    """Channels of a student that draws masks (the published ones draw them as gray RGB)."""

    def __post_init__(self) -> None:
        if self.resolution % 2**self.blocks:
            raise InputError(
                f"a TinyGAN of {self.blocks} blocks cannot draw {self.resolution}x{self.resolution} images: "
                f"--student.resolution must be a multiple of {2**self.blocks}."
            )
        if self.class_rows < self.num_classes:
            raise InputError(
                f"--student.class-rows {self.class_rows} is less than the {self.num_classes} classes of the data."
            )

    @property
    def input_dim(self) -> int:
        """Length of the generator's input vector: noise and label."""
        return self.noise_dim + {"none": 0, "one_hot": self.num_classes, "embedding": self.label_dim}[self.label_input]

    def for_mechanism(self, mechanism: Mechanism) -> "TinyGANConfig":
        """Return the config of the student that draws one mechanism."""
        return replace(self, channels=self.mask_channels) if mechanism is Mechanism.SHAPE else self


NATIVE_MNIST = TinyGANConfig()
"""Right-sized student for MNIST: 32x32, smaller than the teacher's mechanism that it distils."""

PUBLISHED_MNIST = TinyGANConfig(
    resolution=64, width=32, blocks=5, label_input="one_hot", class_dim=128, class_rows=1000, mask_channels=3
)
"""The paper's MNIST student, 2,101,955 parameters.

Its 42-d input was the teacher's own noise beside the teacher's own label embedding. Under black-box access that
embedding cannot be read; a one-hot label holds the same information in the same 10 places.
"""

PUBLISHED_IMAGENET = TinyGANConfig(
    resolution=256,
    width=32,
    blocks=5,
    noise_dim=128,
    label_input="none",
    class_dim=128,
    class_rows=1000,
    num_classes=1000,
    mask_channels=3,
)
"""The paper's ImageNet student, 6,240,963 parameters."""


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
        features = self.fc(noise).view(len(noise), -1, self.start, self.start)
        features = features.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            features = block(features, condition)
        # In bf16 tanh could not come closer to ±1 than 1/256, too coarse for masks.
        return torch.tanh(self.to_image(F.relu(self.norm(features))).float())


class TinyGANDiscriminator(nn.Module):
    """Spectral-norm projection discriminator: strided 4x4 convolutions, sum pooling, class projection."""

    def __init__(self, config: TinyGANConfig, width: int = 32) -> None:
        """Build a discriminator for images of `config`, with `width` channels in its first layer."""
        super().__init__()
        widths = [config.channels] + [width << layer for layer in range(config.blocks)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1))
            for in_channels, out_channels in itertools.pairwise(widths)
        )
        self.score = spectral_norm(nn.Linear(widths[-1], 1))
        self.class_embedding = spectral_norm(nn.Embedding(config.class_rows, widths[-1]))

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


def load_class_embedding(path: Path, config: TinyGANConfig) -> Tensor:
    """Read a class embedding (rows, class_dim) from a .npy file, such as BigGAN's that TinyGAN starts from.

    Raises:
        InputError: the file is not such an array, or does not fit the config.
    """
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


def save_generator(generator: TinyGANGenerator, folder: Path) -> None:
    """Write a generator as `model.safetensors`, its architecture and its noise prior as `config.json`."""
    save_state_dict(folder / "model.safetensors", generator.state_dict())
    with atomic_path(folder / "config.json") as path:
        content = {**asdict(generator.config), "prior": asdict(generator.prior)}
        path.write_text(json.dumps(content, indent=2) + "\n")


def load_generator(folder: Path) -> TinyGANGenerator:
    """Read a generator of `save_generator`, in eval mode; a file that names no noise prior means the normal one.

    Raises:
        InputError: the folder does not hold one.
    """
    try:
        content = json.loads((folder / "config.json").read_text())
        prior = NoisePrior(**content.pop("prior", {}))
        generator = TinyGANGenerator(TinyGANConfig(**content), prior=prior)
        generator.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} does not hold a student (config.json and model.safetensors): {error}") from None
    return generator.eval()
