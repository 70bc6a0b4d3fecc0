"""The paper's baseline: CGNs whose mechanisms are TinyGANs, trained without a teacher, and what they start from.

For MNIST a `TinyGANCGN` learns adversarially (`cgn.adversarial`). For ImageNet a `TinyGANImageNetCGN` starts as four
copies of a TinyGAN, distilled from the unconstrained BigGAN, and learns by reconstruction (`cgn.reconstruction`).
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pytorch_pretrained_biggan import BigGAN
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from skdcgn.cgn import imagenet
from skdcgn.cgn.imagenet import FROZEN, GENERATORS, Architecture, FourGenerators, ImageNetCGN
from skdcgn.cgn.mnist import MechanismNetworks
from skdcgn.cgn.teachers import ImageNetTeacher, imagenet_teacher, images_at_once, miniature_teacher
from skdcgn.cgn.u2net import FULL_WIDTHS, U2Net, Widths
from skdcgn.configs.tinygan import TinyGANConfig
from skdcgn.data import registry, weights
from skdcgn.errors import InputError
from skdcgn.mechanisms import MASK_EPSILON, Mechanism, NoisePrior, Source, in_chunks
from skdcgn.tinygan.networks import TinyGANGenerator
from skdcgn.training import state_digest


class TinyGANCGN(MechanismNetworks):
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
        """Run one mechanism; see `MechanismNetworks.forward`."""
        output = mechanism.from_image(self.network(mechanism)(noise, labels))
        return output.clamp(MASK_EPSILON, 1 - MASK_EPSILON) if mechanism is Mechanism.SHAPE else output


class TinyGANImageNetCGN(FourGenerators):
    """An ImageNet CGN with TinyGANs in place of BigGANs; its parts have the names of `ImageNetCGN`'s.

    Args:
        architecture: of all four TinyGANs.
        u2net_widths: sizes of the U²-Net.
    """

    def __init__(self, architecture: TinyGANConfig, u2net_widths: Widths = FULL_WIDTHS) -> None:
        super().__init__()
        self.architecture = architecture
        for name in GENERATORS:
            self.add_module(name, TinyGANGenerator(architecture).requires_grad_(name not in FROZEN))
        self.u2net = U2Net(u2net_widths).requires_grad_(False)
        self.train()

    @classmethod
    def of(cls, tinygan: TinyGANGenerator, u2net: U2Net) -> Self:
        """Return the CGN that training starts from: four times one TinyGAN, and a trained U²-Net."""
        with torch.device("meta"):
            cgn = cls(tinygan.config, u2net.widths)
        for name in GENERATORS:
            cgn.get_submodule(name).load_state_dict(copy.deepcopy(tinygan.state_dict()), assign=True)
            cgn.get_submodule(name).requires_grad_(name not in FROZEN)
        cgn.u2net.load_state_dict(u2net.state_dict(), assign=True)
        return cgn

    def generate(self, name: imagenet.GeneratorName, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one of the four generators; see `FourGenerators.generate`. A TinyGAN has no use for the truncation."""
        del truncation
        return self.get_submodule(name)(noise, labels)


def save_baseline(path: Path, cgn: TinyGANImageNetCGN) -> None:
    """Write a baseline's weights, with its architecture as metadata."""
    metadata = {
        "architecture": json.dumps(dataclasses.asdict(cgn.architecture)),
        "u2net_widths": json.dumps(cgn.u2net.widths),
    }
    weights.save_state_dict(path, cgn.state_dict(), metadata)


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


class UnconstrainedTeacher(Source):
    """A CGN's unconstrained generator as a source, as far as it goes: it has one output, a picture.

    That goes by the name of the mechanism whose output is a picture of the same kind, the texture.
    """

    def __init__(
        self,
        biggan: BigGAN,
        architecture: Architecture,
        name: str,
        truncation: float,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap a generator.

        Args:
            biggan: the part `biggan_GT` of a CGN.
            architecture: of that CGN.
            name: for tags and titles.
            truncation: of the noise and of BigGAN's statistics, in (0, 1].
            stand_in: whether it stands in for BigGAN-deep-256.
            device: where to run.
        """
        self._biggan, self.device = biggan.to(device).eval().requires_grad_(False), torch.device(device)
        self.name, self.truncation, self.stand_in = name, truncation, stand_in
        self.prior = NoisePrior(truncation)
        self.resolution = architecture.resolution
        self.num_classes = architecture.num_classes
        self.noise_dim = architecture.noise_dim
        self.sha256 = hashlib.sha256(
            f"{state_digest(biggan.state_dict())} truncation {truncation:g}".encode()
        ).hexdigest()

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: asked for a mechanism that is no picture.
        """
        if mechanism is not Mechanism.TEXTURE:
            raise ValueError(f"the unconstrained generator draws pictures, no {mechanism}")
        one_hot = torch.eye(self.num_classes, device=self.device)
        noise, labels = noise.to(self.device), labels.to(self.device)
        at_once = images_at_once(self.resolution)
        return in_chunks(lambda u, y: self._biggan(u, one_hot[y], self.truncation), noise, labels, at_once)

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the generator's parameters."""
        return sum(parameter.numel() for parameter in self._biggan.parameters())


class Parts(NamedTuple):
    """What the baseline takes of others' work: never trained here."""

    teacher: ImageNetTeacher | None
    """The whole CGN, to compare with; None where only BigGAN and U²-Net are at hand."""
    reference: UnconstrainedTeacher
    """The unconstrained BigGAN."""
    load_u2net: Callable[[], U2Net]


def load_parts(
    teacher: Path | None,
    biggan: Path | None,
    u2net: Path | None,
    miniature: bool,
    truncation: float,
    device: torch.device | str = "cpu",
) -> Parts:
    """Find the CGN and the parts of it that the baseline needs.

    Args:
        teacher: a file in the format of `cgn.pth`; by default the authors', or the miniature.
        biggan: BigGAN-deep-256 alone, in place of the CGN's `biggan_GT`.
        u2net: U²-Net alone, in place of the CGN's.
        miniature: whether the default is the miniature.
        truncation: of the unconstrained generator.
        device: where to run.

    Raises:
        InputError: a file is missing or damaged.
    """
    if miniature and teacher is None:
        cgn = miniature_teacher(device)
    elif teacher is not None or weights.status(registry.REGISTRY["cgn_imagenet"])[0] != "missing":
        cgn = imagenet_teacher(teacher, device)
    elif biggan is not None and u2net is not None:
        cgn = None
    else:
        raise InputError(
            "this profile needs the ImageNet CGN, which is not at hand (python -m skdcgn weights says how to get it): "
            "give --teacher, or --biggan and --u2net, or take --profile quick, which uses the miniature."
        )
    architecture = imagenet.CGN_256 if cgn is None else cgn.architecture

    def load(part: imagenet.Part, path: Path | None) -> nn.Module:
        if path is None and cgn.stand_in:
            return cgn.network(Mechanism.SHAPE).get_submodule(part)  # the miniature is in memory as a whole
        path = path or teacher or weights.locate("cgn_imagenet", download=False)
        return ImageNetCGN.load(path, architecture, (part,)).get_submodule(part)

    reference = UnconstrainedTeacher(
        load("biggan_GT", biggan),
        architecture,
        f"unconstrained BigGAN of the {cgn.name}" if biggan is None else biggan.name,
        truncation,
        stand_in=cgn is not None and cgn.stand_in and biggan is None,
        device=device,
    )
    return Parts(cgn, reference, lambda: load("u2net", u2net))
