"""The CGN for ImageNet (Sauer and Geiger, 2021): four BigGAN-deep generators and a U²-Net.

The generators are those of `pytorch_pretrained_biggan`; names and shapes of the weights are those of the
authors' `cgn.pth`: `biggan_GT` (the unconstrained generator, which only training needs), `f_shape`,
`f_text`, `f_bg` and `u2net`. CGN gives one and the same noise to all of them. A smaller `Architecture` makes
a miniature of the same classes.
"""

import abc
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from pytorch_pretrained_biggan.model import BigGANBatchNorm, SelfAttn
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.cgn.u2net import FULL_WIDTHS, SMALL_WIDTHS, U2Net, Widths
from skdcgn.configs.cgn import GeneratorName, Part
from skdcgn.configs.tinygan import TinyGANConfig
from skdcgn.data.weights import fill, load_state_dict
from skdcgn.mechanisms import MASK_EPSILON, Mechanism, NoisePrior

GENERATORS: tuple[GeneratorName, ...] = ("biggan_GT", "f_shape", "f_text", "f_bg")
PARTS: tuple[Part, ...] = (*GENERATORS, "u2net")
FROZEN: tuple[Part, ...] = ("biggan_GT", "u2net")
"""CGN's training leaves these as they are: they give the target and the saliency."""

PARTS_OF: dict[Mechanism, tuple[Part, ...]] = {
    Mechanism.SHAPE: ("f_shape", "u2net"),
    Mechanism.TEXTURE: ("f_text",),
    Mechanism.BACKGROUND: ("f_bg",),
}
"""What each mechanism consists of."""

_POWER_ITERATIONS = 15


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of an `ImageNetCGN`; the defaults are those of `cgn.pth`."""

    num_classes: int = 1000
    noise_dim: int = 128
    layers: tuple[tuple[bool, int, int], ...] = (
        *((False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8), (True, 8, 8)),
        *((False, 8, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1)),
    )
    """Each generator block: whether it upsamples, and its input and output channels in units of the width."""
    attention_before: int = 8
    """Index of the block that self-attention precedes."""
    shape_width: int = 128
    """Channel width of the shape and the unconstrained generator."""
    texture_width: int = 128
    """Channel width of the texture and the background generator."""
    u2net_widths: Widths = FULL_WIDTHS

    @property
    def resolution(self) -> int:
        """Height and width of the images: 4 pixels, doubled by every upsampling block."""
        return 4 * 2 ** sum(upsample for upsample, _, _ in self.layers)

    def biggan_config(self, name: GeneratorName) -> BigGANConfig:
        """Return the package's configuration of one generator."""
        return BigGANConfig(
            output_dim=self.resolution,
            z_dim=self.noise_dim,
            class_embed_dim=self.noise_dim,  # BigGAN ignores it: the embedding always has the noise's size
            channel_width=self.shape_width if name in ("biggan_GT", "f_shape") else self.texture_width,
            num_classes=self.num_classes,
            layers=list(self.layers),
            attention_layer_position=self.attention_before,
        )


CGN_256 = Architecture()
"""The authors' own: 4 x 55.9M + 44.0M parameters."""

MINIATURE = Architecture(
    num_classes=10,
    noise_dim=32,
    layers=((False, 16, 8), (True, 8, 4), (True, 4, 2), (True, 2, 1)),
    attention_before=2,
    shape_width=24,
    texture_width=16,
    u2net_widths=SMALL_WIDTHS,
)
"""The same classes at 32x32 with ten labels: 2 x 0.87M + 2 x 0.51M + 0.05M parameters."""


class FourGenerators(nn.Module, abc.ABC):
    """A CGN as ImageNet's is: the generators of `GENERATORS`, and a U²-Net that turns pictures into masks.

    `ImageNetCGN` is the authors' own, of BigGANs; the paper's baseline is of TinyGANs.
    """

    architecture: Architecture | TinyGANConfig

    @abc.abstractmethod
    def generate(self, name: GeneratorName, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one of the four generators: (B, 3, H, W) in [-1, 1].

        `f_shape` gives the paper's pre-mask, and `biggan_GT`, the unconstrained one, the target of reconstruction.
        """

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for the frozen networks: they always stay in evaluation mode.

        In training mode each forward pass moves the power iteration of the spectral norm on by one step.
        """
        super().train(mode)
        for name, network in self.named_children():
            if name in FROZEN:
                network.eval()
        return self

    def forward(self, mechanism: Mechanism, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one mechanism.

        Args:
            mechanism: which of the three.
            noise: u, (B, noise_dim), from a `NoisePrior` of the same truncation.
            labels: y, (B,) int64.
            truncation: in (0, 1], 0.5 in CGN's data sets. It selects one of BigGAN's 51 rows of normalization
                statistics; between two rows the package, like CGN's copy of it, swaps the interpolation's weights.

        Returns:
            The mask (B, 1, H, W), which is U²-Net of the shape generator's picture clamped to [0.0001, 0.9999], or
            a texture or background (B, 3, H, W) in [-1, 1].

        Raises:
            InputError: the truncation is out of range.
        """
        name, *saliency = PARTS_OF[mechanism]
        image = self.generate(name, noise, labels, truncation)
        return self.mask(image) if saliency else image

    def mask(self, premask: Tensor) -> Tensor:
        """Find the mask (B, 1, H, W) in the shape generator's picture (B, 3, H, W)."""
        # In float32, because under autocast the clamp's upper end would round to 1.
        return self.u2net(premask).float().clamp(MASK_EPSILON, 1 - MASK_EPSILON)


class ImageNetCGN(FourGenerators):
    """Counterfactual generative network for ImageNet, whole or in parts.

    Copy it through `state_dict`: `copy.deepcopy` fails once BigGAN's spectral norm has run with gradients.

    Args:
        architecture: its sizes.
        generator: source of the starting weights. Without one the networks stay on PyTorch's "meta" device,
            where they take no memory, for `load` to fill.
        parts: which of `PARTS` to hold.
    """

    def __init__(
        self,
        architecture: Architecture = CGN_256,
        generator: torch.Generator | None = None,
        parts: Sequence[Part] = PARTS,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        with torch.device("meta"):
            for part in parts:
                network = (
                    U2Net(architecture.u2net_widths) if part == "u2net" else BigGAN(architecture.biggan_config(part))
                )
                self.add_module(part, network.requires_grad_(part not in FROZEN))
        if generator is not None:
            initialize(self.to_empty(device="cpu"), generator)
        self.train()

    @classmethod
    def load(cls, path: Path, architecture: Architecture = CGN_256, parts: Sequence[Part] = PARTS) -> Self:
        """Read the weights of `parts`, strictly, from a file in the format of `cgn.pth`.

        Only those parts enter memory where the file allows it (safetensors, and PyTorch's format since 1.6).
        A file of one network alone (BigGAN-deep-256, `u2net.pth`) serves where `parts` names just that one.

        Args:
            path: a `.safetensors` file, or anything else that `torch.save` wrote. Half precision becomes float32;
                a `module.` in the keys, left there by data parallelism, is ignored.
            architecture: sizes of the stored networks.
            parts: which of `PARTS` to load; the file need not have the others.

        Returns:
            The network in evaluation mode.

        Raises:
            InputError: the file is missing, is no weight file, or has other weights than this architecture.
        """
        state = {re.sub(r"\bmodule\.", "", str(key)): tensor for key, tensor in load_state_dict(path).items()}
        if len(parts) == 1 and not any(_part_of(key) in PARTS for key in state):
            state = {f"{parts[0]}.{key}": tensor for key, tensor in state.items()}
        left_out = set(PARTS) - set(parts)
        own = {key: tensor for key, tensor in state.items() if _part_of(key) not in left_out}
        misfit = f"The weights in {path} do not fit this architecture of {', '.join(parts)} (is it the right file?)"
        return fill(cls(architecture, parts=parts), own, misfit)

    def generate(self, name: GeneratorName, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one of the four generators, a BigGAN; see `FourGenerators.generate`."""
        NoisePrior(truncation)  # raises where it is out of range
        one_hot = F.one_hot(labels, self.architecture.num_classes).to(noise.dtype)
        return self.get_submodule(name)(noise, one_hot, truncation)


@torch.no_grad()
def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Give starting weights to a BigGAN, a U²-Net or a whole CGN, every one drawn from `generator`.

    Distributions are PyTorch's defaults, which would draw from the global generator, with these differences:
    BigGAN's last normalization starts as the identity (the package leaves it as uninitialized memory),
    spectral norms start after some rounds of their power iteration (else a first evaluation divides by an
    arbitrary number), and class embeddings start at N(0, 1), the scale of the noise beside them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral = hasattr(module, "weight_orig")
            weight = module.weight_orig if spectral else module.weight
            bound = weight[0].numel() ** -0.5
            for parameter in (weight, module.bias):
                if parameter is not None:
                    parameter.uniform_(-bound, bound, generator=generator)
            if spectral:
                matrix, u = weight.flatten(1), module.weight_u.normal_(generator=generator)
                for _ in range(_POWER_ITERATIONS):
                    module.weight_v.copy_(F.normalize(matrix.T @ u, dim=0))
                    u.copy_(F.normalize(matrix @ module.weight_v, dim=0))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, BigGANBatchNorm):
            module.running_means.zero_()
            module.running_vars.fill_(1)
            if not module.conditional:
                module.weight.fill_(1)
                module.bias.zero_()
        elif isinstance(module, SelfAttn):
            module.gamma.zero_()
    for module in network.modules():
        if isinstance(module, BigGAN):
            module.embeddings.weight.normal_(generator=generator)


def _part_of(key: str) -> str:
    return key.split(".", 1)[0]
