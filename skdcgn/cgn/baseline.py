"""TinyGAN (Chang and Lu, 2020; paper Sec. A.2): the student generator and its projection discriminator.

One generator and one discriminator cover every setting: the published ones (64x64 for MNIST, 256x256 for ImageNet)
and the right-sized native 32x32 student. Images are in [-1, 1].
"""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skdcgn.cgn.imagenet import FROZEN, GENERATORS, PARTS_OF, GeneratorName
from skdcgn.cgn.u2net import FULL_WIDTHS, U2Net, Widths
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.mechanisms import MASK_EPSILON, Mechanism
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANGenerator


class TinyGANCGN(nn.Module):
    """A CGN whose mechanisms are three TinyGAN generators, to be trained without a teacher: the paper's baseline."""

    def __init__(self, config: TinyGANConfig) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.generators = nn.ModuleDict(
            {mechanism.value: TinyGANGenerator(config.for_mechanism(mechanism)) for mechanism in Mechanism}
        )

    def network(self, mechanism: Mechanism) -> TinyGANGenerator:
        """Return the network of one mechanism."""
        return self.generators[mechanism.value]

    def forward(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism, with inputs and outputs like those of `cgn_mnist.CGN`."""
        output = mechanism.from_image(self.network(mechanism)(noise, labels))
        return output.clamp(MASK_EPSILON, 1 - MASK_EPSILON) if mechanism is Mechanism.SHAPE else output


class TinyGANImageNetCGN(nn.Module):
    """An ImageNet CGN with TinyGANs in place of BigGANs; its parts have the names of `ImageNetCGN`'s.

    Args:
        architecture: of all four TinyGANs.
        u2net_widths: sizes of the U²-Net.
    """

    def __init__(self, architecture: TinyGANConfig, u2net_widths: Widths = FULL_WIDTHS) -> None:
        super().__init__()
        self.architecture, self.u2net_widths = architecture, u2net_widths
        for name in GENERATORS:
            self.add_module(name, TinyGANGenerator(architecture).requires_grad_(name not in FROZEN))
        self.u2net = U2Net(u2net_widths).requires_grad_(False)
        self.train()

    @classmethod
    def of(cls, tinygan: TinyGANGenerator, u2net: U2Net) -> Self:
        """Return the CGN that training starts from: four times one TinyGAN, and a trained U²-Net."""
        with torch.device("meta"):
            cgn = cls(tinygan.config, _widths(u2net))
        for name in GENERATORS:
            cgn.get_submodule(name).load_state_dict(copy.deepcopy(tinygan.state_dict()), assign=True)
            cgn.get_submodule(name).requires_grad_(name not in FROZEN)
        cgn.u2net.load_state_dict(u2net.state_dict(), assign=True)
        return cgn

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for the frozen networks: they always stay in evaluation mode."""
        super().train(mode)
        for name in FROZEN:
            self.get_submodule(name).eval()
        return self

    def forward(self, mechanism: Mechanism, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one mechanism, with inputs and outputs like those of `ImageNetCGN.forward`."""
        name, *saliency = PARTS_OF[mechanism]
        image = self.generate(name, noise, labels, truncation)
        return self.u2net(image).float().clamp(MASK_EPSILON, 1 - MASK_EPSILON) if saliency else image

    def unconstrained(self, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run the unconstrained TinyGAN, the reconstruction target: (B, 3, H, W) in [-1, 1]."""
        return self.generate("biggan_GT", noise, labels, truncation)

    def generate(self, name: GeneratorName, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one of the four generators: (B, 3, H, W) in [-1, 1]. A TinyGAN has no use for the truncation."""
        del truncation
        return self.get_submodule(name)(noise, labels)


def save_baseline(path: Path, cgn: TinyGANImageNetCGN) -> None:
    """Write a baseline's weights, with its architecture as metadata."""
    metadata = {
        "architecture": json.dumps(dataclasses.asdict(cgn.architecture)),
        "u2net_widths": json.dumps(cgn.u2net_widths),
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in cgn.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)


def load_baseline(path: Path) -> TinyGANImageNetCGN:
    """Read a baseline of `save_baseline`, in evaluation mode.

    Raises:
        InputError: the file is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        widths = tuple(tuple(pair) for pair in json.loads(metadata["u2net_widths"]))
        cgn = TinyGANImageNetCGN(TinyGANConfig(**json.loads(metadata["architecture"])), widths)
        cgn.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no baseline CGN (give the cgn.safetensors of a run): {reason}") from None
    return cgn.eval()


def _widths(u2net: U2Net) -> Widths:
    """Read the sizes of a U²-Net off its stages, each of which leads from its first to its last convolution."""
    stages = [*(f"stage{level}" for level in range(1, 7)), *(f"stage{level}d" for level in range(5, 0, -1))]
    blocks = [u2net.get_submodule(stage) for stage in stages]
    return tuple((block.rebnconv1.conv_s1.out_channels, block.rebnconvin.conv_s1.out_channels) for block in blocks)
