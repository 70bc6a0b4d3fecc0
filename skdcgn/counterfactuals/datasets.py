"""Counterfactual data sets from any source: in memory, or on disk as shards and PNG files."""

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from skdcgn.data.shards import read_description, read_shards, write_shards
from skdcgn.errors import InputError
from skdcgn.files import atomic_folder, atomic_path
from skdcgn.images import to_uint8
from skdcgn.mechanisms import Intervention, Mechanism, Source, draw_shifts, render_composed
from skdcgn.randomness import stream

CHUNK = 100
"""Images drawn at a time, or as many as the counterfactuals of one mask."""
SHARD_CHUNKS = 10
"""Chunks of a shard on disk."""

_KIND = "counterfactual data set"


@dataclass(frozen=True)
class CounterfactualConfig:
    """A counterfactual data set: everything that decides its content, beside the source.

    A smaller set is the beginning of a larger one. Sets that differ in `permute` or `intervention` alone have the
    same shapes, from the same noise.
    """

    n: int = 10_000
    """Images."""
    per_mask: int = 10
    """Counterfactuals of one mask, each with a texture and a background of its own."""
    permute: bool = True
    """Draw the labels of texture and background independently of the shape's; without it they are the shape's, as in
    the published script, which samples one image at a time."""
    intervention: Intervention = "none"
    """Modification of the mask, drawn anew for every image (Sec. 4.5, Table 1)."""
    strength: float | None = None
    """Its strength; by default the paper's (see `mechanisms.intervene`)."""
    shuffle: bool = True
    """Shift textures and backgrounds cyclically at random, as CGN's MNIST models do (and its ImageNet model does
    not)."""
    seed: int = 0
    """Of labels, noise, shifts and interventions."""

    def __post_init__(self) -> None:
        for name in ("n", "per_mask"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)} makes no counterfactuals: give at least 1.")
        if self.intervention not in get_args(Intervention):
            raise InputError(
                f"there is no intervention {self.intervention!r}: choose from {', '.join(get_args(Intervention))}."
            )

    @property
    def chunk(self) -> int:
        """Images drawn at a time, a multiple of `per_mask`: part of the definition, since it decides the draws."""
        return self.per_mask * max(1, CHUNK // self.per_mask)

    @property
    def chunks(self) -> int:
        """Chunks that hold the `n` images."""
        return -(-self.n // self.chunk)

    @property
    def per_shard(self) -> int:
        """Images of a shard on disk, of all but the last."""
        return self.chunk * SHARD_CHUNKS

    @property
    def shards(self) -> list[str]:
        """File names of the shards, in order."""
        return [f"{number:04d}.safetensors" for number in range(-(-self.n // self.per_shard))]


class CounterfactualData(NamedTuple):
    """Counterfactual images as pixels, with the label of each mechanism."""

    pixels: Tensor
    """(N, 3, H, W) uint8."""
    shape: Tensor
    """The label of the image, (N,) int64."""
    texture: Tensor
    """(N,) int64."""
    background: Tensor
    """(N,) int64."""


def draw(source: Source, config: CounterfactualConfig, resolution: int | None = None) -> CounterfactualData:
    """Draw a counterfactual data set into memory.

    All draws are made on the CPU, so that labels and noise are the same whatever device the source is on.

    Args:
        source: where the mechanisms come from.
        config: the set.
        resolution: side of the images; by default the source's. Mechanisms are brought to it before the mask is
            modified (see `images.fit_resolution`).
    """
    return _draw(source, config, range(config.chunks), resolution)


def _draw(
    source: Source, config: CounterfactualConfig, chunks: range, resolution: int | None = None
) -> CounterfactualData:
    """Draw the images of some consecutive chunks."""
    drawn = [_draw_chunk(source, config, index, resolution) for index in chunks]
    count = config.n - chunks.start * config.chunk
    return CounterfactualData(*(torch.cat(field)[:count] for field in zip(*drawn, strict=True)))


def _draw_chunk(
    source: Source, config: CounterfactualConfig, index: int, resolution: int | None = None
) -> CounterfactualData:
    """Draw one whole chunk, whatever part of it the set keeps."""
    generator = stream(config.seed, "counterfactuals", index)
    masks = config.chunk // config.per_mask
    shape = torch.randint(source.num_classes, (masks,), generator=generator)
    labels, noise, shifts = {Mechanism.SHAPE: shape}, {}, {}
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        independent = torch.randint(source.num_classes, (config.chunk,), generator=generator)
        labels[mechanism] = independent if config.permute else shape.repeat_interleave(config.per_mask)
    for mechanism in Mechanism:
        noise[mechanism] = source.sample_noise(len(labels[mechanism]), generator)
        if mechanism is not Mechanism.SHAPE and config.shuffle:
            shifts[mechanism] = draw_shifts(config.chunk, resolution or source.resolution, generator)
    composed = render_composed(
        source, noise, labels, shifts, config.intervention, generator, config.strength, resolution
    )
    return CounterfactualData(to_uint8(composed.images), *(composed.labels[mechanism] for mechanism in Mechanism))


class CounterfactualSet:
    """A counterfactual data set on disk, memory-mapped: pixels, and the label of each mechanism."""

    def __init__(self, folder: Path) -> None:
        """Open a complete set that `write` wrote.

        Raises:
            InputError: there is none at `folder`, or a shard is missing or damaged.
        """
        self.config = read_description(folder, _KIND, CounterfactualConfig)
        lengths = range(self.config.n, 0, -self.config.per_shard)  # of what is left, from shard to shard
        rows = {name: min(left, self.config.per_shard) for name, left in zip(self.config.shards, lengths, strict=True)}
        shards = read_shards(folder, _KIND, rows, CounterfactualData._fields)
        self.labels = torch.cat([torch.stack([shard[m.value] for m in Mechanism], dim=1) for shard in shards])
        """(N, 3) int64, in the order of `Mechanism`."""
        self._pixels = [shard["pixels"] for shard in shards]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """Return image `index`, (3, H, W) uint8."""
        shard, row = divmod(index, len(self._pixels[0]))
        return self._pixels[shard][row]


def write(
    folder: Path, source: Source, config: CounterfactualConfig, png: bool = False, resolution: int | None = None
) -> Iterator[tuple[int, int]]:
    """Write the missing part of a counterfactual data set to a folder, yielding (finished images, all images).

    Shards hold about a thousand images each, as the fields of `CounterfactualData` (see `data.shards`). `index.csv`,
    written last, has a row for each image; `index.parquet` is the same if pandas can write it.

    Args:
        folder: a new or empty one, or one that holds a part of this very set.
        source: where the mechanisms come from.
        config: the set.
        png: write each image as a PNG file too, into a folder for each shard.
        resolution: side of the images; by default the source's.

    Raises:
        InputError: the folder holds something else, or its disk is too small.
    """
    resolution = resolution or source.resolution
    description = {
        "source": source.name,
        "source_sha256": source.sha256,
        "stand_in": source.stand_in,
        "resolution": resolution,
        **asdict(config),
    }
    chunks = range(config.chunks)
    parts = [chunks[first : first + SHARD_CHUNKS] for first in chunks[::SHARD_CHUNKS]]
    drawing = {
        name: partial(_draw, source, config, part, resolution) for name, part in zip(config.shards, parts, strict=True)
    }
    shard_bytes = disk_space(min(config.n, config.per_shard), resolution, png)
    advice = "make room, or give a smaller --n"
    for there, _ in write_shards(folder, _KIND, description, drawing, shard_bytes, advice):
        yield min(config.n, there * config.per_shard), config.n
    data = CounterfactualSet(folder)
    if png:
        _export(folder, data)
    _write_index(folder, data, source.name, png)


def disk_space(n: int, resolution: int, png: bool) -> int:
    """Estimate the bytes that a set takes on disk; a small PNG file takes a block of 4 KiB."""
    pixels = 3 * resolution**2
    return n * (pixels + 3 * 8 + (max(pixels, 4096) if png else 0))


def _export(folder: Path, data: CounterfactualSet) -> None:
    """Write the PNG files of each shard, all or none."""
    for first in range(0, len(data), data.config.per_shard):
        target = folder / _png(data.config, first).parent
        if target.exists():
            continue
        with atomic_folder(target) as temporary:
            for number in range(first, min(first + data.config.per_shard, len(data))):
                picture = Image.fromarray(data.image(number).permute(1, 2, 0).numpy())
                picture.save(temporary / _png(data.config, number).name, compress_level=1)


def _png(config: CounterfactualConfig, number: int) -> Path:
    """Return where the PNG file of an image lies in its set."""
    return Path(config.shards[number // config.per_shard]).with_suffix("") / f"{number:07d}.png"


def _write_index(folder: Path, data: CounterfactualSet, source: str, png: bool) -> None:
    """Write the index of a complete set, a row for each image."""
    config, numbers = data.config, range(len(data))
    index = pd.DataFrame({"shard": [config.shards[number // config.per_shard] for number in numbers]})
    index["row"] = [number % config.per_shard for number in numbers]
    if png:
        index["file"] = [_png(config, number).as_posix() for number in numbers]
    index[[f"label_{mechanism}" for mechanism in Mechanism]] = data.labels.numpy()
    index["source"], index["seed"] = source, config.seed
    with atomic_path(folder / "index.csv") as temporary:
        index.to_csv(temporary, index=False)
    if importlib.util.find_spec("pyarrow"):  # it comes with MLflow, not with pandas
        with atomic_path(folder / "index.parquet") as temporary:
            index.to_parquet(temporary, index=False)
