"""The CGN for ImageNet as a black-box teacher, its miniature stand-in, and subsets of ImageNet's classes."""

import json
import re
from importlib import resources

from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism

ANIMALS = range(398)
"""The animals among ImageNet's classes."""


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
        ids = set(ANIMALS)
    elif spec == "best":
        ids = set(
            json.loads((resources.files("skdcgn") / "assets" / "imagenet_best_classes.json").read_text())[
                mechanism.value
            ]
        )
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
