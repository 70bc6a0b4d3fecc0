"""A plain conditional GAN for the MNIST variants: the source of training images that a CGN is compared with.

It learns the images as they are, so that the digit's label fixes colour and background as it does in the training
data: its images are no counterfactuals (Sauer and Geiger, 2021, Table 1; here Sec. 1). As in `cgn_training`, all that
is random in step n comes from streams named after n, so that a resumed run goes on exactly as the unbroken one.
"""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from skdcgn.cgn.adversarial import move_average
from skdcgn.cgn.mnist import ConvDiscriminator
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError
from skdcgn.images import to_uint8
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANConfig, TinyGANGenerator


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """Architecture and training of the conditional GAN: a TinyGAN generator against CGN's convolutional
    discriminator, with least-squares losses."""

    steps: int = 3000
    """Steps in all, one of generator and discriminator each."""
    batch_size: int = 32
    """Images in a batch."""
    lr: float = 5e-4
    """Adam's learning rate of the generator; it falls linearly to 0 over the second half."""
    discriminator_lr: float = 1e-3
    """That of the discriminator."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's momenta."""
    ema: float = 0.99
    """Decay of the average of the generator's weights, which is the result."""
    generator: TinyGANConfig = NATIVE_MNIST
    """Architecture of the generator."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimisers stay in fp32."""
    seed: int = 0
    """Of initial weights, batches and noise."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a GAN cannot be trained for {self.steps} steps: give at least 1.")
        if self.batch_size < 2:
            raise InputError(f"a GAN needs a batch_size of at least 2 for batch norm, got {self.batch_size}.")
        if not 0 <= self.ema < 1:
            raise InputError(f"the GAN's ema must lie in [0, 1), got {self.ema}.")

    def lr_factor(self, step: int) -> float:
        """Return the factor on the learning rates of a step (from 0)."""
        return min(1.0, 2 * (self.steps - step) / self.steps)


class GANTrainer:
    """Trains a conditional GAN; a `training.Trainer`."""

    def __init__(self, config: GANConfig, data: TensorSet, device: torch.device | str = "cpu") -> None:
        """Start a training.

        Args:
            config: architecture and training.
            data: images to learn, 32x32.
            device: where to train.

        Raises:
            InputError: the images do not fit the generator.
        """
        size = config.generator.resolution
        if len(data) == 0 or tuple(data.pixels.shape[2:]) != (size, size):
            raise InputError(
                f"a GAN that draws {size}x{size} images cannot learn from {tuple(data.pixels.shape)} pixels (N, C, H, "
                "W)."
            )
        self.config, self.data, self.device = config, data, torch.device(device)
        self.step, self.steps = 0, config.steps
        with seeded(config.seed, "gan"):
            generator = TinyGANGenerator(config.generator)
            discriminator = ConvDiscriminator(config.generator.num_classes, config.discriminator_width)
        self.generator = generator.to(self.device, memory_format=torch.channels_last)
        self.discriminator = discriminator.to(self.device, memory_format=torch.channels_last)
        self.result = copy.deepcopy(self.generator).eval().requires_grad_(False)
        """The generator of averaged weights."""
        self._optimisers = {
            "generator": torch.optim.Adam(self.generator.parameters(), config.lr, config.betas),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), config.discriminator_lr, config.betas),
        }
        self._base_lr = {"generator": config.lr, "discriminator": config.discriminator_lr}

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train to the last step, from wherever the trainer stands, yielding (steps done, losses) after each."""
        while self.step < self.steps:
            generator = stream(self.config.seed, "gan", "batch", self.step)
            index = torch.randint(len(self.data), (self.config.batch_size,), generator=generator)
            yield self.step + 1, self.update(self.data.images(index), self.data.labels[index])

    def update(self, real: Tensor, labels: Tensor) -> dict[str, float]:
        """Take one step of generator and discriminator.

        Args:
            real: (B, 3, H, W) in [-1, 1].
            labels: (B,); the generated images have the same.

        Returns:
            The terms of both objectives.
        """
        real, labels = real.to(self.device), labels.to(self.device)
        noise_stream = stream(self.config.seed, "gan", "noise", self.step, device=self.device)
        noise = torch.randn(len(labels), self.config.generator.noise_dim, generator=noise_stream, device=self.device)
        with autocast(self.device, self.config.precision):
            generated = self.generator(noise, labels)

        self.discriminator.requires_grad_(False)
        terms = {"adversarial": (self._score(generated, labels) - 1).square().mean()}
        self._descend("generator", terms)
        self.discriminator.requires_grad_(True)
        critic_terms = {
            "discriminator_real": 0.5 * (self._score(real, labels) - 1).square().mean(),
            "discriminator_generated": 0.5 * self._score(generated.detach(), labels).square().mean(),
        }
        self._descend("discriminator", critic_terms)
        move_average(self.result, self.generator, self.config.ema, self.step)
        self.step += 1
        terms |= critic_terms
        return dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later step depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()},
            **{name: network.state_dict() for name, network in self._networks().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the trainer stood that `state` comes from; it must have had the same config."""
        self.step = state["step"]
        for name, network in self._networks().items():
            network.load_state_dict(state[name])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "result": self.result}

    def _score(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            return self.discriminator(images, labels).float()

    def _descend(self, name: str, terms: dict[str, Tensor]) -> None:
        """Take one step down the sum of the terms."""
        optimiser = self._optimisers[name]
        for group in optimiser.param_groups:
            group["lr"] = self._base_lr[name] * self.config.lr_factor(self.step)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()


@torch.no_grad()
def sample_images(generator: TinyGANGenerator, n: int, seed: int, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Draw images of random labels from a generator in eval mode.

    Args:
        generator: of RGB images.
        n: images.
        seed: of labels and noise; a smaller draw is the beginning of a larger one.
        batch_size: images drawn at a time; part of what the seed stands for.

    Returns:
        Pixels (n, 3, H, W) uint8 and labels (n,) int64, on the CPU.
    """
    device, config = generator.fc.weight.device, generator.config
    pixels, labels = [], []
    for number in range(-(-n // batch_size)):
        draws = stream(seed, "gan", "samples", number)
        y = torch.randint(config.num_classes, (batch_size,), generator=draws)
        noise = torch.randn(batch_size, config.noise_dim, generator=draws)
        pixels.append(to_uint8(generator(noise.to(device), y.to(device))).cpu())
        labels.append(y)
    return torch.cat(pixels)[:n], torch.cat(labels)[:n]
