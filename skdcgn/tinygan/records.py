"""Teachers as black boxes, and the records of theirs that a student learns from.

A teacher turns noise, label and mechanism into an output, and shows nothing else of itself. A record keeps noise, label
and image together, so that a student always meets an image with the noise it came from.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from skdcgn import distributed
from skdcgn.images import to_float
from skdcgn.mechanisms import Mechanism, Source, shuffle_patches


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


def render_records(teacher: Source, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Records:
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


class FreshBatches:
    """Endless batches rendered on the fly: noise never repeats. Resumable through its state.

    Of several processes each draws the noise and labels of the whole batch, and renders its own share.
    """

    def __init__(
        self,
        teacher: Source,
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
