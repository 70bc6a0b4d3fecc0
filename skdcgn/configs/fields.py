"""What the fields of configs may hold, and the one check of it: where a config is made, before anything runs.

The words in a type describe its values; they end the sentence that refuses another one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate
from pydantic import AllowInfNan, StringConstraints, TypeAdapter, ValidationError

from skdcgn.errors import InputError

Item = TypeVar("Item")


def _distinct(values: Sequence[object]) -> bool:
    return len({*values}) == len(values)


_LARGEST = Le(10**9)
_FINITE = AllowInfNan(False)

PositiveInt = Annotated[int, Ge(1), _LARGEST, "a whole number above 0, up to 10^9"]
NonNegativeInt = Annotated[int, Ge(0), _LARGEST, "a whole number of 0 or more, up to 10^9"]
SeveralInt = Annotated[int, Ge(2), _LARGEST, "a whole number above 1, up to 10^9"]
"""Of images, where batch norm or a covariance needs more than one."""
Times = Annotated[int, Ge(1), Le(1000), "a whole number from 1 to 1000"]
Blocks = Annotated[int, Ge(1), Le(16), "a whole number from 1 to 16"]
Threads = Annotated[int, Ge(0), Le(1024), "a whole number from 0 to 1024"]
Seed = Annotated[int, Ge(0), Lt(2**32), "a whole number of 0 or more, below 2^32"]
Seeds = Annotated[
    tuple[Seed, ...],
    MinLen(1),
    Predicate(_distinct),
    "one or more whole numbers of 0 or more, below 2^32, each once",
]

PositiveFloat = Annotated[float, Gt(0), _FINITE, "a number above 0"]
NonNegativeFloat = Annotated[float, Ge(0), _FINITE, "a number of 0 or more"]
Weights = Annotated[tuple[NonNegativeFloat, ...], Predicate(any), "numbers of 0 or more, not all 0"]
BlockWeights = Annotated[
    tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat], "four numbers of 0 or more"
]
Fraction = Annotated[float, Ge(0), Le(1), _FINITE, "a number from 0 to 1"]
Share = Annotated[float, Gt(0), Le(1), _FINITE, "a number above 0, up to 1"]
Decay = Annotated[float, Ge(0), Lt(1), _FINITE, "a number of 0 or more, below 1"]
"""Of a moving average."""
Betas = Annotated[tuple[Decay, Decay], "two numbers of 0 or more, below 1"]
"""Adam's."""

Some = Annotated[tuple[Item, ...], MinLen(1), Predicate(_distinct), "one or more, each once"]
Evaluations = Annotated[
    Times | Annotated[tuple[Share, ...], MinLen(1), Predicate(_distinct)],
    "a whole number from 1 to 1000, or fractions of the training above 0, up to 1, each once",
]
"""How many, or at which fractions of a training."""
Device = Annotated[
    str, StringConstraints(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d{1,3})?)$"), "auto, cpu, cuda, cuda:1 or the like"
]
StudyName = Annotated[str, StringConstraints(pattern=r"^[^']+$"), "a name without quotes"]


class Checked:
    """The base of every config, a frozen dataclass: each field is checked against its annotation when it is made."""

    def __post_init__(self) -> None:
        """Check every field; configs in it have checked theirs.

        Raises:
            InputError: a field cannot have its value.
        """
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if not dataclasses.is_dataclass(value):
                check(name, value, hint)


def check(name: str, value: Any, hint: Any, strict: bool = True) -> Any:
    """Return a value as a type has it.

    Args:
        name: of the field, for messages.
        value: of the field.
        hint: its type.
        strict: whether the value must be of the type already; else 1 becomes 1.0, and a list a tuple.

    Raises:
        InputError: the value is none of the type's.
    """
    try:
        return _adapter(hint).validate_python(value, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        words = "" if first["type"] == "literal_error" else _words(hint)
        wanted = words or first["msg"].removeprefix("Input should be ")
        raise InputError(f"{name} is {value!r}: give {wanted}.") from None


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def _words(hint: Any) -> str:
    """Return the description of a type; that of a union has those of its members."""
    words = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, str)]
    return words[-1] if words else " or ".join(filter(None, map(_words, get_args(hint))))
