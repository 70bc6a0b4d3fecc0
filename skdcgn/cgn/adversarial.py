"""Adversarial training of a CGN for MNIST variants: the teacher, from scratch or further (Table 1, Appendix A).

    python -m skdcgn train-cgn --dataset double_colored --out cgn.safetensors

The generator's mask, shuffled texture and shuffled background are composed (Eq. 1) and have to pass for real
images. Everything random in step n is drawn from streams named after n, so that a resumed run goes on exactly as
the unbroken one would have, without any generator's state to keep.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.cgn.losses import binary_entropy
from skdcgn.cgn.mnist import CGN, NOISE_DIM, RESOLUTION, ConvDiscriminator, LinearDiscriminator
from skdcgn.cgn.perceptual import Perceptual, style_distance, style_features
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.mechanisms import Intervention, Mechanism, compose, intervene, shuffle_patches
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast


@dataclasses.dataclass(frozen=True)
class CGNTrainingConfig:
    """How to train; the defaults are a fast recipe that needs no VGG16, `PUBLISHED` is the authors'."""

    steps: int = 10_000
    """Steps in all, one of generator and discriminator each."""
    batch_size: int = 16
    """Images in a batch; also the textures of each class in the bank."""
    lr: float = 2e-4
    """Adam's learning rate."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's momenta."""
    decay_from: float = 0.5
    """Fraction of the steps after which the learning rate falls linearly to 0; 1 keeps it."""
    discriminator: Literal["linear", "conv"] = "linear"
    """Discriminator: linear for the coloured variants, conv for the textured one."""
    adversarial: float = 1.0
    """Weight of the least-squares adversarial loss."""
    binary: float = 0.3
    """Weight of the mask's binary entropy, in nats."""
    frame: float = 5.0
    """Weight of the mask on the image's frame, which settles what is mask and what is not (see `mask_on_frame`;
    not in the authors' objective)."""
    colour: float = 5.0
    """Weight of the distance of the images' colours (see `colour_distance`; not in the authors' objective)."""
    style: float = 1.0
    """Weight of the perceptual style loss, over its block weights."""
    perceptual: Perceptual = "none"
    """Features of the style loss: VGG16 (none where its weights are not at hand), an untrained small net, or none."""
    style_blocks: tuple[float, float, float, float] = (0.0, 0.05, 0.0, 0.05)
    """The authors' weights w of the four VGG16 blocks, as in w^2 * 5000 * L1 of Gram matrices."""
    paired_labels: bool = True
    """Generate the labels of the real batch, so that the batches can be compared; the published code draws them
    independently, which makes its style loss compare unrelated images."""
    flat_start: bool = True
    """Start texture and background as flat colours (see `initialise`), not as the authors do."""
    ema: float = 0.998
    """Decay of the average of the generator's weights that is exported; 0 exports the last weights."""
    texture_every: int = 4
    """Texture and background are trained every n-th step; in between they come from a bank of earlier ones."""
    texture_warmup: int = 500
    """Steps before that, in which they are trained every time."""
    intervention: Intervention = "none"
    """Modification of the masks before composition in training (Sec. 4.5, Table 1)."""
    intervention_strength: float | None = None
    """Its strength; by default the paper's (see `mechanisms.intervene`)."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimisers stay in fp32."""
    seed: int = 0
    """Seed of initialisation, batches and noise."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.texture_every < 1:
            raise InputError("CGN training needs steps and texture_every of at least 1.")
        if self.batch_size < 2:
            raise InputError(f"CGN training needs a batch_size of at least 2 for batch norm, got {self.batch_size}.")
        if not (0 <= self.ema < 1 and 0 <= self.decay_from <= 1):
            raise InputError("CGN training needs ema in [0, 1) and decay_from in [0, 1].")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        remaining = (self.steps - step) / self.steps
        return self.lr * min(1.0, remaining / (1 - self.decay_from)) if self.decay_from < 1 else self.lr

    def trains_texture(self, step: int) -> bool:
        """Whether texture and background are trained in a step (from 0)."""
        return step < self.texture_warmup or step % self.texture_every == 0


PUBLISHED = CGNTrainingConfig(
    steps=46_900,
    decay_from=1.0,
    binary=0.3 / math.log(2),  # theirs is in bits
    frame=0.0,
    colour=0.0,
    perceptual="vgg16",
    paired_labels=False,
    flat_start=False,
    ema=0.0,
    texture_every=1,
    precision="fp32",
)
"""The authors' training on double-colored MNIST: 15 epochs of 50,000 images."""


def mask_on_frame(mask: Tensor, width: int = 4) -> Tensor:
    """Mean of masks (B, 1, H, W) on the outer `width` pixels, where digits have next to no strokes.

    An inverted mask with texture and background exchanged composes the very same image, so that no loss on images
    can tell them apart. Where the object is not can.
    """
    inner = mask[:, :, width:-width, width:-width]
    return (mask.sum() - inner.sum()) / (mask.numel() - inner.numel())


def colour_distance(generated: Tensor, real: Tensor) -> Tensor:
    """Distance of the colours of image pairs (B, 3, H, W): the 1-Wasserstein distance of each channel's values, mean.

    Where the colours lie in the image does not matter to it, how much of the image they cover does.
    """
    return F.l1_loss(generated.flatten(2).sort(dim=2).values, real.flatten(2).sort(dim=2).values)


def initialise(cgn: CGN, flat_start: bool = False, gain: float = 0.2) -> None:
    """Start a CGN as its authors do: orthogonal weights of a small gain, biases 0, batch norm scales about 1.

    Args:
        cgn: to initialise, in place, from PyTorch's global generator.
        flat_start: start with label embeddings at right angles, and with texture and background as flat colours of
            high contrast. Otherwise two labels that happen to be close can stay mixed up; the first patterns may
            take the part that the mask should have; and saturated colours are thousands of Adam's steps away.
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
        spread_labels(cgn.label_emb)
        with torch.no_grad():
            for linear, unflatten, *_, norm, _ in (cgn.f_text1, cgn.f_text2):
                channels, *grid = unflatten.unflattened_size
                weight = linear.weight.view(channels, math.prod(grid), -1)
                weight.copy_(weight[:, :1].clone())
                norm.weight.mul_(2.5)  # tanh(2.5) = 0.987


def spread_labels(embedding: nn.Embedding) -> None:
    """Put embeddings at right angles, at the length that standard normal ones have on average."""
    nn.init.orthogonal_(embedding.weight, gain=embedding.embedding_dim**0.5)


class CGNTrainer:
    """Trains a CGN against a discriminator, one batch at a time.

    Attributes:
        cgn: the generator in training.
        ema: the running average of its weights: what to export.
        step: steps done.
        steps: steps to do in all.
        perceptual: features that the style loss really uses (see `CGNTrainingConfig.perceptual`): tag runs with it.
    """

    def __init__(
        self,
        config: CGNTrainingConfig,
        data: TensorSet,
        cgn: CGN | TinyGANCGN | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare a run.

        Args:
            config: how to train.
            data: the real images, with labels that give the colours away (a biased set).
            cgn: where to start from (it is copied), perhaps with TinyGANs for mechanisms; a new CGN by default.
            device: where to train.

        Raises:
            InputError: the data's images or labels do not fit the CGN.
        """
        self.config = config
        self.data = data
        self.device = torch.device(device)
        self.steps = config.steps
        self.step = 0
        with seeded(config.seed, "cgn training", "start"):
            if cgn is None:
                cgn = CGN()
                initialise(cgn, config.flat_start)
            classes = cgn.num_classes
            _check(data, classes)
            network = LinearDiscriminator if config.discriminator == "linear" else ConvDiscriminator
            self.discriminator = network(classes).to(self.device)
            if config.flat_start:
                spread_labels(self.discriminator.label_emb)
            self.perceptual, self._style = style_features(config.perceptual)
        self.cgn = copy.deepcopy(cgn).to(self.device).train().requires_grad_(True)
        self.ema = copy.deepcopy(self.cgn).eval().requires_grad_(False)
        if self._style is not None:
            self._style.to(self.device)
        self._optimisers = {
            "cgn": torch.optim.Adam(self.cgn.parameters(), config.lr, config.betas, fused=True),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), config.lr, config.betas, fused=True),
        }
        self._bank = self._fill_bank(classes)

    def update(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Train generator and discriminator on one batch.

        Args:
            batch: real images (B, 3, 32, 32) in [-1, 1] and labels (B,), B at most the config's batch size.

        Returns:
            The weighted terms of both objectives; the discriminator's begin with "discriminator".
        """
        real, real_labels = (field.to(self.device) for field in batch)
        with seeded(self.config.seed, "cgn training", "dropout", self.step):
            for group in (group for optimiser in self._optimisers.values() for group in optimiser.param_groups):
                group["lr"] = self.config.lr_at(self.step)
            labels = real_labels
            if not self.config.paired_labels:
                labels = torch.randint(
                    self._bank.shape[1], labels.shape, generator=self._stream("labels"), device=self.device
                )
            mask, generated = self._generate(labels)
            generator_terms = self._generator_terms(mask, generated, labels, real)
            self._descend("cgn", generator_terms)
            discriminator_terms = self._discriminator_terms(generated.detach(), labels, real, real_labels)
            self._descend("discriminator", discriminator_terms)
        move_average(self.ema, self.cgn, self.config.ema, self.step)
        self.step += 1
        terms = generator_terms | discriminator_terms
        return dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train to the last step, from wherever the trainer stands, yielding (steps done, losses) after each."""
        while self.step < self.steps:
            generator = stream(self.config.seed, "cgn training", "batch", self.step)
            index = torch.randint(len(self.data), (self.config.batch_size,), generator=generator)
            losses = self.update((self.data.images(index), self.data.labels[index]))
            yield self.step, losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later step depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "cgn": self.cgn.state_dict(),
            "ema": self.ema.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()},
            "bank": self._bank,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the trainer stood that `state` comes from; it must have had the same config."""
        self.step = state["step"]
        self.cgn.load_state_dict(state["cgn"])
        self.ema.load_state_dict(state["ema"])
        self.discriminator.load_state_dict(state["discriminator"])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self._bank.copy_(state["bank"])

    def _generate(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks as generated, and composed images from modified masks and shuffled patches."""
        noise = torch.randn(len(labels), NOISE_DIM, generator=self._stream("noise"), device=self.device)
        with autocast(self.device, self.config.precision):
            mask = self.cgn(Mechanism.SHAPE, noise, labels)
            if self.config.trains_texture(self.step):
                texture = self.cgn(Mechanism.TEXTURE, noise, labels)
                background = self.cgn(Mechanism.BACKGROUND, noise, labels)
                self._deposit(labels, texture, background)
            else:
                texture, background = self._withdraw(labels)
        shuffling = self._stream("shuffle")
        modified = intervene(
            mask, self.config.intervention, self._stream("intervention"), self.config.intervention_strength
        )
        texture, background = shuffle_patches(texture, shuffling), shuffle_patches(background, shuffling)
        return mask, compose(modified, texture, background)

    def _generator_terms(self, mask: Tensor, generated: Tensor, labels: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the generator's objective: it minimises their sum."""
        config = self.config
        terms = {}
        if config.adversarial:
            with self._frozen_discriminator(), autocast(self.device, config.precision):
                scores = self.discriminator(generated, labels).float()
            terms["adversarial"] = config.adversarial * (scores - 1).square().mean()
        if config.binary:
            terms["binary"] = config.binary * math.log(2) * binary_entropy(mask)
        if config.frame:
            terms["frame"] = config.frame * mask_on_frame(mask)
        if config.colour:
            terms["colour"] = config.colour * colour_distance(generated, real)
        if config.style and self._style is not None:
            with autocast(self.device, config.precision):
                features = self._style(torch.cat([generated, real]))
            halves = [block.chunk(2) for block in features]
            distance = style_distance([g for g, _ in halves], [r for _, r in halves], config.style_blocks)
            terms["style"] = config.style * distance
        return terms

    def _discriminator_terms(
        self, generated: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor
    ) -> dict[str, Tensor]:
        """Least-squares terms of the discriminator's objective: real images score 1, generated ones 0."""
        with autocast(self.device, self.config.precision):
            real_scores = self.discriminator(real, real_labels).float()
            generated_scores = self.discriminator(generated, labels).float()
        return {
            "discriminator_real": 0.5 * (real_scores - 1).square().mean(),
            "discriminator_generated": 0.5 * generated_scores.square().mean(),
        }

    def _descend(self, name: str, terms: dict[str, Tensor]) -> None:
        """Take one step down the sum of the terms."""
        if not terms:
            raise InputError("CGN training needs a loss: all weights are 0.")
        optimiser = self._optimisers[name]
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()

    @torch.no_grad()
    def _fill_bank(self, classes: int) -> Tensor:
        """Render the first bank: (texture or background, class, slot, 3, 32, 32), a slot for each batch position."""
        labels = torch.arange(classes, device=self.device).repeat_interleave(self.config.batch_size)
        noise = torch.randn(len(labels), NOISE_DIM, generator=self._stream("bank"), device=self.device)
        rendered = [self.ema(mechanism, noise, labels) for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND)]
        return torch.stack(rendered).unflatten(1, (classes, self.config.batch_size))

    def _deposit(self, labels: Tensor, texture: Tensor, background: Tensor) -> None:
        """Put new textures into the bank; each position of a batch has its own slot, so that none collide."""
        slots = torch.arange(len(labels), device=self.device)
        self._bank[0, labels, slots] = texture.detach()
        self._bank[1, labels, slots] = background.detach()

    def _withdraw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw textures and backgrounds of the labels, independently of each other."""
        slots = torch.randint(
            self.config.batch_size, (2, len(labels)), generator=self._stream("bank"), device=self.device
        )
        return self._bank[0, labels, slots[0]], self._bank[1, labels, slots[1]]

    def _stream(self, name: str) -> torch.Generator:
        """The random stream of one purpose in the present step."""
        return stream(self.config.seed, "cgn training", name, self.step, device=self.device)

    @contextlib.contextmanager
    def _frozen_discriminator(self) -> Iterator[None]:
        """Spare the gradients of the discriminator's weights while the generator learns."""
        self.discriminator.requires_grad_(False)
        try:
            yield
        finally:
            self.discriminator.requires_grad_(True)


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights and batch norm statistics towards a network's own, in place.

    Args:
        average: a copy of the network.
        current: the network, after its step number `step`, from 0.
        decay: the average's share that stays, in [0, 1); less in the first steps, so that the start is forgotten.
        step: see `current`.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), current.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _check(data: TensorSet, classes: int) -> None:
    """Raise InputError where a CGN cannot learn from the data."""
    if len(data) == 0:
        raise InputError("CGN training needs images, got a data set of none.")
    size, largest = tuple(data.pixels.shape[1:]), int(data.labels.max())
    if size != (3, RESOLUTION, RESOLUTION) or largest >= classes:
        raise InputError(
            f"CGN training needs images (3, {RESOLUTION}, {RESOLUTION}) with labels below {classes}, got images "
            f"{size} with labels up to {largest}."
        )


def save_cgn(path: Path, cgn: CGN, metadata: dict[str, str] | None = None, half: bool = False) -> None:
    """Write a CGN as safetensors, with where it comes from as metadata; `half` stores fp16, half the size."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in cgn.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)
