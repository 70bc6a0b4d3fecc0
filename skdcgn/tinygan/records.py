"""Records of a teacher, which a student learns from, and endless batches of them.

A teacher is a black box: it turns noise, label and mechanism into an output, and shows nothing else of itself. A record
keeps noise, label and image together, so that a student always meets an image with the noise it came from.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from skdcgn import distributed
from skdcgn.data.imagenet import center_crop, image_folder, read_image
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.mechanisms import Mechanism, Source, render_finite, shuffle_patches
from skdcgn.training import RandomState

_READERS = 8  # threads: decoding releases Python's lock


class Records(NamedTuple):
    """Noise, label and image of the same draws: what a student learns from."""

    noise: Tensor
    """z, (B, noise_dim)."""
    labels: Tensor
    """y, (B,)."""
    images: Tensor
    """T(z, y), (B, C, H, W) in [-1, 1]; masks are mapped there too."""


def draw_records(
    teacher: Source,
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
            the mechanism is shape, patches are shuffled, and targets are JPEGs, normalized per image, at twice the
            side.

    Returns:
        Records whose images have the teacher's resolution (twice that with `published_code`) and the mechanism's
        own channels (3 with `published_code`).
    """
    noise = teacher.sample_noise(len(labels), generator)
    if not published_code:
        return render_records(teacher, mechanism, noise, labels)
    if mechanism is Mechanism.SHAPE:
        output = render_finite(teacher, mechanism, noise, labels).to(noise.device)
    else:
        own_noise = teacher.sample_noise(len(labels), generator)  # rendered from, and never stored
        output = shuffle_patches(render_finite(teacher, mechanism, own_noise, labels).to(noise.device), generator)
    return Records(noise, labels, _as_published_files(mechanism.to_image(output, 3)))


def render_records(teacher: Source, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Records:
    """Return the records of given noise (B, noise_dim) and labels (B,); images are on the noise's device."""
    output = render_finite(teacher, mechanism, noise, labels).to(noise.device)
    return Records(noise, labels, mechanism.to_image(output, mechanism.channels))


def _as_published_files(images: Tensor) -> Tensor:
    """What became of images (B, 3, H, W) on their way through the published scripts' files.

    Nearest upsampling to twice the side, min-max normalization of each image, and a JPEG round trip.
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


class _DrawnBatches(RandomState):
    """Endless batches drawn from a generator, whose state is theirs.

    Of several processes each draws the indices and the noise of the whole batch, and goes on with its own share.
    """

    def __init__(self, teacher: Source, batch_size: int, generator: torch.Generator) -> None:
        super().__init__(generator)
        self._teacher, self._batch_size, self._share = teacher, batch_size, distributed.share(batch_size)

    def _draw(self, choices: int) -> tuple[Tensor, Tensor]:
        """Draw an index below `choices`, (B,), and noise (B, noise_dim) of this process's records."""
        size, generator = (self._batch_size,), self._generator
        index = torch.randint(choices, size, generator=generator, device=generator.device)
        return index[self._share], self._teacher.sample_noise(self._batch_size, generator)[self._share]


class FreshBatches(_DrawnBatches):
    """Endless batches rendered on the fly: noise never repeats. Resumable through its state."""

    def __init__(
        self,
        teacher: Source,
        mechanism: Mechanism,
        batch_size: int,
        generator: torch.Generator,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(teacher, batch_size, generator)
        self._mechanism = mechanism
        self._classes = torch.tensor(range(teacher.num_classes) if classes is None else classes)

    def __next__(self) -> Records:
        index, noise = self._draw(len(self._classes))
        labels = self._classes.to(index.device)[index]
        return render_records(self._teacher, self._mechanism, noise, labels)


class RealBatches(_DrawnBatches):
    """Endless random batches of real images, each with noise from a teacher's prior beside it. Resumable.

    The images are real, and the noise is what the student draws its own images of the same labels from: the two do
    not belong together as in a teacher's records (Chang and Lu, 2020).
    """

    def __init__(self, folder: Path, teacher: Source, batch_size: int, generator: torch.Generator) -> None:
        """List the images.

        Args:
            folder: an ImageFolder, or a folder with one named `train`.
            teacher: whose noise, number of classes and resolution they are to fit.
            batch_size: images in a batch.
            generator: draws images and noise; its device is where they go.

        Raises:
            InputError: the folder is none (see `data.imagenet.image_folder`), or its classes are not the teacher's.
        """
        super().__init__(teacher, batch_size, generator)
        self.images = image_folder(folder / "train" if (folder / "train").is_dir() else folder)
        if len(self.images.classes) != teacher.num_classes:
            raise InputError(
                f"--real-images {folder} has {len(self.images.classes)} classes, but {teacher.name} has "
                f"{teacher.num_classes}: give a folder with one folder for each of them, such as ImageNet's train."
            )
        self._readers = ThreadPoolExecutor(min(batch_size, _READERS))

    def __next__(self) -> Records:
        index, noise = self._draw(len(self.images))
        pixels = torch.stack(list(self._readers.map(self._read, index.tolist()))).to(index.device)
        return Records(noise, self.images.labels[index.cpu()].to(index.device), to_float(pixels))

    def _read(self, index: int) -> Tensor:
        return center_crop(read_image(self.images.paths[index]), self._teacher.resolution)
