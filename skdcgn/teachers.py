"""Teachers as black boxes, and the records of theirs that a student learns from.

A teacher turns noise, label and mechanism into an output, and shows nothing else of itself. A record keeps noise, label
and image together, so that a student always meets an image with the noise it came from.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from skdcgn import distributed, weights
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, shuffle_patches
from skdcgn.models import cgn_mnist
from skdcgn.models.tinygan import TinyGANCGN

OWN_TEACHER = Path(__file__).parent / "assets" / "cgn_double_colored_mnist.safetensors"
"""A CGN that this project trained on double-colored MNIST; the file's metadata has command, seed and scores."""
OWN_TEACHER_NAME = "our own double_colored MNIST CGN"


class Teacher(Protocol):
    """A pretrained CGN under black-box access. Students implement it too, as sources of counterfactuals."""

    name: str
    """Where it comes from, for tags and titles."""
    sha256: str
    """Identity of its weights."""
    stand_in: bool
    """Whether it is an untrained or miniature stand-in for the paper's teacher."""
    resolution: int
    """Side of its images."""
    num_classes: int
    """Labels are integers below this."""
    noise_dim: int
    """Length of its noise vector."""

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw noise (n, noise_dim) from the teacher's own prior."""
        ...

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return a mask (B, 1, H, W) in [0, 1], or a texture or background (B, 3, H, W) in [-1, 1].

        The same input always gives the same output. Inputs may lie on any device; the output is on the teacher's.
        """
        ...

    def parameters(self, mechanism: Mechanism) -> int:
        """Count a mechanism's parameters: for the tables of sizes, never for training."""
        ...


class MNISTTeacher:
    """A CGN for an MNIST variant behind the `Teacher` protocol; its mechanisms may be TinyGANs."""

    resolution = cgn_mnist.RESOLUTION
    noise_dim = cgn_mnist.NOISE_DIM

    def __init__(
        self,
        cgn: cgn_mnist.CGN | TinyGANCGN,
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

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw u ~ N(0, I_32), (n, 32), on the generator's device."""
        return torch.randn(n, self.noise_dim, generator=generator, device=generator.device)

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism; see `Teacher.render`."""
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
    cgn = cgn_mnist.CGN()
    try:
        cgn.load_state_dict(weights.load_state_dict(located))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{located} is not a checkpoint of an MNIST CGN: {reason}") from None
    if name is None:
        name = f"CGN authors' {dataset} MNIST" if path is None else path.name
        name = OWN_TEACHER_NAME if located == OWN_TEACHER else name
    return MNISTTeacher(cgn, name, weights.sha256(located), stand_in, device)


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


class Records(NamedTuple):
    """Noise, label and image of the same draws: what a student learns from."""

    noise: Tensor
    """z, (B, noise_dim)."""
    labels: Tensor
    """y, (B,)."""
    images: Tensor
    """T(z, y), (B, C, H, W) in [-1, 1]; masks are mapped there too."""


def balanced_labels(per_class: int, num_classes: int) -> Tensor:
    """Return labels 0, 1, ..., num_classes - 1, 0, 1, ... with `per_class` of each: (per_class * num_classes,)."""
    return torch.arange(num_classes).repeat(per_class)


def draw_records(
    teacher: Teacher,
    mechanism: Mechanism,
    labels: Tensor,
    generator: torch.Generator,
    published_code: bool = False,
) -> Records:
    """Draw one record for each label.

    Args:
        teacher: the black box.
        mechanism: what to render.
        labels: y, (B,), on the generator's device.
        generator: source of the noise.
        published_code: draw as the published scripts did: images come from other noise than the stored one unless
            the mechanism is shape, patches are shuffled, and targets are JPEGs, normalised per image, at twice the
            side.

    Returns:
        Records whose images have the teacher's resolution (twice that with `published_code`) and the mechanism's
        own channels (3 with `published_code`).
    """
    noise = teacher.sample_noise(len(labels), generator)
    if not published_code:
        return render_records(teacher, mechanism, noise, labels)
    if mechanism is Mechanism.SHAPE:
        output = teacher.render(mechanism, noise, labels).to(noise.device)
    else:
        own_noise = teacher.sample_noise(len(labels), generator)  # rendered from, and never stored
        output = shuffle_patches(teacher.render(mechanism, own_noise, labels).to(noise.device), generator)
    return Records(noise, labels, _as_published_files(mechanism.to_image(output, 3)))


def render_records(teacher: Teacher, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Records:
    """Return the records of given noise (B, noise_dim) and labels (B,); images are on the noise's device."""
    output = teacher.render(mechanism, noise, labels).to(noise.device)
    return Records(noise, labels, mechanism.to_image(output, mechanism.channels))


def _as_published_files(images: Tensor) -> Tensor:
    """What became of images (B, 3, H, W) on their way through the published scripts' files.

    Nearest upsampling to twice the side, min-max normalisation of each image, and a JPEG round trip.
    """
    images = F.interpolate(images, scale_factor=2, mode="nearest")
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    pixels = ((images - low) / (high - low).clamp_min(1e-5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    decoded = [_jpeg_round_trip(image) for image in pixels.cpu().numpy()]
    return to_float(torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)).to(images.device)


def _jpeg_round_trip(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return np.asarray(Image.open(buffer))


def to_uint8(images: Tensor) -> Tensor:
    """Quantise images in [-1, 1] to 0..255."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Map 0..255 back to [-1, 1]."""
    return images.float() / 127.5 - 1


class FreshBatches:
    """Endless batches rendered on the fly: noise never repeats. Resumable through its state.

    Of several processes each draws the noise and labels of the whole batch, and renders its own share.
    """

    def __init__(
        self,
        teacher: Teacher,
        mechanism: Mechanism,
        batch_size: int,
        generator: torch.Generator,
        classes: Sequence[int] | None = None,
    ) -> None:
        self._teacher, self._mechanism = teacher, mechanism
        self._batch_size, self._generator = batch_size, generator
        self._classes = torch.tensor(range(teacher.num_classes) if classes is None else classes)
        self._share = distributed.share(batch_size)

    def __next__(self) -> Records:
        device = self._generator.device
        index = torch.randint(len(self._classes), (self._batch_size,), generator=self._generator, device=device)
        noise = self._teacher.sample_noise(self._batch_size, self._generator)
        labels = self._classes.to(device)[index]
        return render_records(self._teacher, self._mechanism, noise[self._share], labels[self._share])

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"].cpu())
