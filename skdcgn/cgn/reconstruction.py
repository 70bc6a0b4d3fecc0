"""Training of a CGN for ImageNet: its composed images have to reconstruct an unconstrained generator's.

It trains CGN itself (`models.cgn_imagenet.ImageNetCGN`) as well as the paper's baseline, whose generators are
TinyGANs (`baseline.TinyGANCGN`). There is no data: a step is one batch of noise and labels, and everything random in
step n is drawn from streams named after n, so that a resumed run goes on exactly as the unbroken one would have.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skdcgn.cgn.imagenet import PARTS_OF, GeneratorName, truncated_noise
from skdcgn.cgn.losses import CGNLossConfig, Rendered, cgn_terms
from skdcgn.cgn.perceptual import Perceptual, style_features
from skdcgn.errors import InputError
from skdcgn.mechanisms import MASK_EPSILON, Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast


class Sizes(Protocol):
    """What a trainer asks of a CGN's architecture."""

    noise_dim: int
    num_classes: int
    resolution: int


class ReconstructionCGN(Protocol):
    """A CGN as ImageNet's is: three generators, an unconstrained one, and a U²-Net that turns pictures into masks."""

    architecture: Sizes
    u2net: nn.Module

    def unconstrained(self, noise: Tensor, labels: Tensor, truncation: float) -> Tensor: ...

    def generate(self, name: GeneratorName, noise: Tensor, labels: Tensor, truncation: float) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """How to train; the defaults are CGN's own for ImageNet, which the paper's baseline keeps."""

    steps: int = 1_200_000
    """Batches in all."""
    batch_size: int = 1
    """Images in a batch."""
    accumulate: int = 4000
    """Batches whose gradients make one update."""
    shape_lr: float = 8e-6
    """Adam's learning rate of the shape generator."""
    texture_lr: float = 3e-5
    """Adam's learning rate of the texture generator."""
    background_lr: float = 1e-5
    """Adam's learning rate of the background generator."""
    truncation: float = 1.0
    """Of the noise, in (0, 1]."""
    loss: CGNLossConfig = dataclasses.field(default_factory=CGNLossConfig)
    perceptual: Perceptual = "vgg16"
    """Features of the style losses: VGG16 (none where its weights are not at hand), an untrained small net, or none."""
    batch_statistics: bool = False
    """Normalise TinyGANs by the statistics of each batch, as the published baseline did with batches of one image;
    without it they keep those of their distillation, as BigGAN always keeps its own."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimisers stay in fp32."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulate) < 1:
            raise InputError("CGN training needs steps, batch_size and accumulate of at least 1.")
        if self.steps % self.accumulate:
            raise InputError(
                f"{self.steps} steps are no whole number of updates of {self.accumulate} batches: the last batches "
                "would be lost."
            )
        if not 0 < self.truncation <= 1:
            raise InputError(f"the truncation must lie in (0, 1], not {self.truncation:g}.")

    @property
    def learning_rates(self) -> dict[Mechanism, float]:
        """The learning rate of each mechanism's generator."""
        return dict(zip(Mechanism, (self.shape_lr, self.texture_lr, self.background_lr), strict=True))


class ReconstructionTrainer:
    """Trains the three generators of a CGN; the unconstrained one and the U²-Net stay as they are.

    Attributes:
        cgn: in training.
        step: batches done.
        steps: batches to do in all.
        perceptual: features that the style losses really use (see `ReconstructionConfig.perceptual`): tag runs with it.
    """

    def __init__(
        self,
        config: ReconstructionConfig,
        cgn: ReconstructionCGN,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare a run.

        Args:
            config: how to train.
            cgn: what to train, in place.
            seed: of labels, noise and patches.
            device: where to train.
        """
        self.config, self.device, self._seed = config, torch.device(device), seed
        self.cgn = cgn.to(self.device, memory_format=torch.channels_last)
        self.step, self.steps = 0, config.steps
        with seeded(seed, "cgn reconstruction", "features"):
            self.perceptual, style = style_features(config.perceptual)
        self._style = None if style is None else style.to(self.device)
        self.generators = {mechanism: self.cgn.get_submodule(PARTS_OF[mechanism][0]) for mechanism in Mechanism}
        self._optimisers = {
            mechanism: torch.optim.Adam(self.generators[mechanism].parameters(), rate, fused=True)
            for mechanism, rate in config.learning_rates.items()
        }
        self._set_training()

    def update(self) -> dict[str, float]:
        """Learn from one batch, and move the weights where that completes an update.

        Returns:
            The weighted terms of the objective, and their `total`.
        """
        noise, labels = self._draw()
        with autocast(self.device, self.config.precision):
            rendered = render(self.cgn, noise, labels, self.config.truncation)
        features = None if self._style is None else self._features
        terms = cgn_terms(rendered, features, self.config.loss, self._stream("patches"))
        total = sum(terms.values())
        # The mean over an update's batches, where the authors take the sum: Adam hardly tells the two apart.
        (total / self.config.accumulate).backward()
        self.step += 1
        if self.step % self.config.accumulate == 0:
            for optimiser in self._optimisers.values():
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        named = {**terms, "total": total}
        return dict(zip(named, torch.stack([value.detach() for value in named.values()]).tolist(), strict=True))

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train to the last step, from wherever the trainer stands, yielding (steps done, losses) after each."""
        while self.step < self.steps:
            yield self.step + 1, self.update()

    @torch.no_grad()
    def render(self, noise: Tensor, labels: Tensor) -> Rendered:
        """Render everything from one input in evaluation mode, in fp32."""
        self.cgn.eval()
        rendered = render(self.cgn, noise.to(self.device), labels.to(self.device), self.config.truncation)
        self._set_training()
        return rendered

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later step depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "generators": {mechanism.value: network.state_dict() for mechanism, network in self.generators.items()},
            "optimisers": {mechanism.value: each.state_dict() for mechanism, each in self._optimisers.items()},
            # None between two updates.
            "gradients": {
                mechanism.value: [parameter.grad for parameter in network.parameters()]
                for mechanism, network in self.generators.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the trainer stood that `state` comes from; it must have had the same config and frozen parts."""
        self.step = state["step"]
        for mechanism, network in self.generators.items():
            network.load_state_dict(state["generators"][mechanism.value])
            self._optimisers[mechanism].load_state_dict(state["optimisers"][mechanism.value])
            for parameter, gradient in zip(network.parameters(), state["gradients"][mechanism.value], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device).clone()

    def _set_training(self) -> None:
        self.cgn.train()
        if not self.config.batch_statistics:
            for module in self.cgn.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _features(self, images: Tensor) -> list[Tensor]:
        with autocast(self.device, self.config.precision):
            return self._style(images)

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Noise (B, noise_dim) and labels (B,) of the present step, the same for every mechanism."""
        sizes, generator = self.cgn.architecture, self._stream("batch")
        noise = truncated_noise(self.config.batch_size, sizes.noise_dim, self.config.truncation, generator)
        labels = torch.randint(sizes.num_classes, (self.config.batch_size,), generator=generator, device=self.device)
        return noise, labels

    def _stream(self, name: str) -> torch.Generator:
        """The random stream of one purpose in the present step."""
        return stream(self._seed, "cgn reconstruction", name, self.step, device=self.device)


def render(cgn: ReconstructionCGN, noise: Tensor, labels: Tensor, truncation: float) -> Rendered:
    """Run all of a CGN on one noise (B, noise_dim) and label (B,), with gradients for all but the target."""
    with torch.no_grad():
        target = cgn.unconstrained(noise, labels, truncation)
    premask, texture, background = (
        cgn.generate(PARTS_OF[mechanism][0], noise, labels, truncation) for mechanism in Mechanism
    )
    # In float32, because under autocast the clamp's upper end would round to 1.
    mask = cgn.u2net(premask).float().clamp(MASK_EPSILON, 1 - MASK_EPSILON)
    images = (image.float() for image in (target, premask, texture, background))
    target, premask, texture, background = images
    return Rendered(target, premask, mask, texture, background, cgn.u2net(background).float())
