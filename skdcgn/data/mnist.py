"""The MNIST variants that CGNs learn from and classifiers are tested on, whole in memory.

Double-colored, colored and wildlife MNIST (Sauer and Geiger, 2021; here Sec. 4.1) give the stroke and the
background of each digit one of ten appearances: the label's own in a *biased* set, where they give the label
away, and random ones in an unbiased set, where only the shape tells. Training sets are biased, test sets are
not. The fourth set, "digits", is double-colored too, but of the small digits that come with scikit-learn: it needs
no download. A further set is registered in `DATASETS`.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from skdcgn.data.registry import REGISTRY
from skdcgn.data.weights import cache_dir, check_online, data_dir, locate
from skdcgn.errors import InputError, Unavailable
from skdcgn.files import atomic_folder
from skdcgn.images import to_float
from skdcgn.randomness import stream

Split = Literal["train", "valid", "test"]

Kind = Literal["background", "object"]
"""What is painted; an object is a stroke."""

RESOLUTION = 32
NUM_CLASSES = 10

BACKGROUND_COLORS = (
    (0, 100, 0),  # darkgreen
    (0, 0, 139),  # darkblue
    (176, 48, 96),  # #b03060
    (255, 69, 0),  # orangered
    (255, 255, 0),  # yellow
    (222, 184, 135),  # burlywood
    (0, 255, 0),  # lime
    (0, 255, 255),  # aqua
    (255, 0, 255),  # fuchsia
    (100, 149, 237),  # #6495ed
)
"""Double-colored MNIST: RGB of background i."""

OBJECT_COLORS = BACKGROUND_COLORS[4:] + BACKGROUND_COLORS[:4]
"""Double-colored MNIST: RGB of stroke i, the background color i - 6."""

DOUBLE_COLOR_STD = 0.01
"""Double-colored MNIST: standard deviation (not variance) of each image's colors, on a [0, 1] scale."""

WALK_LENGTH = {"train": 6250, "valid": 2000, "test": 2000}
"""Images after which the published code's wandering colors start anew: what each of its loaders reads of a set."""

DIGIT_COLORS = (
    (220, 20, 60),  # crimson
    (0, 128, 128),  # teal
    (253, 233, 16),  # lemon
    (0, 149, 182),  # bondi blue
    (237, 145, 33),  # carrot orange
    (145, 30, 188),  # strong violet
    (70, 240, 240),  # cyan
    (250, 197, 187),  # your pink
    (210, 245, 60),  # lime
    (128, 0, 0),  # maroon
)
"""Colored MNIST: mean RGB of digit i (Kim et al., Learning Not to Learn, 2019)."""

DIGIT_COLOR_STD = 0.02**0.5
"""Colored MNIST: standard deviation of each image's color, on a [0, 1] scale: a *variance* of 0.02."""

TEXTURE_SIZE = 150
TEXTURE_PADDING = 3


@dataclasses.dataclass(frozen=True, eq=False)
class TensorSet:
    """Labeled images in memory, one byte a value: `images` and `masks` convert what they are asked for.

    Attributes:
        pixels: (N, 3, 32, 32) uint8.
        labels: (N,) int64.
        strokes: (N, 1, 32, 32) bool, true on the digit.
    """

    pixels: Tensor
    labels: Tensor
    strokes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return images (B, 3, 32, 32) in [-1, 1]."""
        return to_float(self.pixels[index])

    def masks(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return the true masks (B, 1, 32, 32), 0 or 1."""
        return self.strokes[index].float()


def mnist_digits(split: Split) -> tuple[Tensor, Tensor]:
    """Read the real MNIST from SKDCGN_DATA_DIR or the cache, into which a missing one is downloaded.

    Args:
        split: "train" is the first 50,000 of MNIST's training set, "valid" its last 10,000 (the set that the
            CGN authors call their test set), "test" MNIST's own test set.

    Returns:
        Digits (N, 28, 28) uint8 and labels (N,) int64.

    Raises:
        Unavailable: MNIST is not there and cannot be downloaded.
        InputError: its files are damaged.
    """
    # Imported here because it takes seconds, which the offline digits need not pay.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw, prefix = mnist_folder() / "MNIST" / "raw", "t10k" if split == "test" else "train"
    digits = _read_idx(read_image_file, raw / f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(read_label_file, raw / f"{prefix}-labels-idx1-ubyte")
    if digits.shape != (len(labels), 28, 28) or not set(labels.tolist()) <= set(range(NUM_CLASSES)):
        raise InputError(
            f"the {prefix}-* files in {raw} are not those of MNIST: they have {len(labels)} labels, of "
            f"{', '.join(map(str, labels.unique().tolist()[:11]))}, and images {tuple(digits.shape)}: replace them."
        )
    part = {"train": slice(50_000), "valid": slice(50_000, None), "test": slice(None)}[split]
    return digits[part], labels[part]


def _read_idx(read: Callable[[Path], Tensor], path: Path) -> Tensor:
    """Read one of MNIST's files with torchvision's function for it."""
    try:
        return read(path)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        reason = getattr(error, "strerror", None) or "it is truncated, or another kind of file"
        raise InputError(
            f"{path} cannot be read as a file of MNIST ({reason}): replace it by the unpacked file of this name from "
            "https://ossci-datasets.s3.amazonaws.com/mnist/, or remove the folder."
        ) from None


def mnist_folder() -> Path:
    """Return the folder above MNIST/raw, downloading MNIST into the cache where there is none.

    Raises:
        Unavailable: MNIST is not there and cannot be downloaded.
        OSError: one of the places cannot be read.
    """
    for folder in filter(None, (data_dir(), cache_dir())):
        with contextlib.suppress(FileNotFoundError):
            (folder / "MNIST" / "raw").lstat()
            return folder
    return _download_mnist(cache_dir())


def _download_mnist(folder: Path) -> Path:
    """Download MNIST to `folder`, whole or not at all; torchvision checks the MD5 of each file."""
    from torchvision.datasets import MNIST

    try:
        with atomic_folder(folder / "MNIST") as temporary:
            check_online()
            MNIST(temporary.parent, download=True)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise Unavailable(
            f"MNIST cannot be downloaded ({reason}): get the four files of {MNIST.mirrors[0]} elsewhere and "
            f"unpack them into {folder / 'MNIST' / 'raw'}, or take the offline digits (--dataset digits)."
        ) from None
    return folder


def sklearn_digits(split: Split) -> tuple[Tensor, Tensor]:
    """Read scikit-learn's bundled digits: 8x8 with 17 gray levels, here enlarged to 24x24 and centered in 32x32.

    The margin is about that of MNIST.

    Args:
        split: 1,297 for "train", 250 each for "valid" and "test", of one fixed permutation of all 1,797.

    Returns:
        Digits (N, 32, 32) uint8 and labels (N,) int64.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    part = {"train": slice(0, 1297), "valid": slice(1297, 1547), "test": slice(1547, 1797)}[split]
    order = np.random.default_rng(0).permutation(len(bunch.target))[part]
    gray = torch.from_numpy(bunch.images[order]).float()[:, None] / 16
    gray = F.interpolate(gray, scale_factor=3, mode="bicubic").clamp(0, 1)
    gray = F.pad(gray, (4, 4, 4, 4))
    return (255 * gray[:, 0]).round().to(torch.uint8), torch.from_numpy(bunch.target[order]).long()


def _tints(
    table: tuple[tuple[int, int, int], ...], std: float, choice: Tensor, generator: torch.Generator, walk: int = 1
) -> Tensor:
    """Draw one color for each image around its row of the table: (N, 3, 1, 1) uint8.

    With `walk` > 1 the noise of images of the same row adds up, starting anew every `walk` images.
    """
    noise = 255 * std * torch.randn(len(choice), 3, generator=generator)
    if walk > 1:
        walks = torch.arange(len(choice)) // walk * NUM_CLASSES + choice
        for number in walks.unique():
            noise[walks == number] = noise[walks == number].cumsum(dim=0)
    colors = torch.tensor(table)[choice] + noise
    return colors.round().clamp(0, 255).to(torch.uint8)[:, :, None, None]


def crops(tiles: Tensor, choice: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a random window out of each image's texture: (N, 3, 32, 32) uint8.

    Args:
        tiles: the textures to cut from, (10, 3, H, W) with H, W >= 32; see `textures`.
        choice: the texture of each image, (N,) in [0, 10).
        generator: draws the windows' corners.
    """
    # A view of all windows: (10, 3, rows, columns, 32, 32).
    windows = tiles.unfold(2, RESOLUTION, 1).unfold(3, RESOLUTION, 1)
    row = torch.randint(windows.shape[2], choice.shape, generator=generator)
    column = torch.randint(windows.shape[3], choice.shape, generator=generator)
    return windows[choice, :, row, column]


def textures(kind: Kind) -> Tensor:
    """Read Wildlife MNIST's ten textures, that of digit i at i, padded by reflection: (10, 3, 156, 156) uint8.

    Raises:
        InputError: the textures are not available (see `skdcgn.data.weights.locate`).
    """
    folder = locate("wildlife_textures")
    tiles = []
    for name in sorted(REGISTRY["wildlife_textures"].members):
        if name.startswith(kind):
            with Image.open(folder / name) as image:
                resized = image.convert("RGB").resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.NEAREST)
            pad = (TEXTURE_PADDING, TEXTURE_PADDING)
            tiles.append(np.pad(np.asarray(resized), (pad, pad, (0, 0)), mode="reflect"))
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)


def _double_colored(kind: Kind, choice: Tensor, generator: torch.Generator, walk: int) -> Tensor:
    table = BACKGROUND_COLORS if kind == "background" else OBJECT_COLORS
    return _tints(table, DOUBLE_COLOR_STD, choice, generator, walk)


def _colored(kind: Kind, choice: Tensor, generator: torch.Generator, walk: int) -> Tensor:
    if kind == "background":
        return torch.zeros(1, dtype=torch.uint8)
    return _tints(DIGIT_COLORS, DIGIT_COLOR_STD, choice, generator)


def _wildlife(kind: Kind, choice: Tensor, generator: torch.Generator, walk: int) -> Tensor:
    return crops(textures(kind), choice, generator)


@dataclasses.dataclass(frozen=True)
class DigitSet:
    """How a data set of digits is drawn.

    Attributes:
        read: reads a split's digits (N, H, W) uint8 and labels (N,) int64.
        threshold: gray level, of 1, above which a pixel belongs to the stroke.
        paint: draws backgrounds or strokes, uint8 that broadcasts to (N, 3, 32, 32), from the appearance chosen for
            each image (N,), a generator, and the length of a walk (see `WALK_LENGTH`).
    """

    read: Callable[[Split], tuple[Tensor, Tensor]]
    threshold: float
    paint: Callable[[Kind, Tensor, torch.Generator, int], Tensor]


DATASETS: dict[str, DigitSet] = {
    "double_colored": DigitSet(mnist_digits, 0.1, _double_colored),
    "colored": DigitSet(mnist_digits, 0.1, _colored),
    "wildlife": DigitSet(mnist_digits, 0.1, _wildlife),
    # The strokes of these digits are enlarged and soft: the original's 0.1 would close the holes of 8 and 9.
    "digits": DigitSet(sklearn_digits, 0.4, _double_colored),
}
"""Every data set by name: the one place where a new one is registered."""

Dataset = Literal[*DATASETS]

Variant = Literal[*(name for name in DATASETS if f"cgn_{name}_mnist" in REGISTRY)]
"""The data sets that the CGN's authors published a CGN of."""


def make_dataset(
    dataset: Dataset,
    split: Split,
    seed: int,
    biased: bool | None = None,
    limit: int | None = None,
    published_code: bool = False,
) -> TensorSet:
    """Make a set of colored or textured digits: a function of its arguments alone.

    Args:
        dataset: which one of `DATASETS`.
        split: see `mnist_digits` and `sklearn_digits`.
        seed: of the appearances and their noise.
        biased: whether the label fixes the appearance of stroke and background; else both are random, independent of
            each other and of the label. By default the training set is biased and the others are not.
        limit: at most this many images, from the start of the split.
        published_code: let double-colored sets wander as in the CGN authors' code, which adds each image's noise to
            the color table itself: colors walk away at random, by 0.1 and more, and stroke and background of the
            same color soon differ. (Their values leave [-1, 1], these are clamped.) Other variants are not touched.

    Raises:
        InputError: an argument is out of range, or files are missing.
    """
    for value, choices in ((dataset, DATASETS), (split, get_args(Split))):
        if value not in choices:
            raise InputError(f"There is no data set or split named {value!r}: choose from {', '.join(choices)}.")
    if limit is not None and limit < 1:
        raise InputError(f"A data set cannot be limited to {limit} images: give at least 1.")
    drawn = DATASETS[dataset]
    digits, labels = drawn.read(split)
    digits, labels = digits[:limit, None], labels[:limit].clone()
    strokes = F.interpolate(digits, (RESOLUTION, RESOLUTION), mode="nearest") > 255 * drawn.threshold
    walk = WALK_LENGTH[split] if published_code else 1

    def painted(kind: Kind) -> Tensor:
        generator = stream(seed, dataset, split, kind)
        own = split == "train" if biased is None else biased
        choice = labels if own else torch.randint(NUM_CLASSES, labels.shape, generator=generator)
        return drawn.paint(kind, choice, generator, walk)

    pixels = torch.where(strokes, painted("object"), painted("background"))
    return TensorSet(pixels.contiguous(), labels, strokes)


def check_available(dataset: Dataset) -> None:
    """See, before anything runs, that the files of a data set are here, downloading those that are missing.

    Raises:
        InputError: files are missing and cannot be downloaded, or they are damaged.
    """
    for split in ("train", "test"):
        make_dataset(dataset, split, 0, limit=1)
