"""Stored teacher sets, written by any number of processes, and the endless batches that a student learns from them.

    python -m skdcgn teacher-sets --out DIR                                      the paper's million, each mechanism
    python -m skdcgn teacher-sets --out DIR --mechanism shape --classes 0-99 --runtime.device cuda
    python -m skdcgn teacher-sets --out DIR --teacher miniature --per-class 10   a small one, to look at
    python -m skdcgn teacher-sets --out DIR --verify                             checks what is in DIR

Start it as often as there are devices, on any machines that share DIR: each process takes classes that no other is at.
One that is killed leaves nothing half-written, and the same command goes on. Then train on the set with
`experiments/imagenet_kd.py --teacher-sets DIR`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from skdcgn import distributed
from skdcgn.errors import InputError
from skdcgn.files import atomic_path, sha256
from skdcgn.images import to_float, to_uint8
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import stream
from skdcgn.tinygan.records import Records, draw_records

_INDEX = "set.json"

_LOCKS = ".locks"


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
    """Draw the records as the published scripts did (see `teachers.draw_records`)."""


class TeacherSet:
    """A folder of records, a shard for each class, memory-mapped.

    A shard is a safetensors file of noise, labels and images (uint8) that depends on teacher, config and class alone.
    So any number of processes may write a set together, an interrupted one goes on where it stopped, and a lost
    shard can be drawn again. `set.json` says what set it is, and has the SHA-256 of every shard that is complete.
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
        self.description = _read_index(folder)
        if self.description is None:
            raise InputError(f"no teacher set at {folder}: write one with python -m skdcgn teacher-sets.")
        self.classes = tuple(range(self.description["num_classes"]) if classes is None else classes)
        names = [_name(label) for label in self.classes]
        missing = [name for name in names if name not in self.description["shards"]]
        if missing:
            raise InputError(
                f"the teacher set at {folder} lacks {len(missing)} of {len(names)} classes (such as {missing[0]}): "
                "run the command that writes it again, to complete it."
            )
        self._shards = [_open(folder / name) for name in names]
        self._per_class = self.description["per_class"]

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
        """Write what is missing of a set, beside any other process that does so, yielding (shards there, in all).

        Locks only spare double work: where two processes draw a shard all the same, it is the same shard twice, and
        each puts it in place as a whole.

        Args:
            folder: of this set alone.
            teacher: the black box.
            config: what to draw.
            classes: which ones; all of the teacher's by default. A set may grow by others later.

        Raises:
            InputError: `folder` holds a set of another teacher or config, or the disk is too small.
        """
        labels = list(range(teacher.num_classes) if classes is None else classes)
        description = {"teacher": teacher.sha256, "num_classes": teacher.num_classes, **asdict(config)}
        there = {label for label in _recorded(folder, description) if (folder / _name(label)).exists()} & set(labels)
        _check_disk(folder, teacher, config, len(labels) - len(there))
        yield len(there), len(labels)
        for wait in (False, True):  # first what nobody is at; then what others were at, in case they were killed
            for label in labels:
                if label in there:
                    continue
                try:
                    with FileLock(_lock(folder, _name(label))).acquire(blocking=wait):
                        if label not in _recorded(folder, description) or not (folder / _name(label)).exists():
                            _write_shard(folder, teacher, config, label, description)
                except Timeout:
                    continue
                there.add(label)
                yield len(there), len(labels)

    @staticmethod
    def verify(folder: Path) -> Iterator[tuple[str, bool]]:
        """Yield the name of each shard of a set, and whether it still has its SHA-256.

        Raises:
            InputError: there is no set at `folder`.
        """
        description = _read_index(folder)
        if description is None:
            raise InputError(f"no teacher set at {folder}: name the folder that holds {_INDEX}.")
        for name, checksum in sorted(description["shards"].items()):
            yield name, (folder / name).is_file() and sha256(folder / name) == checksum


def draw_shard(teacher: Source, config: TeacherSetConfig, label: int) -> Records:
    """Draw (again) the records of one class of a teacher set; images are uint8, a chunk of them floats at a time."""
    generator = stream(config.seed, "teacher set", config.split, config.mechanism, label)
    chunks = []
    for labels in torch.full((config.per_class,), label).split(TeacherSet.CHUNK):
        records = draw_records(teacher, config.mechanism, labels, generator, config.published_code)
        chunks.append(records._replace(images=to_uint8(records.images)))
    return Records(*(torch.cat(values).contiguous() for values in zip(*chunks, strict=True)))


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


def _lock(folder: Path, name: str) -> Path:
    (folder / _LOCKS).mkdir(parents=True, exist_ok=True)
    return folder / _LOCKS / f"{name}.lock"


def _read_index(folder: Path) -> dict[str, Any] | None:
    index = folder / _INDEX
    return json.loads(index.read_text()) if index.exists() else None


def _recorded(folder: Path, description: Mapping[str, Any]) -> set[int]:
    """Return the classes whose shards have a checksum; refuse the folder of another set."""
    index = _read_index(folder)
    if index is None:
        return set()
    shards = index.pop("shards")
    if index != description:
        raise InputError(f"{folder} holds a teacher set of another teacher or config: choose another folder.")
    return {label for label in range(description["num_classes"]) if _name(label) in shards}


def _write_shard(
    folder: Path, teacher: Source, config: TeacherSetConfig, label: int, description: Mapping[str, Any]
) -> None:
    """Draw a shard, put it in place, then note its checksum: a shard without one does not count."""
    path = folder / _name(label)
    with atomic_path(path) as temporary:
        save_file(draw_shard(teacher, config, label)._asdict(), temporary)
        checksum = sha256(temporary)
    with FileLock(_lock(folder, _INDEX)):
        index = _read_index(folder) or {**description, "shards": {}}
        index["shards"][path.name] = checksum
        with atomic_path(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _check_disk(folder: Path, teacher: Source, config: TeacherSetConfig, shards: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = shards * shard_bytes(teacher, config), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the teacher set at {folder} needs another {_size(needed)}, but that disk has {_size(free)} left: choose "
            "another one, fewer classes or records, or fresh records at each step (--distill.per-class 0)."
        )


def _size(size: float) -> str:
    return tqdm.format_sizeof(size, "B")


def _open(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as shard:
            return {name: shard.get_tensor(name) for name in ("noise", "labels", "images")}
    except (OSError, SafetensorError) as error:
        raise InputError(f"shard {path} is missing or damaged ({error}): delete it and write the set again.") from None


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
