"""CGNs as black-box teachers: those for MNIST variants, the one for ImageNet, and its miniature stand-in."""

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from skdcgn.cgn import mnist
from skdcgn.cgn.imagenet import CGN_256, MINIATURE, PARTS_OF, Architecture, FourGenerators, ImageNetCGN
from skdcgn.cgn.miniature import load_miniature
from skdcgn.data import registry, weights
from skdcgn.errors import InputError, Unavailable
from skdcgn.files import sha256
from skdcgn.mechanisms import NORMAL, Mechanism, NoisePrior, Source, in_chunks
from skdcgn.runtime import Precision, autocast
from skdcgn.training import state_digest

_ASSETS = Path(__file__).parents[1] / "assets"

OWN_TEACHER = _ASSETS / "cgn_double_colored_mnist.safetensors"
"""A CGN that this project trained on double-colored MNIST; the file's metadata has command, seed and scores."""
OWN_TEACHER_NAME = "our own double_colored MNIST CGN"

TRUNCATION = 0.5
"""CGN's own for data sets, with the real weights."""
MINIATURE_TRUNCATION = 1.0
"""The miniature is fitted for truncations above 0.4 and is most diverse without any."""

MINIATURE_FILE = _ASSETS / "miniature_cgn.safetensors"
"""The fitted miniature, made by `experiments/fit_miniature.py`."""


class MNISTTeacher(Source):
    """A CGN for an MNIST variant; its mechanisms may be TinyGANs."""

    resolution = mnist.RESOLUTION
    noise_dim = mnist.NOISE_DIM
    prior = NORMAL

    def __init__(
        self,
        cgn: mnist.MechanismNetworks,
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
    misfit = f"{located} is not a checkpoint of an MNIST CGN"
    cgn = weights.fill(mnist.CGN(), weights.load_state_dict(located), misfit)
    if name is None:
        name = f"CGN authors' {dataset} MNIST" if path is None else path.name
        name = OWN_TEACHER_NAME if located == OWN_TEACHER else name
    return MNISTTeacher(cgn, name, sha256(located), stand_in, device)


def _pretrained(dataset: str) -> Path:
    """Return the CGN authors' weights, or our own where theirs are not available."""
    try:
        return weights.locate(f"cgn_{dataset}_mnist")
    except Unavailable as error:
        if dataset != "double_colored":
            raise
        warnings.warn(f"the teacher is {OWN_TEACHER_NAME}, from the package: {error}", stacklevel=3)
        return OWN_TEACHER


class ImageNetTeacher(Source):
    """A CGN for ImageNet, whole or one mechanism at a time."""

    def __init__(
        self,
        load: Callable[[Mechanism], FourGenerators],
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
        self._load, self._device, self._precision = load, torch.device(device), precision
        self._cgn: tuple[Mechanism, FourGenerators] | None = None
        self.architecture, self.truncation, self.prior = architecture, truncation, NoisePrior(truncation)
        # What it renders depends on these as well, and whatever is derived from it must be told apart by them.
        setting = f"{sha256} truncation {truncation:g} {precision}"
        self.sha256 = hashlib.sha256(setting.encode()).hexdigest()
        self.name, self.stand_in, self.reason = name, stand_in, reason
        self.resolution = architecture.resolution
        self.num_classes = architecture.num_classes
        self.noise_dim = architecture.noise_dim

    @classmethod
    def of(
        cls,
        cgn: FourGenerators,
        name: str,
        truncation: float = TRUNCATION,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
        reason: str = "",
    ) -> "ImageNetTeacher":
        """Make a teacher of a CGN in memory, such as a trained baseline; its SHA-256 is that of its tensors."""
        sha256, frozen = state_digest(cgn.state_dict()), cgn.eval().requires_grad_(False)
        return cls(lambda _: frozen, cgn.architecture, name, sha256, truncation, stand_in, device, reason=reason)

    def network(self, mechanism: Mechanism) -> FourGenerators:
        """Return a network with the parts of a mechanism, frozen; the mechanism asked for before may be dropped."""
        if self._cgn is None or (
            self._cgn[0] is not mechanism and not all(hasattr(self._cgn[1], part) for part in PARTS_OF[mechanism])
        ):
            self._cgn = None  # before the next one is read: never two in memory
            network = self._load(mechanism).requires_grad_(False)
            self._cgn = mechanism, network.to(self._device, memory_format=torch.channels_last)
        return self._cgn[1]

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism, a bounded number of images at a time; see `Source.render`."""
        network = self.network(mechanism)
        noise, labels = noise.to(self._device), labels.to(self._device)
        with autocast(self._device, self._precision):
            run = functools.partial(network, mechanism, truncation=self.truncation)
            return in_chunks(lambda u, y: run(u, y).float(), noise, labels, images_at_once(self.resolution))

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
        lambda mechanism: ImageNetCGN.load(located, parts=PARTS_OF[mechanism]),
        CGN_256,
        "CGN authors' ImageNet" if path is None else path.name,
        _checksum(located, located.stat().st_mtime_ns),
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
        raise InputError(f"The package lacks {MINIATURE_FILE.name}: install it again.")
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
def _checksum(path: Path, _modified: int) -> str:
    return sha256(path)


def images_at_once(resolution: int) -> int:
    """Return how many images of a side are rendered at a time: 16 of 256x256, 1024 of 32x32."""
    return max(1, (1 << 20) // resolution**2)
