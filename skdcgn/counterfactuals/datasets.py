"""Counterfactual images from any source, in batches or as whole data sets: a CGN teacher, or SKDCGN in its place.

    python -m skdcgn counterfactuals --source cgn:double_colored --n 10000 --out counterfactuals
    python -m skdcgn counterfactuals --source runs:/<id of a run of mnist_kd> --n 100000 --out students --format shards

writes one to a folder: PNG images (or safetensors shards), `index.csv` (and `index.parquet`) with the label of each
mechanism for every image, and `set.json`, which says what it is. `skdcgn.sources` tells what can be a source. A
command that was interrupted goes on where it stopped.
"""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.images import fit_resolution, to_uint8
from skdcgn.mechanisms import Intervention, Mechanism, Source, compose, intervene, shuffle_patches
from skdcgn.randomness import stream

Format = Literal["png", "shards"]


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


CHUNK = 100
"""Images drawn at a time, or as many as the counterfactuals of one mask."""

SHARD_CHUNKS = 10
"""Chunks of a shard on disk."""


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


def generate(
    source: Source,
    config: CounterfactualConfig,
    device: torch.device | str = "cpu",
    resolution: int | None = None,
) -> Iterator[CounterfactualData]:
    """Draw a counterfactual data set chunk by chunk, on the fly.

    All draws are made on the CPU, so that labels and noise are the same whatever device the source is on.

    Args:
        source: where the mechanisms come from.
        config: the set.
        device: where the chunks go.
        resolution: side of the images; by default the source's. Mechanisms are brought to it before the mask is
            modified (see `students.fit_resolution`).
    """
    for index in range(config.chunks):
        chunk = _draw_chunk(source, config, index, resolution or source.resolution)
        yield CounterfactualData(*(field[: config.n - index * config.chunk].to(device) for field in chunk))


def draw(
    source: Source,
    config: CounterfactualConfig,
    device: torch.device | str = "cpu",
    resolution: int | None = None,
) -> CounterfactualData:
    """Draw a counterfactual data set into memory: the concatenation of what `generate` yields."""
    return _concatenate(list(generate(source, config, device, resolution)))


def _concatenate(chunks: list[CounterfactualData]) -> CounterfactualData:
    return CounterfactualData(*(torch.cat(field) for field in zip(*chunks, strict=True)))


def _draw_labels(
    config: CounterfactualConfig, num_classes: int, index: int
) -> tuple[dict[Mechanism, Tensor], torch.Generator]:
    """Return the labels of a chunk, (chunk,) for each mechanism, and the generator of everything drawn after them."""
    generator = stream(config.seed, "counterfactuals", index)
    shape = torch.randint(num_classes, (config.chunk // config.per_mask,), generator=generator)
    labels = {Mechanism.SHAPE: shape.repeat_interleave(config.per_mask)}
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        independent = torch.randint(num_classes, (config.chunk,), generator=generator)
        labels[mechanism] = independent if config.permute else labels[Mechanism.SHAPE]
    return labels, generator


def _draw_chunk(source: Source, config: CounterfactualConfig, index: int, resolution: int) -> CounterfactualData:
    """Draw one whole chunk, whatever part of it the set keeps."""
    labels, generator = _draw_labels(config, source.num_classes, index)
    outputs = {}
    for mechanism in Mechanism:
        repeats = config.per_mask if mechanism is Mechanism.SHAPE else 1
        y = labels[mechanism][::repeats]
        output = source.render(mechanism, source.sample_noise(len(y), generator), y).cpu()
        output = fit_resolution(output, resolution)
        if mechanism is not Mechanism.SHAPE and config.shuffle:
            output = shuffle_patches(output, generator)
        outputs[mechanism] = output.repeat_interleave(repeats, dim=0)
    mask = intervene(outputs[Mechanism.SHAPE], config.intervention, generator, config.strength)
    images = compose(mask, outputs[Mechanism.TEXTURE], outputs[Mechanism.BACKGROUND])
    return CounterfactualData(to_uint8(images), *(labels[mechanism] for mechanism in Mechanism))


def write(
    folder: Path,
    source: Source,
    config: CounterfactualConfig,
    format: Format = "png",
    resolution: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Write what is missing of a counterfactual data set to a folder, yielding (images there, images in all).

    The set lies there in shards of about a thousand images: folders of PNG files, or safetensors files of `pixels`,
    `shape`, `texture` and `background` (see `CounterfactualData`). `index.csv`, written last, has a row for each
    image; `index.parquet` is the same where pandas can write it.

    Args:
        folder: a new or empty one, or one that holds a part of this very set.
        source: where the mechanisms come from.
        config: the set.
        format: png or shards.
        resolution: side of the images; by default the source's.

    Raises:
        InputError: the folder holds something else, or there is not enough room on its disk.
    """
    resolution = resolution or source.resolution
    _claim(folder, source, config, format, resolution)
    for first in range(0, config.chunks, SHARD_CHUNKS):
        shard = folder / _shard_name(first, format)
        until = min(config.n, (first + SHARD_CHUNKS) * config.chunk)
        if not shard.exists():
            chunks = range(first, min(first + SHARD_CHUNKS, config.chunks))
            data = _concatenate([_draw_chunk(source, config, index, resolution) for index in chunks])
            start = first * config.chunk
            _write_shard(shard, CounterfactualData(*(field[: until - start] for field in data)), start, format)
        yield until, config.n
    _write_index(folder, _index(source, config, format))


def _claim(folder: Path, source: Source, config: CounterfactualConfig, format: Format, resolution: int) -> None:
    """Say in `set.json` what the folder holds, unless it holds something else."""
    description = {
        "source": source.name,
        "source_sha256": source.sha256,
        "stand_in": source.stand_in,
        "format": format,
        "resolution": resolution,
        **asdict(config),
    }
    path = folder / "set.json"
    if path.exists():
        if json.loads(path.read_text()) != description:
            raise InputError(f"{folder} holds another counterfactual data set (see {path}): choose another folder.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something else than a counterfactual data set: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = disk_space(config.n, resolution, format), shutil.disk_usage(folder).free
    if needed > free:
        folder.rmdir()
        raise InputError(
            f"{config.n} images need about {needed / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB: "
            "make room, or give a smaller --n."
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def disk_space(n: int, resolution: int, format: Format) -> int:
    """Estimate the bytes that a set takes on disk; a small file takes a block of 4 KiB."""
    pixels = 3 * resolution**2
    return n * (max(pixels, 4096) if format == "png" else pixels + 3 * 8)


def _shard_name(first: int, format: Format) -> str:
    number = f"{first // SHARD_CHUNKS:04d}"
    return number if format == "png" else f"{number}.safetensors"


def _write_shard(shard: Path, data: CounterfactualData, start: int, format: Format) -> None:
    """Write a shard whole or not at all; `start` is the position of its first image in the set."""
    if format == "shards":
        with atomic_path(shard) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in data._asdict().items()}, temporary)
        return
    temporary = shard.with_name(f".{shard.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of an interrupted writer
    temporary.mkdir()
    for number, pixels in enumerate(data.pixels.permute(0, 2, 3, 1).numpy(), start):
        Image.fromarray(pixels).save(temporary / f"{number:07d}.png", compress_level=1)
    temporary.rename(shard)


def _index(source: Source, config: CounterfactualConfig, format: Format) -> pd.DataFrame:
    """Return the set's index, a row for each image; labels follow from the config, no shard is read."""
    chunks = [_draw_labels(config, source.num_classes, index)[0] for index in range(config.chunks)]
    labels = {mechanism: torch.cat([chunk[mechanism] for chunk in chunks])[: config.n] for mechanism in Mechanism}
    per_shard = SHARD_CHUNKS * config.chunk
    shards = [_shard_name(number // per_shard * SHARD_CHUNKS, format) for number in range(config.n)]
    if format == "png":
        place = {"file": [f"{shard}/{number:07d}.png" for number, shard in enumerate(shards)]}
    else:
        place = {"file": shards, "row": [number % per_shard for number in range(config.n)]}
    columns = {f"label_{mechanism}": values.numpy() for mechanism, values in labels.items()}
    return pd.DataFrame({**place, **columns, "source": source.name, "seed": config.seed})


def _write_index(folder: Path, index: pd.DataFrame) -> None:
    with atomic_path(folder / "index.csv") as temporary:
        index.to_csv(temporary, index=False)
    if importlib.util.find_spec("pyarrow"):  # it comes with MLflow, not with pandas
        with atomic_path(folder / "index.parquet") as temporary:
            index.to_parquet(temporary, index=False)
