"""Teachers as black boxes, and the stored teacher set that a student learns from.

A teacher turns noise, label and mechanism into an output, and shows nothing else of itself. A record of the teacher
set keeps noise, label and image together, so that a student always meets an image with the noise it came from.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from skdcgn import weights
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, shuffle_patches
from skdcgn.models import cgn_mnist
from skdcgn.runtime import atomic_path, stream


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
    """A CGN for an MNIST variant behind the `Teacher` protocol."""

    resolution = cgn_mnist.RESOLUTION
    noise_dim = cgn_mnist.NOISE_DIM

    def __init__(
        self,
        cgn: cgn_mnist.CGN,
        name: str,
        sha256: str,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._cgn = cgn.to(device).eval().requires_grad_(False)
        self.name = name
        self.sha256 = sha256
        self.stand_in = stand_in
        self.num_classes = cgn.label_emb.num_embeddings

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw u ~ N(0, I_32), (n, 32), on the generator's device."""
        return torch.randn(n, self.noise_dim, generator=generator, device=generator.device)

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism; see `Teacher.render`."""
        device = self._cgn.label_emb.weight.device
        return self._cgn(mechanism, noise.to(device), labels.to(device))

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the parameters of a mechanism's own network (the shared label embedding left out)."""
        return sum(parameter.numel() for parameter in self._cgn.network(mechanism).parameters())


def mnist_teacher(
    dataset: str,
    path: Path | None = None,
    device: torch.device | str = "cpu",
    name: str | None = None,
    stand_in: bool = False,
) -> MNISTTeacher:
    """Load a pretrained MNIST CGN.

    Args:
        dataset: colored, double_colored or wildlife: the CGN authors' weights for it.
        path: another checkpoint of the same architecture, instead of theirs.
        device: where to run it.
        name: for tags and titles; by default it says whose weights these are.
        stand_in: whether it stands in for the paper's teacher.

    Raises:
        InputError: the weights are not at hand, or are not those of an MNIST CGN.
    """
    located = path or weights.locate(f"cgn_{dataset}_mnist")
    cgn = cgn_mnist.CGN()
    try:
        cgn.load_state_dict(weights.load_state_dict(located))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{located} is not a checkpoint of an MNIST CGN: {reason}") from None
    if name is None:
        name = f"CGN authors' {dataset} MNIST" if path is None else path.name
    return MNISTTeacher(cgn, name, weights.sha256(located), stand_in, device)


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
        output = teacher.render(mechanism, noise, labels).to(noise.device)
        return Records(noise, labels, mechanism.to_image(output, mechanism.channels))
    if mechanism is Mechanism.SHAPE:
        output = teacher.render(mechanism, noise, labels).to(noise.device)
    else:
        own_noise = teacher.sample_noise(len(labels), generator)  # rendered from, and never stored
        output = shuffle_patches(teacher.render(mechanism, own_noise, labels).to(noise.device), generator)
    return Records(noise, labels, _as_published_files(mechanism.to_image(output, 3)))


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


@dataclass(frozen=True)
class TeacherSetConfig:
    """A stored teacher set: everything that decides its content, beside the teacher."""

    mechanism: Mechanism
    per_class: int = 1000
    """Records of each class (the paper's setting)."""
    seed: int = 0
    split: str = "train"
    """Sets of different splits share no noise."""
    published_code: bool = False
    """Draw the records as the published scripts did (see `draw_records`)."""


class TeacherSet:
    """A folder of records, a shard for each class, memory-mapped.

    A shard is a safetensors file of noise, labels and images (uint8) that depends on teacher, config and class alone.
    So any number of processes may write a set together, an interrupted one goes on where it stopped, and a lost
    shard can be drawn again.
    """

    CHUNK = 100
    """Records rendered at a time: part of a set's definition, since a batch's size decides how noise is drawn."""

    def __init__(self, folder: Path) -> None:
        """Open a complete set.

        Raises:
            InputError: there is none at `folder`, or a shard is missing or damaged.
        """
        description = folder / "set.json"
        if not description.exists():
            raise InputError(f"no complete teacher set at {folder}: write one with TeacherSet.write.")
        self.description = json.loads(description.read_text())
        shards = [self._open(folder / name) for name in self.description["shards"]]
        self.noise = torch.cat([shard["noise"] for shard in shards])
        self.labels = torch.cat([shard["labels"] for shard in shards])
        self._images = [shard["images"] for shard in shards]
        self._per_class = len(self._images[0])

    @staticmethod
    def _open(path: Path) -> dict[str, Tensor]:
        try:
            with safe_open(path, framework="pt") as shard:
                return {name: shard.get_tensor(name) for name in ("noise", "labels", "images")}
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"shard {path} is missing or damaged ({error}): delete it and write the set again."
            ) from None

    def __len__(self) -> int:
        return len(self.labels)

    def records(self, index: Tensor) -> Records:
        """Return the records at positions `index` (B,), images as floats in [-1, 1]."""
        images = torch.stack([self._images[i // self._per_class][i % self._per_class] for i in index.tolist()])
        return Records(self.noise[index], self.labels[index], to_float(images))

    @classmethod
    def write(cls, folder: Path, teacher: Teacher, config: TeacherSetConfig) -> Iterator[tuple[int, int]]:
        """Write what is missing of a set, yielding (shards there, shards in all).

        Raises:
            InputError: `folder` holds a set of another teacher or config.
        """
        description = {
            "teacher": teacher.sha256,
            **asdict(config),
            "shards": [f"class-{label:04d}.safetensors" for label in range(teacher.num_classes)],
        }
        plan = folder / "plan.json"
        if plan.exists() and json.loads(plan.read_text()) != description:
            raise InputError(f"{folder} holds a teacher set of another teacher or config: choose another folder.")
        with atomic_path(plan) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n")
        for label, name in enumerate(description["shards"]):
            if not (folder / name).exists():
                records = draw_shard(teacher, config, label)
                with atomic_path(folder / name) as temporary:
                    save_file(records._replace(images=to_uint8(records.images))._asdict(), temporary)
            yield label + 1, teacher.num_classes
        with atomic_path(folder / "set.json") as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n")


def draw_shard(teacher: Teacher, config: TeacherSetConfig, label: int) -> Records:
    """Draw (again) the records of one class of a teacher set, images as floats."""
    generator = stream(config.seed, "teacher set", config.split, config.mechanism, label)
    chunks = [
        draw_records(teacher, config.mechanism, labels, generator, config.published_code)
        for labels in torch.full((config.per_class,), label).split(TeacherSet.CHUNK)
    ]
    return Records(*(torch.cat(field).contiguous() for field in zip(*chunks, strict=True)))


def set_folder(root: Path, teacher: Teacher, config: TeacherSetConfig) -> Path:
    """Return the folder under `root` where the set of this teacher and config belongs."""
    key = json.dumps({"teacher": teacher.sha256, **asdict(config)}, sort_keys=True)
    return root / f"{config.mechanism}-{config.split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


class FreshBatches:
    """Endless batches rendered on the fly: noise never repeats. Resumable through its state."""

    def __init__(self, teacher: Teacher, mechanism: Mechanism, batch_size: int, generator: torch.Generator) -> None:
        self._teacher, self._mechanism = teacher, mechanism
        self._batch_size, self._generator = batch_size, generator

    def __next__(self) -> Records:
        device = self._generator.device
        labels = torch.randint(self._teacher.num_classes, (self._batch_size,), generator=self._generator, device=device)
        return draw_records(self._teacher, self._mechanism, labels, self._generator)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"].cpu())


class StoredBatches:
    """Endless batches from a teacher set, reshuffled each epoch, incomplete last batches left out. Resumable."""

    def __init__(
        self,
        records: TeacherSet,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(records) < batch_size:
            raise InputError(f"a teacher set of {len(records)} records is smaller than one batch of {batch_size}.")
        self._records, self._batch_size = records, batch_size
        self._generator, self._device = generator, device
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._epoch_state = self._generator.get_state()
        self._order = torch.randperm(len(self._records), generator=self._generator)
        self._position = 0

    def sample(self, count: int) -> Records:
        """Return `count` records of the training set itself (all of a smaller one), evenly spread over the classes."""
        count = min(count, len(self._records))
        return self._records.records(torch.linspace(0, len(self._records) - 1, count).round().long())

    def __next__(self) -> Records:
        if self._position + self._batch_size > len(self._records):
            self._start_epoch()
        index = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        return Records(*(field.to(self._device) for field in self._records.records(index)))

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"generator": self._epoch_state, "position": self._position}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._start_epoch()
        self._position = state["position"]
