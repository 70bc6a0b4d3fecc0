"""Training of a CGN for ImageNet: its composed images have to reconstruct an unconstrained generator's.

It trains CGN itself (`imagenet.ImageNetCGN`) as well as the paper's baseline, whose generators are TinyGANs
(`baseline.TinyGANImageNetCGN`). There is no data: a step is one batch of noise and labels, and everything random in
step n is drawn from streams named after n, so that a resumed run continues exactly as the unbroken one would have.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from skdcgn.cgn.imagenet import PARTS_OF, FourGenerators
from skdcgn.cgn.losses import Rendered, cgn_terms, style_features
from skdcgn.configs.cgn import ReconstructionConfig
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import autocast
from skdcgn.training import Trainer


class ReconstructionTrainer(Trainer[tuple[Tensor, Tensor]]):
    """Trains the three generators of a CGN; the unconstrained one and the U²-Net stay as they are.

    A step is one batch of noise and labels; the weights move with each `accumulate`-th.

    Attributes:
        cgn: in training.
        perceptual: features that the style losses really use (see `ReconstructionConfig.perceptual`): tag runs with it.
    """

    def __init__(
        self, config: ReconstructionConfig, cgn: FourGenerators, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        """Prepare a run.

        Args:
            config: how to train.
            cgn: what to train, in place.
            seed: of labels, noise and patches.
            device: where to train.
        """
        super().__init__(config.steps)
        self.config, self.device, self._seed = config, torch.device(device), seed
        self.cgn = cgn.to(self.device, memory_format=torch.channels_last)
        with seeded(seed, "cgn reconstruction", "features"):
            self.perceptual, style = style_features(config.perceptual)
        self._style = None if style is None else style.to(self.device)
        self.generators = {mechanism: self.cgn.get_submodule(PARTS_OF[mechanism][0]) for mechanism in Mechanism}
        self._optimizers: list[torch.optim.Optimizer] = []
        for mechanism, network in self.generators.items():
            adam = torch.optim.Adam(network.parameters(), config.learning_rates[mechanism], fused=True)
            self._optimizers.append(self.register_optimizer(f"{mechanism}_optimizer", adam))
            self.register(f"{mechanism}_generator", network)
            self.register(f"{mechanism}_gradients", Gradients(network))
        self._set_training()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield noise (B, noise_dim) and labels (B,) of the steps still to do, the same for every mechanism."""
        sizes, size = self.cgn.architecture, self.config.batch_size
        while self.step < self.steps:
            generator = self._stream("batch")
            noise = NoisePrior(self.config.truncation).sample(size, sizes.noise_dim, generator)
            yield noise, torch.randint(sizes.num_classes, (size,), generator=generator, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Learn from one batch, and move the weights where that completes an update.

        Returns:
            The weighted terms of the objective, and their `total`.
        """
        with autocast(self.device, self.config.precision):
            rendered = render_all(self.cgn, *batch, self.config.truncation)
        features = None if self._style is None else self._features
        terms = cgn_terms(rendered, features, self.config.loss, self._stream("patches"))
        total = sum(terms.values())
        # The mean over an update's batches, where the authors take the sum: Adam hardly tells the two apart.
        (total / self.config.accumulate).backward()
        if (self.step + 1) % self.config.accumulate == 0:
            for optimizer in self._optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return {**terms, "total": total}

    @torch.no_grad()
    def render(self, noise: Tensor, labels: Tensor) -> Rendered:
        """Render everything from one input in evaluation mode, in fp32."""
        self.cgn.eval()
        rendered = render_all(self.cgn, noise.to(self.device), labels.to(self.device), self.config.truncation)
        self._set_training()
        return rendered

    def _set_training(self) -> None:
        self.cgn.train()
        if not self.config.batch_statistics:
            for module in self.cgn.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _features(self, images: Tensor) -> list[Tensor]:
        with autocast(self.device, self.config.precision):
            return self._style(images)

    def _stream(self, name: str) -> torch.Generator:
        """The random stream of one purpose in the present step."""
        return stream(self._seed, "cgn reconstruction", name, self.step, device=self.device)


class Gradients:
    """The gradients of a network, as part of a checkpoint: none between two updates."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def state_dict(self) -> dict[str, Tensor]:
        """Return the gradients that there are, by the names of their parameters."""
        return {name: value.grad for name, value in self._network.named_parameters() if value.grad is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the gradients, to none where the state has none."""
        for name, parameter in self._network.named_parameters():
            parameter.grad = state[name].to(parameter.device).clone() if name in state else None


def render_all(cgn: FourGenerators, noise: Tensor, labels: Tensor, truncation: float) -> Rendered:
    """Run all of a CGN on one noise (B, noise_dim) and label (B,), with gradients for all but the target."""
    with torch.no_grad():
        target = cgn.generate("biggan_GT", noise, labels, truncation)
    premask, texture, background = (
        cgn.generate(PARTS_OF[mechanism][0], noise, labels, truncation) for mechanism in Mechanism
    )
    mask = cgn.mask(premask)
    target, premask, texture, background = (image.float() for image in (target, premask, texture, background))
    return Rendered(target, premask, mask, texture, background, cgn.u2net(background).float())
