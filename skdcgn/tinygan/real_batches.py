"""Batches of real images beside noise, for TinyGAN's discriminator."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from skdcgn.data.imagenet import centre_crop, image_folder, read_image
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.mechanisms import Source
from skdcgn.tinygan.records import Records

_READERS = 8  # threads: decoding lets go of Python's lock


class RealBatches:
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
            InputError: the folder is none (see `imagenet_data.image_folder`), or its classes are not the teacher's.
        """
        self._images = image_folder(folder / "train" if (folder / "train").is_dir() else folder)
        if len(self._images.classes) != teacher.num_classes:
            raise InputError(
                f"--real-images {folder} has {len(self._images.classes)} classes, but {teacher.name} has "
                f"{teacher.num_classes}: give a folder with one folder for each of them, such as ImageNet's train."
            )
        self._teacher, self._batch_size, self._generator = teacher, batch_size, generator
        self._readers = ThreadPoolExecutor(min(batch_size, _READERS))

    def __next__(self) -> Records:
        device = self._generator.device
        index = torch.randint(len(self._images), (self._batch_size,), generator=self._generator, device=device).cpu()
        pixels = torch.stack(list(self._readers.map(self._read, index.tolist())))
        noise = self._teacher.sample_noise(self._batch_size, self._generator)
        return Records(noise, self._images.labels[index].to(device), to_float(pixels.to(device)))

    def _read(self, index: int) -> Tensor:
        return centre_crop(read_image(self._images.paths[index]), self._teacher.resolution)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"].cpu())
