"""What the architectures of all students have in common, whichever family they are of."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from skdcgn.configs.fields import Checked, PositiveInt
from skdcgn.configs.names import Family, Mechanism
from skdcgn.errors import InputError

Channels = Literal[1, 3]


@dataclass(frozen=True, kw_only=True)
class Architecture(Checked, abc.ABC):
    """Architecture of a student; its discriminator takes what it shares with it."""

    family: ClassVar[Family]
    """Which kind of network it is."""

    resolution: PositiveInt = 32
    """Side of the square images."""
    noise_dim: PositiveInt = 32
    """Length of the noise vector z."""
    num_classes: PositiveInt = 10
    """Classes of the data."""
    channels: Channels = 3
    """Channels of the images."""
    mask_channels: Channels = 1
    """Channels of a student that draws masks (the published ones draw them as gray RGB)."""

    @property
    @abc.abstractmethod
    def levels(self) -> int:
        """Layers of its discriminator, each of which halves the side."""

    @property
    def discriminator_classes(self) -> int:
        """Rows of its discriminator's class embedding."""
        return self.num_classes

    def check_sizes(self, **wanted: int) -> None:
        """Check that a network of RGB images fits what it learns from.

        Args:
            wanted: fields that are given by that, to their values.

        Raises:
            InputError: a field differs.
        """
        for name, value in {"channels": 3, **wanted}.items():
            if getattr(self, name) != value:
                raise InputError(f"{name} is {getattr(self, name)}: give {value}, as what the network learns from has.")

    def check_levels(self, alphas: Sequence[float]) -> None:
        """Raise InputError where the discriminator has more levels than there are weights of Eq. 5."""
        if len(alphas) < self.levels:
            raise InputError(
                f"alphas is {alphas}: give one for each of the discriminator's {self.levels} layers at least."
            )

    def for_mechanism(self, mechanism: Mechanism) -> Self:
        """Return the config of the student that draws one mechanism."""
        return replace(self, channels=self.mask_channels) if mechanism is Mechanism.SHAPE else self
