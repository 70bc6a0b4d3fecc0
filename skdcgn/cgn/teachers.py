"""The CGN for ImageNet as a black-box teacher, its miniature stand-in, and subsets of ImageNet's classes."""

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_pretrained_biggan import BigGAN
from torch import Tensor, nn

from skdcgn import files as project_files
from skdcgn.cgn import mnist
from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.cgn.imagenet import (
    CGN_256,
    MINIATURE,
    PARTS_OF,
    Architecture,
    ImageNetCGN,
    Part,
    load_mechanism,
)
from skdcgn.cgn.miniature import load_miniature
from skdcgn.cgn.u2net import U2Net
from skdcgn.data import registry, weights
from skdcgn.errors import InputError
from skdcgn.measure import cost
from skdcgn.mechanisms import NORMAL, Mechanism, NoisePrior, Source
from skdcgn.runtime import Precision, autocast

OWN_TEACHER = Path(__file__).parents[1] / "assets" / "cgn_double_colored_mnist.safetensors"
"""A CGN that this project trained on double-colored MNIST; the file's metadata has command, seed and scores."""

OWN_TEACHER_NAME = "our own double_colored MNIST CGN"


class MNISTTeacher(Source):
    """A CGN for an MNIST variant; its mechanisms may be TinyGANs."""

    resolution = mnist.RESOLUTION
    noise_dim = mnist.NOISE_DIM
    prior = NORMAL

    def __init__(
        self,
        cgn: mnist.CGN | TinyGANCGN,
        name: str,
        sha256: str,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cgn = cgn.to(device).eval().requires_grad_(False)
        self.name = name
        self.sha256 = sha256
        self.stand_in = stand_in
        self.num_classes = cgn.num_classes

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism; see `Source.render`."""
        device = next(self.cgn.parameters()).device
        return self.cgn(mechanism, noise.to(device), labels.to(device))

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the parameters of a mechanism's own network (the shared label embedding left out)."""
        return sum(parameter.numel() for parameter in self.cgn.network(mechanism).parameters())


def mnist_teacher(
    dataset: str,
    path: Path | None = None,
    device: torch.device | str = "cpu",
    name: str | None = None,
    stand_in: bool = False,
) -> MNISTTeacher:
    """Load a pretrained MNIST CGN.

    Args:
        dataset: colored, double_colored or wildlife: the CGN authors' weights for it. Where those for double_colored
            are not at hand, it is the teacher of our own that comes with the package, and a warning says so.
        path: another checkpoint of the same architecture, instead of theirs.
        device: where to run it.
        name: for tags and titles; by default it says whose weights these are.
        stand_in: whether it stands in for the paper's teacher.

    Raises:
        InputError: the weights are not at hand, or are not those of an MNIST CGN.
    """
    located = path or _pretrained(dataset)
    cgn = mnist.CGN()
    try:
        cgn.load_state_dict(weights.load_state_dict(located))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{located} is not a checkpoint of an MNIST CGN: {reason}") from None
    if name is None:
        name = f"CGN authors' {dataset} MNIST" if path is None else path.name
        name = OWN_TEACHER_NAME if located == OWN_TEACHER else name
    return MNISTTeacher(cgn, name, project_files.sha256(located), stand_in, device)


def _pretrained(dataset: str) -> Path:
    """Return the CGN authors' weights, or our own where theirs are not to be had."""
    weights.data_dir()  # a wrong SKDCGN_DATA_DIR is a mistake to report
    try:
        return weights.locate(f"cgn_{dataset}_mnist")
    except InputError as error:
        if dataset != "double_colored":
            raise
        warnings.warn(f"the teacher is {OWN_TEACHER_NAME}, from the package: {error}", stacklevel=3)
        return OWN_TEACHER


TRUNCATION = 0.5
"""CGN's own for data sets, with the real weights."""

MINIATURE_TRUNCATION = 1.0
"""The miniature is fitted for truncations above 0.4 and is most diverse without any."""

_ASSETS = Path(__file__).parents[1] / "assets"

MINIATURE_FILE = _ASSETS / "miniature_cgn.safetensors"
"""The fitted miniature, made by `experiments/fit_miniature.py`."""

_PIXELS = 1 << 20  # rendered at a time: 16 images of 256x256, 1024 of 32x32


class ImageNetTeacher(Source):
    """A CGN for ImageNet, whole or one mechanism at a time."""

    def __init__(
        self,
        load: Callable[[Mechanism], ImageNetCGN],
        architecture: Architecture,
        name: str,
        sha256: str,
        truncation: float = TRUNCATION,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        reason: str = "",
    ) -> None:
        """Make a teacher that loads nothing yet.

        Args:
            load: returns a network that has at least the parts of a mechanism. Only what it gave last is kept.
            architecture: sizes of that network.
            name: for tags and titles.
            sha256: identity of the weights.
            truncation: of the noise and of BigGAN's statistics, in (0, 1].
            stand_in: whether it stands in for the authors' weights.
            device: where to render.
            precision: bf16 renders in mixed precision. It is part of the teacher: targets differ a little.
            reason: one line that says why it is this teacher, for people.

        Raises:
            InputError: the truncation is out of range.
        """
        if not 0 < truncation <= 1:
            raise InputError(f"The truncation must lie in (0, 1], not {truncation:g}: try CGN's own, {TRUNCATION}.")
        self._load, self._device, self._precision = load, torch.device(device), precision
        self._cgn: tuple[Mechanism, ImageNetCGN] | None = None
        self.architecture, self.truncation, self.prior = architecture, truncation, NoisePrior(truncation)
        # What it renders depends on these as well, and whatever is derived from it must be told apart by them.
        setting = f"{sha256} truncation {truncation:g} {precision}"
        self.sha256 = hashlib.sha256(setting.encode()).hexdigest()
        self.weights_sha256 = sha256
        self.name, self.stand_in, self.reason = name, stand_in, reason
        self.resolution = architecture.resolution
        self.num_classes = architecture.num_classes
        self.noise_dim = architecture.noise_dim

    @classmethod
    def of(
        cls,
        cgn: ImageNetCGN,
        name: str,
        truncation: float = TRUNCATION,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
        reason: str = "",
    ) -> "ImageNetTeacher":
        """Make a teacher of a CGN in memory, such as a trained baseline; its SHA-256 is that of its tensors."""
        digest = hashlib.sha256()
        for key, tensor in sorted(cgn.state_dict().items()):
            digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
        frozen = cgn.eval().requires_grad_(False)
        return cls(
            lambda _: frozen, cgn.architecture, name, digest.hexdigest(), truncation, stand_in, device, reason=reason
        )

    def network(self, mechanism: Mechanism) -> ImageNetCGN:
        """Return a network with the parts of a mechanism, frozen; the mechanism asked for before may be dropped."""
        if self._cgn is None or (
            self._cgn[0] is not mechanism and not all(hasattr(self._cgn[1], part) for part in PARTS_OF[mechanism])
        ):
            self._cgn = None  # before the next one is read: never two in memory
            self._cgn = mechanism, self._load(mechanism).to(self._device, memory_format=torch.channels_last)
        return self._cgn[1]

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism, a bounded number of images at a time; see `Source.render`."""
        network = self.network(mechanism)
        noise, labels = noise.to(self._device), labels.to(self._device)
        at_once = max(1, _PIXELS // self.resolution**2)
        with autocast(self._device, self._precision):
            outputs = [
                network(mechanism, u, y, self.truncation).float()
                for u, y in zip(noise.split(at_once), labels.split(at_once), strict=True)
            ]
        return torch.cat(outputs)

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the parameters of a mechanism: its generator, and for the shape the U²-Net as well."""
        network = self.network(mechanism)
        return sum(p.numel() for part in PARTS_OF[mechanism] for p in network.get_submodule(part).parameters())


def imagenet_teacher(
    path: Path | None = None,
    device: torch.device | str = "cpu",
    truncation: float | None = None,
    precision: Precision = "fp32",
) -> ImageNetTeacher:
    """Return the CGN authors' ImageNet CGN where it is at hand, else the miniature.

    Nothing is downloaded: the file has 1.1 GB, and `python -m skdcgn weights` says how to get it. Weights are read
    when a mechanism is first rendered, and only that mechanism's.

    Args:
        path: another file in the format of `cgn.pth`.
        device: where to render.
        truncation: 0.5 by default for the authors', 1 for the miniature.
        precision: of rendering with the authors' weights.

    Raises:
        InputError: `path` does not exist, or the file that is at hand is damaged.
    """
    if path is None and weights.status(registry.REGISTRY["cgn_imagenet"])[0] == "missing":
        return miniature_teacher(device, truncation)
    located = path if path is not None else weights.locate("cgn_imagenet", download=False)
    if not located.is_file():
        raise InputError(f"There is no ImageNet CGN at {located}: correct the path, or leave it out.")
    return ImageNetTeacher(
        functools.partial(load_mechanism, located),
        CGN_256,
        "CGN authors' ImageNet" if path is None else path.name,
        _sha256(located, located.stat().st_mtime_ns),
        TRUNCATION if truncation is None else truncation,
        device=device,
        precision=precision,
        reason=f"ImageNet CGN: {located}",
    )


def miniature_teacher(device: torch.device | str = "cpu", truncation: float | None = None) -> ImageNetTeacher:
    """Return the packaged miniature: the ImageNet CGN's classes at 32x32, fitted to the Wildlife-MNIST CGN.

    Args:
        device: where to render.
        truncation: 1 by default.

    Raises:
        InputError: the package lacks it.
    """
    if not MINIATURE_FILE.is_file():
        raise InputError(
            f"The package lacks {MINIATURE_FILE.name}: install it again, or make it with "
            "python experiments/fit_miniature.py."
        )
    cgn = load_miniature(MINIATURE_FILE)
    return ImageNetTeacher.of(
        cgn,
        "miniature ImageNet CGN (32x32, 10 classes)",
        MINIATURE_TRUNCATION if truncation is None else truncation,
        stand_in=True,
        device=device,
        reason="ImageNet CGN: the packaged miniature at 32x32, a stand-in (python -m skdcgn weights says how to get "
        "the authors' 1.1 GB)",
    )


def miniature(generator: torch.Generator, device: torch.device | str = "cpu") -> ImageNetTeacher:
    """Return a miniature with random weights: for tests, where any deterministic black box will do."""
    cgn = ImageNetCGN(MINIATURE, generator)
    return ImageNetTeacher.of(cgn, "random miniature ImageNet CGN", MINIATURE_TRUNCATION, stand_in=True, device=device)


@functools.lru_cache
def _sha256(path: Path, _modified: int) -> str:
    return project_files.sha256(path)


_PIXELS = 1 << 20  # pixels rendered at a time: 16 images of 256x256, 1024 of 32x32


class UnconstrainedTeacher(Source):
    """A CGN's unconstrained generator as a source.

    It has one output, a picture, and goes by the name of the mechanism whose output is a picture of the same kind:
    the texture.
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
        self.sha256 = hashlib.sha256(f"{digest(biggan)} truncation {truncation:g}".encode()).hexdigest()

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: asked for a mechanism that is no picture.
        """
        if mechanism is not Mechanism.TEXTURE:
            raise ValueError(f"the unconstrained generator draws pictures, no {mechanism}")
        at_once = _at_once(self.resolution)
        batches = zip(noise.to(self.device).split(at_once), labels.to(self.device).split(at_once), strict=True)
        one_hot = torch.eye(self.num_classes, device=self.device)
        return torch.cat([self._biggan(u, one_hot[y], self.truncation) for u, y in batches])

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the generator's parameters."""
        return cost.parameters(self._biggan)


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
    architecture = CGN_256 if cgn is None else cgn.architecture

    def load(part: Part, path: Path | None) -> nn.Module:
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


def digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    result = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        result.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def _at_once(resolution: int) -> int:
    """Return how many images of a side to render at a time."""
    return max(1, _PIXELS // resolution**2)
