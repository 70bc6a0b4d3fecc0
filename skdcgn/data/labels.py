"""Class labels: those that a batch or a measurement takes, and the subsets of ImageNet's classes to learn."""

import json
import re
from importlib import resources

import torch
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism


def balanced_labels(per_class: int, num_classes: int) -> Tensor:
    """Return labels 0, 1, ..., num_classes - 1, 0, 1, ... with `per_class` of each: (per_class * num_classes,)."""
    return torch.arange(num_classes).repeat(per_class)


def evenly_spread_labels(count: int, num_classes: int) -> Tensor:
    """Return `count` labels (count,), evenly spread over the classes: 0, 1, ... where there are enough of them."""
    if count >= num_classes:
        return torch.arange(count) % num_classes
    return torch.linspace(0, num_classes - 1, count).round().long()


def select_classes(spec: str, mechanism: Mechanism, num_classes: int = 1000) -> tuple[int, ...]:
    """Return the classes that a subset's description stands for, ascending.

    Args:
        spec: `all`; `animals` (0 to 397); `best`, those that CGN's authors found to work well for the mechanism; or
            ids and ranges of ids, such as `0-99` or `1,5,7-9`.
        mechanism: for `best`.
        num_classes: of the teacher.

    Raises:
        InputError: the description cannot be read, or names a class that the teacher does not have.
    """
    if spec == "all":
        return tuple(range(num_classes))
    if spec == "animals":
        ids = set(range(398))
    elif spec == "best":
        best = resources.files("skdcgn") / "assets" / "imagenet_best_classes.json"
        ids = set(json.loads(best.read_text(encoding="utf-8"))[mechanism.value])
    else:
        ids = set()
        for part in spec.split(","):
            found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if not found or int(found[2] or found[1]) < int(found[1]):
                raise InputError(
                    f"--classes {spec} cannot be read at {part!r}: give all, animals, best, or ids such as 1,5,7-9."
                )
            ids |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    if max(ids) >= num_classes:
        raise InputError(
            f"--classes {spec} names class {max(ids)}, but this teacher has {num_classes}: give ids from 0 to "
            f"{num_classes - 1}, or all."
        )
    return tuple(sorted(ids))
