"""The miniature ImageNet CGN, fitted by regression to the CGN for Wildlife MNIST.

It has the classes of the real one (BigGAN-deep four times, and a U²-Net) at 32x32 with ten labels, so that every
ImageNet script runs on pictures that mean something where the authors' weights are not at hand. Each of its
generators learns to draw, from the same noise and label, what a part of the Wildlife-MNIST CGN draws:

    f_text, f_bg   the texture and the background
    biggan_GT      the composed image (Eq. 1)
    f_shape        the mask, as a gray picture
    u2net          the mask, from composed images and from the pictures of f_shape and biggan_GT; from plain
                   backgrounds, that there is nothing
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_pretrained_biggan import BigGAN
from pytorch_pretrained_biggan.model import BigGANBatchNorm
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.cgn.imagenet import MINIATURE, ImageNetCGN
from skdcgn.configs.cgn import FitConfig, GeneratorName, Part
from skdcgn.data.weights import fill, load_state_dict, save_state_dict
from skdcgn.mechanisms import Mechanism, NoisePrior, Source, compose
from skdcgn.randomness import stream
from skdcgn.training import Trainer, cosine, descend

TRUNCATIONS = (0.4, 1.0)
"""Range of truncations to fit at."""

_TABLE = 51  # BigGAN's rows of statistics, for truncations 0, 0.02, ..., 1
_KNOT = 5  # every how many rows they are measured and stored; between, they are interpolated
_BETAS = (0.9, 0.99)

Loss = Callable[[torch.Generator], dict[str, Tensor]]


class Regression(Trainer[torch.Generator]):
    """Fits one network of the miniature; a batch is the random stream that it is drawn from, named after its step."""

    def __init__(self, cgn: ImageNetCGN, part: Part, teacher: Source, config: FitConfig, seed: int) -> None:
        """Set up a fit with Adam and a cosine schedule.

        Args:
            cgn: the miniature.
            part: what to fit; it is put into training mode, and all of its parameters learn. For the U²-Net, f_shape
                and biggan_GT must be fitted already.
            teacher: the CGN for Wildlife MNIST.
            config: steps, batch size and learning rates.
            seed: of the batches.
        """
        super().__init__(config.steps(part))
        self._name, self._seed = part, seed
        if part == "u2net":
            self._loss = saliency_loss(cgn, teacher, config.batch_size)
        else:
            self._loss = generator_loss(cgn, part, teacher, config.batch_size)
        network = cgn.get_submodule(part).requires_grad_(True).train().to(memory_format=torch.channels_last)
        self.network = self.register("network", network)
        rate = config.texture_learning_rate if part in ("f_text", "f_bg") else config.learning_rate
        adam = torch.optim.Adam(network.parameters(), rate, _BETAS, fused=True)
        self._optimizer = self.register_optimizer("optimizer", adam, cosine(self.steps))

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train as `Trainer.fit` does, all the while normalizing by the statistics of each batch."""
        with batch_statistics(self.network):
            yield from super().fit()

    def batches(self) -> Iterator[torch.Generator]:
        """Yield the random streams of the steps that are still to do."""
        while self.step < self.steps:
            yield stream(self._seed, "miniature", self._name, self.step)

    def training_step(self, batch: torch.Generator) -> dict[str, Tensor]:
        """Step the network on a batch drawn from a random stream; return the terms of its loss."""
        terms = self._loss(batch)
        descend(self._optimizer, terms)
        return terms


def target(teacher: Source, part: GeneratorName, noise: Tensor, labels: Tensor) -> Tensor:
    """Return the pictures (B, 3, H, W) in [-1, 1] that a generator of the miniature learns to draw."""
    if part == "f_text":
        return teacher.render(Mechanism.TEXTURE, noise, labels)
    if part == "f_bg":
        return teacher.render(Mechanism.BACKGROUND, noise, labels)
    mask = teacher.render(Mechanism.SHAPE, noise, labels)
    if part == "f_shape":
        return Mechanism.SHAPE.to_image(mask, 3)
    texture, background = (teacher.render(m, noise, labels) for m in (Mechanism.TEXTURE, Mechanism.BACKGROUND))
    return compose(mask, texture, background)


def generator_loss(cgn: ImageNetCGN, part: GeneratorName, teacher: Source, batch_size: int) -> Loss:
    """Return the loss of one generator: its L1 distance to the teacher on the same noise and labels.

    The teacher's noise is drawn as BigGAN's, at one truncation for each batch.
    """

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        noise, labels, truncation = _inputs(teacher, batch_size, generator)
        images = cgn.generate(part, noise, labels, truncation)
        return {"l1": F.l1_loss(images, target(teacher, part, noise, labels))}

    return loss


def saliency_loss(cgn: ImageNetCGN, teacher: Source, batch_size: int) -> Loss:
    """Return the loss of the U²-Net: binary cross entropies of its seven maps with the teacher's masks.

    Three eighths of a batch are pictures of the fitted f_shape, a quarter such of biggan_GT, a quarter counterfactuals
    of the teacher, an eighth plain backgrounds.
    """
    eighth = batch_size // 8

    @torch.no_grad()
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, masks = [], []
        for part, count in (("f_shape", 3 * eighth), ("biggan_GT", 2 * eighth)):
            noise, labels, truncation = _inputs(teacher, count, generator)
            images.append(cgn.generate(part, noise, labels, truncation))
            masks.append(teacher.render(Mechanism.SHAPE, noise, labels))
        outputs = [teacher.render(mechanism, *_inputs(teacher, 2 * eighth, generator)[:2]) for mechanism in Mechanism]
        images.append(compose(*outputs))
        masks.append(outputs[0])
        plain = teacher.render(Mechanism.BACKGROUND, *_inputs(teacher, eighth, generator)[:2])
        images.append(plain)
        masks.append(torch.zeros_like(plain[:, :1]))
        return torch.cat(images), torch.cat(masks)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        images, masks = draw(generator)
        logits = cgn.u2net.logits(images)
        entropy = F.binary_cross_entropy_with_logits(logits, masks.expand_as(logits), reduction="none")
        fused, *sides = entropy.mean(dim=(0, 2, 3))
        return {"fused": fused, "sides": torch.stack(sides).sum()}

    return loss


def _inputs(teacher: Source, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Draw noise, labels and one truncation for all of them."""
    low, high = TRUNCATIONS
    truncation = low + (high - low) * torch.rand(1, generator=generator).item()
    labels = torch.randint(teacher.num_classes, (n,), generator=generator)
    return NoisePrior(truncation).sample(n, teacher.noise_dim, generator), labels, truncation


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let BigGAN's normalization layers use the statistics of the batch: the package's can only read its table."""
    norms = [module for module in network.modules() if isinstance(module, BigGANBatchNorm)]
    for norm in norms:
        norm.forward = functools.partial(_normalize, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalize(norm: BigGANBatchNorm, x: Tensor, truncation: float, condition: Tensor | None = None) -> Tensor:
    if not norm.conditional:
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    x = F.batch_norm(x, None, None, training=True, eps=norm.eps)  # fused: far faster than the package's own
    scale, offset = 1 + norm.scale(condition)[:, :, None, None], norm.offset(condition)[:, :, None, None]
    return torch.addcmul(offset, scale, x)


@torch.no_grad()
def measure_statistics(network: BigGAN, generator: torch.Generator, images: int = 500) -> None:
    """Fill BigGAN's tables with what the fitted network has at each truncation, so that they mean something.

    Args:
        network: one generator; it is left in evaluation mode.
        generator: source of noise and labels.
        images: measured on for each row; every fifth row is measured, the others are interpolated.
    """
    network.eval()
    config = network.config
    norms = [module for module in network.modules() if isinstance(module, BigGANBatchNorm)]

    def measure(norm: BigGANBatchNorm, row: int, x: Tensor, *condition: Any) -> Tensor:
        norm.running_means[row] = x.mean(dim=(0, 2, 3))
        norm.running_vars[row] = x.var(dim=(0, 2, 3), unbiased=False)
        return _normalize(norm, x, *condition)

    with batch_statistics(network):
        for row in range(0, _TABLE, _KNOT):
            for norm in norms:
                norm.forward = functools.partial(measure, norm, row)
            truncation = max(row, 1) / (_TABLE - 1)
            noise = NoisePrior(truncation).sample(images, config.z_dim, generator)
            labels = torch.randint(config.num_classes, (images,), generator=generator)
            network(noise, F.one_hot(labels, config.num_classes).float(), truncation)
    for norm in norms:
        for table in (norm.running_means, norm.running_vars):
            table.copy_(_expand(table[::_KNOT]))


def _expand(knots: Tensor) -> Tensor:
    """Interpolate a table of statistics (51, C) from every fifth of its rows (11, C)."""
    return F.interpolate(knots.float().T[None], size=_TABLE, mode="linear", align_corners=True)[0].T.contiguous()


def _is_table(key: str) -> bool:
    return key.endswith(("running_means", "running_vars"))


def save_miniature(path: Path, cgn: ImageNetCGN, metadata: dict[str, str]) -> None:
    """Write a miniature compactly: half precision, and every fifth row of its tables of statistics.

    Args:
        path: a `.safetensors` file.
        cgn: the miniature, its tables as `measure_statistics` leaves them.
        metadata: kept in the file: how it was made, what it scores.
    """
    state = {key: tensor[::_KNOT] if _is_table(key) else tensor for key, tensor in cgn.state_dict().items()}
    save_state_dict(path, state, metadata, half=True)


def load_miniature(path: Path) -> ImageNetCGN:
    """Read a miniature of `save_miniature`, in evaluation mode.

    Raises:
        InputError: the file is missing or something else.
    """
    state = load_state_dict(path)
    state = {key: _expand(tensor) if _is_table(key) else tensor for key, tensor in state.items()}
    return fill(ImageNetCGN(MINIATURE), state, f"the weights in {path} do not fit the miniature")
