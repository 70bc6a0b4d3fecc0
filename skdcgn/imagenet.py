"""The CGN for ImageNet as a black-box teacher, its miniature stand-in, and subsets of ImageNet's classes."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from skdcgn import weights
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.miniature import load_miniature
from skdcgn.models.cgn_imagenet import (
    CGN_256,
    MINIATURE,
    PARTS_OF,
    Architecture,
    ImageNetCGN,
    load_mechanism,
    truncated_noise,
)
from skdcgn.runtime import Precision, autocast

TRUNCATION = 0.5
"""CGN's own for data sets, with the real weights."""
MINIATURE_TRUNCATION = 1.0
"""The miniature is fitted for truncations above 0.4 and is most diverse without any."""
ANIMALS = range(398)
"""The animals among ImageNet's classes."""

_ASSETS = Path(__file__).parent / "assets"
MINIATURE_FILE = _ASSETS / "miniature_cgn.safetensors"
"""The fitted miniature, made by `experiments/fit_miniature.py`."""

_PIXELS = 1 << 20  # rendered at a time: 16 images of 256x256, 1024 of 32x32


class ImageNetTeacher:
    """A CGN for ImageNet, whole or one mechanism at a time, behind the `teachers.Teacher` protocol."""

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
        self.architecture, self.truncation = architecture, truncation
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

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw u, (n, noise_dim): a normal cut off at ±2, times the truncation, on the generator's device."""
        return truncated_noise(n, self.noise_dim, self.truncation, generator)

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism, a bounded number of images at a time; see `teachers.Teacher.render`."""
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

    Nothing is downloaded: the file has 1.1 GB, and `python -m skdcgn.weights` says how to get it. Weights are read
    when a mechanism is first rendered, and only that mechanism's.

    Args:
        path: another file in the format of `cgn.pth`.
        device: where to render.
        truncation: 0.5 by default for the authors', 1 for the miniature.
        precision: of rendering with the authors' weights.

    Raises:
        InputError: `path` does not exist, or the file that is at hand is damaged.
    """
    if path is None and weights.status(weights.REGISTRY["cgn_imagenet"])[0] == "missing":
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
        reason="ImageNet CGN: the packaged miniature at 32x32, a stand-in (python -m skdcgn.weights says how to get "
        "the authors' 1.1 GB)",
    )


def miniature(generator: torch.Generator, device: torch.device | str = "cpu") -> ImageNetTeacher:
    """Return a miniature with random weights: for tests, where any deterministic black box will do."""
    cgn = ImageNetCGN(MINIATURE, generator)
    return ImageNetTeacher.of(cgn, "random miniature ImageNet CGN", MINIATURE_TRUNCATION, stand_in=True, device=device)


@functools.lru_cache
def _sha256(path: Path, _modified: int) -> str:
    return weights.sha256(path)


def select_classes(spec: str, mechanism: Mechanism, num_classes: int = 1000) -> tuple[int, ...]:
    """Return the classes that a subset's description stands for, ascending.

    Args:
        spec: `all`; `animals` (0 to 397); `best`, those that CGN's authors found to work well for the mechanism; or
            ids and ranges of ids, such as `0-99` or `1,5,7-9`.
        mechanism: for `best`.
        num_classes: of the teacher.

    Raises:
        InputError: the description cannot be read, or names a class that the teacher does not have.
    """
    if spec == "all":
        return tuple(range(num_classes))
    if spec == "animals":
        ids = set(ANIMALS)
    elif spec == "best":
        ids = set(json.loads((_ASSETS / "imagenet_best_classes.json").read_text())[mechanism.value])
    else:
        ids = set()
        for part in spec.split(","):
            found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if not found or int(found[2] or found[1]) < int(found[1]):
                raise InputError(
                    f"--classes {spec} cannot be read at {part!r}: give all, animals, best, or ids such as 1,5,7-9."
                )
            ids |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    if max(ids) >= num_classes:
        raise InputError(
            f"--classes {spec} names class {max(ids)}, but this teacher has {num_classes}: give ids from 0 to "
            f"{num_classes - 1}, or all."
        )
    return tuple(sorted(ids))
