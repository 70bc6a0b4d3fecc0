"""Adversarial training of a CGN for MNIST variants: the teacher, from scratch or further (Table 1, Appendix A).

The generator's mask, shuffled texture and shuffled background are composed (Eq. 1) and have to pass for real
images. Everything random in step n is drawn from streams named after n, so that a resumed run continues
exactly as the unbroken one would have, without any generator's state to keep. Of several processes each draws for the
whole batch, and goes on with its own share of it (see `distributed`).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from skdcgn import distributed
from skdcgn.cgn import losses, mnist
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError
from skdcgn.mechanisms import Intervention, Mechanism, compose, intervene, shuffle_patches
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast
from skdcgn.training import Trainer, descend, linear_decay


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
    """Discriminator: linear for the colored variants, conv for the textured one."""
    adversarial: float = 1.0
    """Weight of the least-squares adversarial loss."""
    binary: float = 0.3
    """Weight of the mask's binary entropy, in nats."""
    frame: float = 5.0
    """Weight of the mask on the image's frame, which settles what is mask and what is not (see `mask_on_frame`;
    not in the authors' objective)."""
    color: float = 5.0
    """Weight of the distance of the images' colors (see `color_distance`; not in the authors' objective)."""
    style: float = 1.0
    """Weight of the perceptual style loss, over its block weights."""
    perceptual: losses.Perceptual = "none"
    """Features of the style loss: VGG16 (none where its weights are not at hand), an untrained small net, or none."""
    style_blocks: tuple[float, float, float, float] = (0.0, 0.05, 0.0, 0.05)
    """The authors' weights w of the four VGG16 blocks, as in w^2 * 5000 * L1 of Gram matrices."""
    paired_labels: bool = True
    """Generate the labels of the real batch, so that the batches can be compared; the published code draws them
    independently, which makes its style loss compare unrelated images."""
    flat_start: bool = True
    """Start texture and background as flat colors (see `mnist.initialize_orthogonally`), not as the authors do."""
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
    """Arithmetic of the networks; losses, weights and optimizers stay in fp32."""
    seed: int = 0
    """Seed of initialization, batches and noise."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.texture_every < 1:
            raise InputError("CGN training needs steps and texture_every of at least 1.")
        if self.batch_size < 2:
            raise InputError(f"CGN training needs a batch_size of at least 2 for batch norm, got {self.batch_size}.")
        if not (0 <= self.ema < 1 and 0 <= self.decay_from <= 1):
            raise InputError("CGN training needs ema in [0, 1) and decay_from in [0, 1].")

    def trains_texture(self, step: int) -> bool:
        """Whether texture and background are trained in a step (from 0)."""
        return step < self.texture_warmup or step % self.texture_every == 0


PUBLISHED = CGNTrainingConfig(
    steps=46_900,
    decay_from=1.0,
    binary=0.3 / math.log(2),  # theirs is in bits
    frame=0.0,
    color=0.0,
    perceptual="vgg16",
    paired_labels=False,
    flat_start=False,
    ema=0.0,
    texture_every=1,
    precision="fp32",
)
"""The authors' training on double-colored MNIST: 15 epochs of 50,000 images."""


class CGNTrainer(Trainer[tuple[Tensor, Tensor]]):
    """Trains a CGN against a discriminator; a batch is real images (B, 3, 32, 32) in [-1, 1] and labels (B,).

    Attributes:
        cgn: the generator in training.
        result: the running average of its weights: what to export.
        perceptual: features that the style loss really uses (see `CGNTrainingConfig.perceptual`): tag runs with it.
    """

    def __init__(
        self,
        config: CGNTrainingConfig,
        data: TensorSet,
        cgn: mnist.MechanismNetworks | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare a run.

        Args:
            config: how to train.
            data: the real images, with labels that give the colors away (a biased set).
            cgn: where to start from (it is copied), perhaps with TinyGANs for mechanisms; a new CGN by default.
            device: where to train.

        Raises:
            InputError: the data's images or labels do not fit the CGN.
        """
        super().__init__(config.steps, parallel=True)
        self.config, self.data, self.device = config, data, torch.device(device)
        with seeded(config.seed, "cgn training", "start"):
            if cgn is None:
                cgn = mnist.CGN()
                mnist.initialize_orthogonally(cgn, config.flat_start)
            _check(data, cgn.num_classes)
            network = mnist.LinearDiscriminator if config.discriminator == "linear" else mnist.ConvDiscriminator
            self.discriminator = network(cgn.num_classes).to(self.device)
            if config.flat_start:
                mnist.orthogonalize_labels(self.discriminator.label_emb)
            self.perceptual, self._style = losses.style_features(config.perceptual)
        self.register("discriminator", distributed.parallel(self.discriminator))
        self.cgn = copy.deepcopy(cgn).to(self.device).train().requires_grad_(True)
        self.register("cgn", distributed.parallel(self.cgn))
        adam = functools.partial(torch.optim.Adam, lr=config.lr, betas=config.betas, fused=True)
        decay = linear_decay(config.steps, config.decay_from)
        self._optimizer = self.register_optimizer("optimizer", adam(self.cgn.parameters()), decay)
        self._discriminator_optimizer = self.register_optimizer(
            "discriminator_optimizer", adam(self.discriminator.parameters()), decay
        )
        self.result = self.average("result", self.cgn, config.ema)
        if self._style is not None:
            self._style.to(self.device)
        self._bank = self.register("bank", self._fill_bank())

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield random real images of the steps that are still to do."""
        own = distributed.share(self.config.batch_size)
        for step in range(self.step, self.steps):
            whole = random_batch(
                self.data, self.config.batch_size, stream(self.config.seed, "cgn training", "batch", step)
            )
            yield tuple(field[own] for field in whole)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Step generator and discriminator on real images, at most as many as the config's batch size.

        Returns:
            The weighted terms of both objectives; the discriminator's begin with "discriminator".
        """
        real, real_labels = (field.to(self.device) for field in batch)
        with seeded(self.config.seed, "cgn training", "dropout", self.step):
            labels = real_labels
            if not self.config.paired_labels:
                draws, classes = self._stream("labels"), self.cgn.num_classes
                labels = distributed.as_whole(
                    lambda y: torch.randint(classes, y.shape, generator=draws, device=self.device), labels
                )
            mask, generated = self._generate(labels)
            terms = self._generator_terms(mask, generated, labels, real)
            if not terms:
                raise InputError("CGN training needs a loss: all weights are 0.")
            descend(self._optimizer, terms)
            with autocast(
                self.device, self.config.precision
            ):  # around both, so that they share one cast of the weights
                scores = self._score(real, real_labels), self._score(generated.detach(), labels)
            critic_terms = losses.least_squares_terms(*scores)
            descend(self._discriminator_optimizer, critic_terms)
        return terms | critic_terms

    def _generate(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks as generated, and composed images from modified masks and shuffled patches."""
        draws = self._stream("noise")
        noise = distributed.as_whole(
            lambda y: torch.randn(len(y), mnist.NOISE_DIM, generator=draws, device=self.device), labels
        )
        with autocast(self.device, self.config.precision):
            mask = self.cgn(Mechanism.SHAPE, noise, labels)
            if self.config.trains_texture(self.step):
                texture = self.cgn(Mechanism.TEXTURE, noise, labels)
                background = self.cgn(Mechanism.BACKGROUND, noise, labels)
                self._bank.deposit(*map(distributed.gather, (labels, texture, background)))
            else:
                slots = distributed.as_whole(functools.partial(self._bank.draw, self._stream("bank")), labels)
                texture, background = self._bank.withdraw(labels, slots)
        shuffle = functools.partial(shuffle_patches, generator=self._stream("shuffle"))
        texture, background = (distributed.as_whole(shuffle, images) for images in (texture, background))
        modify = functools.partial(
            intervene,
            intervention=self.config.intervention,
            generator=self._stream("intervention"),
            strength=self.config.intervention_strength,
        )
        return mask, compose(distributed.as_whole(modify, mask), texture, background)

    def _generator_terms(self, mask: Tensor, generated: Tensor, labels: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the generator's objective: it minimizes their sum."""
        config = self.config
        terms = {}
        if config.adversarial:
            self.discriminator.requires_grad_(False)  # spares the gradients of its weights
            terms["adversarial"] = config.adversarial * (self._score(generated, labels) - 1).square().mean()
            self.discriminator.requires_grad_(True)
        if config.binary:
            terms["binary"] = config.binary * math.log(2) * losses.binary_entropy(mask)
        if config.frame:
            terms["frame"] = config.frame * losses.mask_on_frame(mask)
        if config.color:
            terms["colour"] = config.color * losses.color_distance(generated, real)
        if config.style and self._style is not None:
            with autocast(self.device, config.precision):
                features = self._style(torch.cat([generated, real]))
            halves = [block.chunk(2) for block in features]
            distance = losses.style_distance([g for g, _ in halves], [r for _, r in halves], config.style_blocks)
            terms["style"] = config.style * distance
        return terms

    def _score(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            return self.discriminator(images, labels).float()

    @torch.no_grad()
    def _fill_bank(self) -> "TextureBank":
        """Render the first bank, a texture and a background for each class and batch position."""
        labels = torch.arange(self.cgn.num_classes, device=self.device).repeat_interleave(self.config.batch_size)
        noise = torch.randn(len(labels), mnist.NOISE_DIM, generator=self._stream("bank"), device=self.device)
        rendered = [self.result(mechanism, noise, labels) for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND)]
        return TextureBank(torch.stack(rendered).unflatten(1, (self.cgn.num_classes, self.config.batch_size)))

    def _stream(self, name: str) -> torch.Generator:
        """The random stream of one purpose in the present step."""
        return stream(self.config.seed, "cgn training", name, self.step, device=self.device)


class TextureBank(nn.Module):
    """Earlier textures and backgrounds of each class, for the steps that train neither."""

    images: Tensor

    def __init__(self, images: Tensor) -> None:
        """Fill the bank with images (texture or background, class, slot, 3, 32, 32), a slot for each batch position."""
        super().__init__()
        self.register_buffer("images", images)

    def deposit(self, labels: Tensor, texture: Tensor, background: Tensor) -> None:
        """Replace textures of the labels (B,); each position of a batch has its own slot, so that none collide."""
        slots = torch.arange(len(labels), device=labels.device)
        self.images[0, labels, slots] = texture.detach()
        self.images[1, labels, slots] = background.detach()

    def draw(self, generator: torch.Generator, labels: Tensor) -> Tensor:
        """Draw the slots (B, 2) of a texture and a background for labels (B,), independently of each other."""
        size = 2, len(labels)
        return torch.randint(self.images.shape[2], size, generator=generator, device=labels.device).T

    def withdraw(self, labels: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return textures and backgrounds of the labels (B,) in slots (B, 2): (B, 3, 32, 32) each."""
        return self.images[0, labels, slots[:, 0]], self.images[1, labels, slots[:, 1]]


def random_batch(data: TensorSet, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw images (size, 3, H, W) in [-1, 1] and their labels (size,), with repetition."""
    index = torch.randint(len(data), (size,), generator=generator)
    return data.images(index), data.labels[index]


def _check(data: TensorSet, classes: int) -> None:
    """Raise InputError where a CGN cannot learn from the data."""
    if len(data) == 0:
        raise InputError("CGN training needs images, got a data set of none.")
    size, largest = tuple(data.pixels.shape[1:]), int(data.labels.max())
    wanted = 3, mnist.RESOLUTION, mnist.RESOLUTION
    if size != wanted or largest >= classes:
        raise InputError(
            f"CGN training needs images {wanted} with labels below {classes}, got images {size} with labels up to "
            f"{largest}."
        )
