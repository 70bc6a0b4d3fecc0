"""Stored teacher sets, written by any number of processes, and the endless batches that a student learns from them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from skdcgn import distributed
from skdcgn.data.shards import read_description, read_shards, write_shards
from skdcgn.errors import InputError
from skdcgn.images import to_float, to_uint8
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import stream
from skdcgn.tinygan.records import Records, draw_records

_KIND = "teacher set"


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
    """Draw the records as the published scripts did (see `records.draw_records`)."""


@dataclass(frozen=True)
class _Size:
    """What a set's description says of its size."""

    num_classes: PositiveInt
    per_class: PositiveInt


class TeacherSet:
    """A folder of records, a shard for each class, memory-mapped (see `data.shards`).

    A shard holds noise, labels and images (uint8), and depends on teacher, config and class alone.
    """

    CHUNK = 100
    """Records rendered at a time: part of a set's definition, since a batch's size decides how noise is drawn."""

    def __init__(self, folder: Path, classes: Sequence[int] | None = None) -> None:
        """Open a complete set, or complete classes of one.

        Args:
            folder: where it lies.
            classes: those to open; all of the teacher's by default.

        Raises:
            InputError: there is none at `folder`, or a shard is missing or damaged.
        """
        size = read_description(folder, _KIND, _Size)
        classes = range(size.num_classes) if classes is None else classes
        rows = {_name(label): size.per_class for label in classes}
        self._shards = read_shards(folder, _KIND, rows, Records._fields)
        self._per_class = size.per_class

    def __len__(self) -> int:
        return len(self._shards) * self._per_class

    def records(self, index: Tensor) -> Records:
        """Return the records at positions `index` (B,), images as floats in [-1, 1]."""
        places = [divmod(i, self._per_class) for i in index.tolist()]
        noise, labels, images = (
            torch.stack([self._shards[shard][key][row] for shard, row in places])
            for key in ("noise", "labels", "images")
        )
        return Records(noise, labels, to_float(images))

    @classmethod
    def write(
        cls, folder: Path, teacher: Source, config: TeacherSetConfig, classes: Sequence[int] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Write the missing classes of a set, beside any other process that does so, yielding (finished, all) classes.

        Args:
            folder: of this set alone.
            teacher: the black box.
            config: what to draw.
            classes: which ones; all of the teacher's by default. A set may grow by others later.

        Raises:
            InputError: `folder` holds something else, or the disk is too small.
        """
        labels = range(teacher.num_classes) if classes is None else classes
        description = {"teacher": teacher.sha256, "num_classes": teacher.num_classes, **asdict(config)}
        drawing = {_name(label): partial(draw_shard, teacher, config, label) for label in labels}
        advice = "choose another one, fewer classes or records, or fresh records at each step (--distill.per-class 0)"
        return write_shards(folder, _KIND, description, drawing, shard_bytes(teacher, config), advice)


def draw_shard(teacher: Source, config: TeacherSetConfig, label: int) -> Records:
    """Draw (again) the records of one class of a teacher set; images are uint8, a chunk of them floats at a time."""
    generator = stream(config.seed, "teacher set", config.split, config.mechanism, label)
    chunks = []
    for labels in torch.full((config.per_class,), label).split(TeacherSet.CHUNK):
        records = draw_records(teacher, config.mechanism, labels, generator, config.published_code)
        chunks.append(records._replace(images=to_uint8(records.images)))
    return Records(*(torch.cat(values) for values in zip(*chunks, strict=True)))


def set_folder(root: Path, teacher: Source, config: TeacherSetConfig) -> Path:
    """Return the folder under `root` where the set of this teacher and config belongs."""
    key = json.dumps({"teacher": teacher.sha256, **asdict(config)}, sort_keys=True)
    return root / f"{config.mechanism}-{config.split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def shard_bytes(teacher: Source, config: TeacherSetConfig) -> int:
    """Return the size of one class of a set on disk, headers aside."""
    channels, side = config.mechanism.channels, teacher.resolution
    if config.published_code:
        channels, side = 3, 2 * side
    return config.per_class * (channels * side**2 + 4 * teacher.noise_dim + 8)


def _name(label: int) -> str:
    return f"class-{label:04d}.safetensors"


class StoredBatches:
    """Endless batches from a teacher set, reshuffled each epoch, incomplete last batches left out. Resumable.

    Of several processes each reads its own share of a batch.
    """

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
        self._share = distributed.share(batch_size)
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
        index = self._order[self._position : self._position + self._batch_size][self._share]
        self._position += self._batch_size
        return Records(*(values.to(self._device) for values in self._records.records(index)))

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"generator": self._epoch_state, "position": self._position}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._start_epoch()
        self._position = state["position"]
