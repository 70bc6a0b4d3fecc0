"""Miniature counterparts of the public ImageNet data sets, written in these sets' own formats.

ImageNet itself is 150 GB behind a registration. So that everything that reads it can be run and seen to work, this
module writes 32x32 pictures of ten classes into folders that look just like the originals':

- `real_images`: an ImageFolder, `train/<class>/*` and `val/<class>/*` (ImageNet),
- `mixed_backgrounds`: `{original,mixed_same,mixed_rand}/val/<NN_name>/*` and `in_to_in9.json` (IN-9),
- `cue_conflict`: `<shape>/<shape><n>-<texture><n>.png` (texture-shape cue conflict).

The pictures are Wildlife MNIST: real MNIST strokes filled with one of ten textures on one of ten backgrounds, where in
ImageNet's counterpart texture and background go with the digit, as grass goes with cows. Where MNIST or the textures
are not at hand, a teacher's own mechanisms take their place. Both compose an image by Eq. 1. The files are PNGs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from skdcgn.data import mnist
from skdcgn.data.imagenet import DESCRIPTION, IN9_CLASSES, IN9_MAP, IN9_VARIATIONS
from skdcgn.data.labels import balanced_labels
from skdcgn.errors import InputError, Unavailable
from skdcgn.files import atomic_folder
from skdcgn.images import to_uint8
from skdcgn.mechanisms import Mechanism, Source, compose
from skdcgn.randomness import stream

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The ten classes; class i is digit i."""
CATEGORIES = {name: (label,) for label, name in enumerate(CLASSES)}
"""The categories of the cue-conflict counterpart, and the classes of each."""

_STROKES = 10_000
"""MNIST digits that strokes are taken from, of each split."""

Labels = Mapping[Mechanism, Tensor]


class Scenery(Protocol):
    """Where the pictures come from: shapes, textures and backgrounds with a label each."""

    name: str
    """For titles and tags."""
    sha256: str
    """Identity of the weights that draw them, if any."""
    num_classes: int

    def draw(self, split: mnist.Split, labels: Labels, generator: torch.Generator) -> Tensor:
        """Draw images (N, 3, H, W) uint8 whose mechanisms have these labels, (N,) each."""
        ...


class WildlifeDigits:
    """Wildlife MNIST with labels of one's choice: real strokes of a split, random windows of the textures."""

    name = "Wildlife MNIST"
    sha256 = ""
    num_classes = mnist.NUM_CLASSES

    def __init__(self) -> None:
        """Read the textures.

        Raises:
            Unavailable: MNIST or the textures are not at hand.
            InputError: the textures are damaged.
        """
        mnist.mnist_folder()
        self._textures = {
            Mechanism.TEXTURE: mnist.textures("object"),
            Mechanism.BACKGROUND: mnist.textures("background"),
        }
        self._digits = cache(lambda split: mnist.make_dataset("wildlife", split, 0, limit=_STROKES))

    def draw(self, split: mnist.Split, labels: Labels, generator: torch.Generator) -> Tensor:
        """Draw images (N, 3, 32, 32) uint8; splits share no strokes. See `Scenery.draw`."""
        digits = self._digits(split)
        chosen = torch.empty_like(labels[Mechanism.SHAPE])
        for label in range(self.num_classes):
            wanted = labels[Mechanism.SHAPE] == label
            candidates = (digits.labels == label).nonzero()[:, 0]
            pick = torch.randint(len(candidates), (int(wanted.sum()),), generator=generator)
            chosen[wanted] = candidates[pick]
        texture, background = (
            mnist.crops(textures, labels[mechanism], generator) for mechanism, textures in self._textures.items()
        )
        return torch.where(digits.strokes[chosen], texture, background)


class Composites:
    """Images composed of a teacher's own mechanisms (Eq. 1); its splits differ in their noise alone."""

    def __init__(self, teacher: Source) -> None:
        self._teacher = teacher
        self.name = f"composites of the {teacher.name}"
        self.num_classes = teacher.num_classes
        self.sha256 = teacher.sha256

    def draw(self, split: mnist.Split, labels: Labels, generator: torch.Generator) -> Tensor:
        """Draw images (N, 3, H, W) uint8 at the teacher's resolution; see `Scenery.draw`."""
        outputs = [
            self._teacher.render(m, self._teacher.sample_noise(len(labels[m]), generator), labels[m]).cpu()
            for m in Mechanism
        ]
        return to_uint8(compose(*outputs))


def scenery(fallback: Callable[[], Source]) -> tuple[Scenery, str]:
    """Return where miniature pictures come from on this machine, and in one line which that is and why.

    Args:
        fallback: loads the teacher whose composites serve where Wildlife MNIST is not at hand.

    Raises:
        InputError: the textures are damaged.
    """
    try:
        return WildlifeDigits(), "pictures: Wildlife MNIST, real digits"
    except Unavailable as error:
        composites = Composites(fallback())
        return composites, f"pictures: {composites.name}, because {error}"


def real_images(
    folder: Path, source: Scenery, seed: int = 0, per_class: int = 100, validation_per_class: int = 50
) -> Path:
    """Write ImageNet's counterpart: texture and background go with the class, in training and validation alike.

    Args:
        folder: below it the set gets a folder of its own, by its content; a complete one is used again.
        source: of the pictures, see `scenery`.
        seed: of all that is random.
        per_class: training images of each class.
        validation_per_class: validation images of each class.

    Returns:
        The set's folder, with `train` and `val` in it. The classes are named like WordNet ids, n00000000 and so on.
    """

    def files() -> Iterator[tuple[str, Tensor | str]]:
        for part, split, count in (("train", "train", per_class), ("val", "valid", validation_per_class)):
            labels = balanced_labels(count, source.num_classes)
            pixels = source.draw(split, dict.fromkeys(Mechanism, labels), stream(seed, "real images", part))
            for index, label in enumerate(labels.tolist()):
                yield f"{part}/n{label:08d}/n{label:08d}_{index // source.num_classes}.png", pixels[index]

    counts = {"per_class": per_class, "validation_per_class": validation_per_class}
    return _write(folder, "real", source, files, seed=seed, **counts)


def mixed_backgrounds(folder: Path, source: Scenery, seed: int = 0, per_class: int = 50) -> Path:
    """Write IN-9's counterpart: shapes and textures of one class on backgrounds of the same or of any class.

    The tenth class is not among its nine, and `in_to_in9.json` maps it to -1.

    Args:
        folder: as in `real_images`.
        source: of the pictures.
        seed: of all that is random.
        per_class: images of each class and variation.

    Returns:
        The set's folder, with a folder for each of `IN9_VARIATIONS`.
    """

    def files() -> Iterator[tuple[str, Tensor | str]]:
        for variation in IN9_VARIATIONS:
            generator = stream(seed, "mixed backgrounds", variation)
            labels = balanced_labels(per_class, IN9_CLASSES)
            any_class = torch.randint(IN9_CLASSES, labels.shape, generator=generator)
            background = any_class if variation == "mixed_rand" else labels
            mechanisms = {Mechanism.SHAPE: labels, Mechanism.TEXTURE: labels, Mechanism.BACKGROUND: background}
            pixels = source.draw("test", mechanisms, generator)
            for index, (label, behind) in enumerate(zip(labels.tolist(), background.tolist(), strict=True)):
                name = f"fg_n{label:08d}_{index // IN9_CLASSES}_bg_n{behind:08d}.png"
                yield f"{variation}/val/{label:02d}_{CLASSES[label]}/{name}", pixels[index]
        mapping = {str(label): label if label < IN9_CLASSES else -1 for label in range(source.num_classes)}
        yield IN9_MAP, json.dumps(mapping)

    return _write(folder, "in9", source, files, seed=seed, per_class=per_class)


def cue_conflict(folder: Path, source: Scenery, seed: int = 0, per_pair: int = 5) -> Path:
    """Write the cue-conflict stimuli's counterpart: each shape with each class's texture.

    The background is of the texture's class: style transfer, which made the original stimuli, covers the whole image.

    Args:
        folder: as in `real_images`.
        source: of the pictures.
        seed: of all that is random.
        per_pair: images of each pair of shape and texture (5 in the original).

    Returns:
        The set's folder, with a folder for each shape in it.
    """

    def files() -> Iterator[tuple[str, Tensor | str]]:
        number = source.num_classes
        shape = torch.arange(number).repeat_interleave(number).repeat(per_pair)
        texture = torch.arange(number).repeat(number).repeat(per_pair)
        mechanisms = {Mechanism.SHAPE: shape, Mechanism.TEXTURE: texture, Mechanism.BACKGROUND: texture}
        pixels = source.draw("test", mechanisms, stream(seed, "cue conflict"))
        for index, (form, surface) in enumerate(zip(shape.tolist(), texture.tolist(), strict=True)):
            form, surface, copy = CLASSES[form], CLASSES[surface], index // number**2 + 1
            yield f"{form}/{form}{copy}-{surface}{copy}.png", pixels[index]

    return _write(folder, "cue_conflict", source, files, seed=seed, per_pair=per_pair)


class MiniatureSets(NamedTuple):
    """Folders of the three sets."""

    imagenet: Path
    in9: Path
    cue_conflict: Path


def write_all(folder: Path, source: Scenery, seed: int = 0, per_class: int = 100) -> MiniatureSets:
    """Write all three sets: `per_class` training images of each class, and half as many (about) in each test set."""
    half = max(1, per_class // 2)
    return MiniatureSets(
        real_images(folder, source, seed, per_class, half),
        mixed_backgrounds(folder, source, seed, half),
        cue_conflict(folder, source, seed, max(1, half // source.num_classes)),
    )


def _write(
    folder: Path, kind: str, source: Scenery, files: Callable[[], Iterator[tuple[str, Tensor | str]]], **plan: int
) -> Path:
    """Write a set whole or not at all, unless it is there; return its folder.

    Args:
        folder: in which it gets a folder of its own.
        kind: which of the sets.
        source: of the pictures.
        files: yields each file's path below the set's folder, and its pixels (3, H, W) uint8 or its text.
        plan: the numbers that decide the set's content.
    """
    if source.num_classes > len(CLASSES):
        raise InputError(f"Miniature sets have at most {len(CLASSES)} classes, {source.name} has {source.num_classes}.")
    description = {"kind": kind, "source": source.name, "sha256": source.sha256, **plan}
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    target = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if target.exists():
        return target
    with atomic_folder(target) as temporary:
        for path, content in chain(files(), [(DESCRIPTION, text)]):
            file = temporary / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.write_text(content, encoding="utf-8")
            else:
                Image.fromarray(content.permute(1, 2, 0).contiguous().numpy()).save(file)
    return target
