"""Readers of the public ImageNet data sets in the folders that their authors published.

- ImageNet, an ImageFolder: `<part>/<class>/<image>`, where sorted folder names number the classes;
- IN-9, the backgrounds challenge (Xiao et al., 2021): `<variation>/val/<NN_name>/<image>`, and beside the variations
  `in_to_in9.json`, which maps each class of ImageNet to one of the nine, or to -1;
- the texture-shape cue-conflict stimuli (Geirhos et al., 2019): `<shape>/<shape><n>-<texture><n>.png`.

`skdcgn.data.miniature` writes miniature counterparts in the same formats.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from skdcgn.errors import InputError

SUFFIXES = (".jpeg", ".jpg", ".png")
IN9_MAP = "in_to_in9.json"
IN9_CLASSES = 9
"""Of the miniature's classes the first nine are these: as in IN-9, some belong to none."""

DESCRIPTION = "description.json"
"""The file of a miniature set that says what it is."""

IN9_ADDRESS = "https://github.com/MadryLab/backgrounds_challenge"
IN9_VARIATIONS = ("original", "mixed_same", "mixed_rand")
"""Of IN-9's variations, those that the background gap and the clean accuracy are measured on."""
CUE_CONFLICT_ADDRESS = "https://github.com/rgeirhos/texture-vs-shape (stimuli/style-transfer-preprocessed-512)"

Categories = Mapping[str, Sequence[int]]
"""Name of a category to the classes that belong to it."""

CUE_CONFLICT_CATEGORIES: Categories = {
    "airplane": (404,),
    "bear": (294, 295, 296, 297),
    "bicycle": (444, 671),
    "bird": tuple(np.r_[8, 10:17, 18:21, 22:25, 80:84, 87:97, 98:101, 127:134, 135:146].tolist()),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": tuple(range(281, 287)),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": tuple(sorted({*range(152, 269)} - {192, 204, 227, 242, 251, 258, 260, 264})),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}
"""The sixteen entry-level categories and their ImageNet classes, as Geirhos et al. published them."""

_STIMULUS = re.compile(r"(?P<shape>[a-z]+)\d+-(?P<texture>[a-z]+)\d+")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Image files and their labels.

    Attributes:
        paths: N files.
        labels: (N,) int64.
        classes: name of each label.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def listing(self) -> str:
        """The files' names with their folders', one a line: they stand for the contents."""
        return "\n".join(f"{path.parent.name}/{path.name}" for path in self.paths)


@dataclass(frozen=True, eq=False)
class CueConflict(ImageSet):
    """Stimuli whose shape and texture are of different categories; `labels` are those of the shape.

    Attributes:
        textures: category of the texture, (N,) int64.
        categories: ImageNet classes of each category, in the order of `classes`.
    """

    textures: Tensor
    categories: tuple[tuple[int, ...], ...]


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: correct the path of the data set.")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def image_folder(folder: Path, limit: int | None = None) -> ImageSet:
    """List an ImageFolder: a folder for each class, classes and files in sorted order.

    Args:
        folder: such as ImageNet's `train` or `val`.
        limit: at most this many images of each class.

    Raises:
        InputError: there is no such folder, or a class without images.
    """
    classes = _folders(folder)
    if not classes:
        raise InputError(f"{folder} has no folders of classes: give an ImageFolder, with a folder for each class.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = _images(folder / name)[:limit]
        if not images:
            raise InputError(f"{folder / name} has no images ({', '.join(SUFFIXES)}): complete or remove the folder.")
        paths += images
        labels += [label] * len(images)
    return ImageSet(tuple(paths), torch.tensor(labels), tuple(classes))


def in9(folder: Path, variation: str) -> ImageSet:
    """List a variation of IN-9: its nine classes are numbered by the two digits that their folders begin with.

    Args:
        folder: the unpacked release of the backgrounds challenge.
        variation: such as original, mixed_same or mixed_rand.

    Raises:
        InputError: the variation is not there, or its folders are not those of IN-9.
    """
    found = image_folder(folder / variation / "val")
    wrong = [name for label, name in enumerate(found.classes) if not name.startswith(f"{label:02d}_")]
    if wrong:
        raise InputError(
            f"{folder / variation / 'val'} has a folder {wrong[0]!r}, where IN-9 has 00_dog, 01_bird and so on: get "
            f"the release again from {IN9_ADDRESS}."
        )
    return found


def in9_map(folder: Path, num_classes: int) -> Tensor:
    """Read which of IN-9's classes each class of ImageNet belongs to: (num_classes,) int64, -1 for none.

    Args:
        folder: that of `in9`, with the data set's own `in_to_in9.json` in it (it lies in the challenge's repository,
            not in the release's archive).
        num_classes: of the classifier.

    Raises:
        InputError: the file is missing or damaged, or does not name every class.
    """
    path = folder / IN9_MAP
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mapping = torch.tensor([int(content[str(label)]) for label in range(num_classes)])
    except FileNotFoundError:
        raise InputError(f"There is no {path}: get {IN9_MAP} from {IN9_ADDRESS} and put it there.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} does not map the classes 0 to {num_classes - 1} ({type(error).__name__}: {error}): get it again "
            f"from {IN9_ADDRESS}."
        ) from None
    if not ((mapping >= -1) & (mapping < IN9_CLASSES)).all():
        raise InputError(f"{path} names classes that IN-9 does not have: get it again from {IN9_ADDRESS}.")
    return mapping


def cue_conflict(folder: Path, categories: Categories = CUE_CONFLICT_CATEGORIES) -> CueConflict:
    """List the cue-conflict stimuli, those left out whose shape and texture agree.

    Args:
        folder: with a folder for each shape in it.
        categories: the classes of each category.

    Raises:
        InputError: a folder or file is not of this data set.
    """
    names = sorted(categories)
    paths, shapes, textures = [], [], []
    for shape in _folders(folder):
        for path in _images(folder / shape):
            parts = _STIMULUS.fullmatch(path.stem)
            if parts is None or parts["shape"] != shape or not {shape, parts["texture"]} <= set(names):
                raise InputError(
                    f"{path} is no cue-conflict stimulus of {', '.join(names)} (such as cat1-clock2.png in the folder "
                    f"cat): get the data set from {CUE_CONFLICT_ADDRESS}."
                )
            if parts["texture"] != shape:
                paths.append(path)
                shapes.append(names.index(shape))
                textures.append(names.index(parts["texture"]))
    if not paths:
        raise InputError(f"{folder} has no cue-conflict stimuli: get the data set from {CUE_CONFLICT_ADDRESS}.")
    members = tuple(tuple(categories[name]) for name in names)
    return CueConflict(tuple(paths), torch.tensor(shapes), tuple(names), torch.tensor(textures), members)


@dataclass(frozen=True, eq=False)
class RobustnessSets:
    """What a classifier learns from and what it is tested on.

    Attributes:
        train: real training images.
        validation: of the same classes.
        in9: the set of each of `IN9_VARIATIONS`.
        in9_map: see `in9_map`.
        stimuli: of cue conflict.
        identity: SHA-256 of the names of all files, which stand for their contents.
    """

    train: ImageSet
    validation: ImageSet
    in9: Mapping[str, ImageSet]
    in9_map: Tensor
    stimuli: CueConflict
    identity: str


def robustness_sets(
    imagenet: Path, backgrounds: Path, stimuli: Path, categories: Categories = CUE_CONFLICT_CATEGORIES
) -> RobustnessSets:
    """List all sets of the robustness experiment.

    Args:
        imagenet: with `train` and `val` in it.
        backgrounds: IN-9, see `in9` and `in9_map`.
        stimuli: see `cue_conflict`.
        categories: of the stimuli.

    Raises:
        InputError: a folder is not what it should be.
    """
    train, validation = image_folder(imagenet / "train"), image_folder(imagenet / "val")
    if train.classes != validation.classes:
        raise InputError(
            f"{imagenet} has {len(train.classes)} classes in train and {len(validation.classes)} in val, or other "
            "ones: give an ImageNet whose validation images lie in folders of the same classes."
        )
    variations = {variation: in9(backgrounds, variation) for variation in IN9_VARIATIONS}
    mapping = in9_map(backgrounds, len(train.classes))
    conflicts = cue_conflict(stimuli, categories)
    digest = hashlib.sha256()
    for folder in (imagenet, backgrounds, stimuli):
        if (folder / DESCRIPTION).exists():  # of a miniature set: file names are the same whatever is in the pictures
            digest.update((folder / DESCRIPTION).read_bytes())
    for images in (train, validation, *variations.values(), conflicts):
        digest.update(images.listing.encode())
    return RobustnessSets(train, validation, variations, mapping, conflicts, digest.hexdigest())


def read_image(path: Path) -> Tensor:
    """Read an image as RGB, (3, H, W) uint8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # a damaged image can raise almost anything
        raise InputError(f"{path} cannot be read as an image ({type(error).__name__}): replace or remove it.") from None


def center_crop(image: Tensor, side: int) -> Tensor:
    """Resize the shorter side to 8/7 of `side` (256 for 224) and cut out the middle: ImageNet's usual test view.

    Args:
        image: (3, H, W) uint8. One that has this very size already is left as it is, such as IN-9's 224x224.
        side: of the result.

    Returns:
        (3, side, side) uint8.
    """
    if image.shape[1:] == (side, side):
        return image
    shorter = round(side * 8 / 7)
    height, width = (round(length * shorter / min(image.shape[1:])) for length in image.shape[1:])
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image, height, width)[:, top : top + side, left : left + side]


def random_crop(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cut out a random window, resize it and flip it half of the time: ImageNet's usual training view.

    The window has 8 to 100 % of the area and a ratio of 3:4 to 4:3, like torchvision's `RandomResizedCrop`, which draws
    from the global generator.

    Args:
        image: (3, H, W) uint8.
        side: of the result.
        generator: source of window and flip.

    Returns:
        (3, side, side) uint8.
    """
    total_height, total_width = image.shape[1:]
    for _ in range(10):
        area = total_height * total_width * _uniform(0.08, 1.0, generator)
        ratio = np.exp(_uniform(np.log(3 / 4), np.log(4 / 3), generator))  # width over height
        height, width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < height <= total_height and 0 < width <= total_width:
            break
    else:  # an image so long that no window fits
        height = width = min(total_height, total_width)
    top = int(torch.randint(total_height - height + 1, (), generator=generator))
    left = int(torch.randint(total_width - width + 1, (), generator=generator))
    window = _resize(image[:, top : top + height, left : left + width], side, side)
    return window.flip(2) if _uniform(0, 1, generator) < 0.5 else window


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, H, W) uint8, bilinear and antialiased like PIL's."""
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
