"""The slim student: a second family beside the paper's TinyGAN, in the manner of the CGN's own networks.

It is not in the paper. It answers what the paper asks, a lightweight CGN, where its TinyGAN is slower than the teacher.
"""

from dataclasses import dataclass
from typing import ClassVar

from skdcgn.configs.architecture import Architecture
from skdcgn.configs.fields import PositiveInt
from skdcgn.configs.names import Family
from skdcgn.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SlimConfig(Architecture):
    """Architecture of a slim generator."""

    family: ClassVar[Family] = "slim"

    width: PositiveInt = 24
    """Channels of the first feature map; every doubling of the side halves them."""
    start: PositiveInt = 8
    """Side of the first feature map: resolution / 2^n."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution not in [self.start << stages for stages in range(1, 17)]:
            raise InputError(
                f"a slim student that starts from {self.start}x{self.start} cannot draw {self.resolution}x"
                f"{self.resolution} images: give a start that becomes {self.resolution} by doubling."
            )

    @property
    def stages(self) -> int:
        """How often the side is doubled."""
        return (self.resolution // self.start).bit_length() - 1

    @property
    def levels(self) -> int:
        """Layers of its discriminator: down to 4x4, as that of a TinyGAN of the same images."""
        return max(1, self.resolution.bit_length() - 3)


SLIM_MNIST = SlimConfig()
"""Slim student for MNIST: about as large as `tinygan.NATIVE_MNIST`, and faster than the teacher."""
