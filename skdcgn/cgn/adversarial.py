"""Adversarial training of a CGN for MNIST variants: the teacher, from scratch or further (Table 1, Appendix A).

The generator's mask, shuffled texture and shuffled background are composed (Eq. 1) and have to pass for real
images. Everything random in step n is drawn from streams named after n, so that a resumed run continues
exactly as the unbroken one would have, without any generator's state to keep. Of several processes each draws for the
whole batch, and goes on with its own share of it (see `distributed`).
"""

import copy
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from skdcgn import distributed
from skdcgn.cgn import losses, mnist
from skdcgn.configs.cgn import CGNTrainingConfig
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, compose, intervene, shuffle_patches
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import autocast
from skdcgn.training import Trainer, descend, linear_decay


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
