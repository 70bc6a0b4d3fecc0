"""Write stored teacher sets, or check them.

    python -m skdcgn teacher-sets --out DIR                                      the paper's million, each mechanism
    python -m skdcgn teacher-sets --out DIR --mechanism shape --classes 0-99 --runtime.device cuda
    python -m skdcgn teacher-sets --out DIR --teacher miniature --per-class 10   a small one, to look at
    python -m skdcgn teacher-sets --out DIR --verify                             checks what is in DIR

Start one process for each device, on any machines that share DIR: each takes classes that no other is drawing. A killed
one leaves nothing half-written, and the same command resumes it. Then train on the set with
`experiments/imagenet_kd.py --teacher-sets DIR`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from skdcgn.configs.fields import Checked, PositiveInt, Seed
from skdcgn.errors import InputError
from skdcgn.files import format_size
from skdcgn.recipes.configs.sources import ImageNetTeacherConfig
from skdcgn.runtime import Precision, Runtime, setup

if TYPE_CHECKING:
    import torch

    from skdcgn.mechanisms import Source


@dataclass(frozen=True)
class Config(Checked):
    """Write stored teacher sets, or check them."""

    out: Path
    """Folder of all sets; each has a folder of its own in it."""
    teacher: Literal["imagenet", "miniature", "double_colored", "colored", "wildlife"] = "imagenet"
    """The CGN authors' one for ImageNet, its packaged miniature, or theirs for an MNIST variant."""
    checkpoint: Path | None = None
    """Another checkpoint of that teacher (not for the miniature)."""
    precision: Precision = "fp32"
    """Precision of rendering with the ImageNet teacher; it is part of the set's identity."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to render."""
    classes: str = "all"
    """all, animals, best (those the CGN authors found to work well), or ids such as 0-99 or 1,5,7."""
    per_class: PositiveInt = 1000
    """Records of each class (the paper's setting)."""
    seed: Seed = 0
    """Of the noise: that of the training that will read it."""
    published_code: bool = False
    """Draw the records as the published scripts did."""
    dry_run: bool = False
    """Print what it takes on disk; write nothing."""
    verify: bool = False
    """Check the SHA-256 of every shard below `out` instead."""
    runtime: Runtime = field(default_factory=Runtime)


def main(config: Config) -> None:
    """Write the sets, or check them.

    Raises:
        InputError: see `TeacherSet.write`; or a shard does not have its SHA-256 any more.
    """
    from skdcgn.data.labels import select_classes
    from skdcgn.mechanisms import Mechanism
    from skdcgn.tinygan.teacher_sets import TeacherSet, TeacherSetConfig, set_folder, shard_bytes

    if config.verify:
        return _verify(config.out)
    teacher = _teacher(config, setup(config.runtime))
    print(f"{teacher.name}, {teacher.resolution}x{teacher.resolution}")
    mechanisms = list(Mechanism) if config.mechanism == "all" else [Mechanism(config.mechanism)]
    plan = []
    for mechanism in mechanisms:
        content = TeacherSetConfig(mechanism, config.per_class, config.seed, published_code=config.published_code)
        classes = select_classes(config.classes, mechanism, teacher.num_classes)
        folder = set_folder(config.out, teacher, content)
        size = len(classes) * shard_bytes(teacher, content)
        print(
            f"{mechanism}: {len(classes)} classes x {config.per_class} records, {format_size(size)}: {folder}",
            flush=True,
        )
        plan.append((folder, content, classes))
    for folder, content, classes in [] if config.dry_run else plan:
        with tqdm(total=len(classes), desc=content.mechanism.value, unit="class") as bar:
            for written, _ in TeacherSet.write(folder, teacher, content, classes):
                bar.update(written - bar.n)


def _teacher(config: Config, device: "torch.device") -> "Source":
    from skdcgn.cgn.teachers import mnist_teacher

    if config.teacher in ("imagenet", "miniature"):
        return ImageNetTeacherConfig(config.teacher, config.checkpoint, precision=config.precision).load(device)
    return mnist_teacher(config.teacher, config.checkpoint, device)


def _verify(root: Path) -> None:
    from skdcgn.data import shards

    sets = sorted(path.parent for path in root.glob(f"**/{shards.INDEX}"))
    if not sets:
        raise InputError(f"no set below {root}: name the folder that was given as --out.")
    damaged = []
    for folder in sets:
        checked = list(tqdm(shards.verify(folder), desc=folder.name, unit="shard"))
        damaged += [folder / name for name, intact in checked if not intact]
        print(f"{folder}: {sum(intact for _, intact in checked)} of {len(checked)} shards intact")
    if damaged:
        raise InputError(
            f"{len(damaged)} shards are damaged or missing, the first is {damaged[0]}: delete them, and run the "
            "command that wrote them again."
        )
