"""The three independent mechanisms of a CGN, their composition (Eq. 1), and interventions on the mask.

Value ranges, everywhere in this project: masks lie in [0, 1] and have one channel, textures, backgrounds and
composed images lie in [-1, 1] and have three. `to_image` and `from_image` move a mechanism's output to and from
the [-1, 1] image space that students and discriminators work in.
"""

from enum import StrEnum
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Intervention = Literal["none", "noise", "rotation", "transparency", "rotation_transparency"]

MASK_EPSILON = 1e-4
"""CGN clamps its masks to [MASK_EPSILON, 1 - MASK_EPSILON]."""

_TRANSPARENCY = 0.75


class Mechanism(StrEnum):
    """One of the independent mechanisms (IM) of a CGN."""

    SHAPE = "shape"
    TEXTURE = "texture"
    BACKGROUND = "background"

    @property
    def channels(self) -> int:
        """Channels of the mechanism's output: 1 for a mask, 3 for colour."""
        return 1 if self is Mechanism.SHAPE else 3

    def to_image(self, output: Tensor, channels: int) -> Tensor:
        """Map a mechanism's output (B, C, H, W) to an image in [-1, 1] with `channels` channels.

        A one-channel mask becomes grey RGB where three channels are asked for, as the published students see it.
        """
        image = 2 * output - 1 if self is Mechanism.SHAPE else output
        return image.expand(-1, channels, -1, -1)

    def from_image(self, image: Tensor) -> Tensor:
        """Invert `to_image`: (B, C, H, W) in [-1, 1] to this mechanism's own range and channels."""
        return (image.mean(dim=1, keepdim=True) + 1) / 2 if self is Mechanism.SHAPE else image


def compose(mask: Tensor, texture: Tensor, background: Tensor) -> Tensor:
    """Compose a counterfactual image, Eq. 1: m ⊙ f + (1 - m) ⊙ b.

    Args:
        mask: m, (B, 1 or 3, H, W) in [0, 1].
        texture: f, (B, 3, H, W).
        background: b, (B, 3, H, W).
    """
    return mask * texture + (1 - mask) * background


def intervene(
    mask: Tensor,
    intervention: Intervention,
    generator: torch.Generator | None = None,
    strength: float | None = None,
) -> Tensor:
    """Modify shape masks as in the paper's shape study (Sec. 4.5, Fig. 3).

    Args:
        mask: (B, 1, H, W) in [0, 1].
        intervention: "noise" adds Gaussian noise, "rotation" turns each mask by a random angle, "transparency"
            scales it; "rotation_transparency" does both, as the published rotation run did.
        generator: source of the noise or the angles.
        strength: standard deviation of the noise (default 1), largest angle in degrees (default 180), or factor
            (default 0.75): the paper's values. The factor that follows a rotation is always 0.75.

    Returns:
        (B, 1, H, W), clamped to CGN's mask range except for "none".
    """
    if intervention == "none":
        return mask
    if intervention == "noise":
        std = 1.0 if strength is None else strength
        mask = mask + std * torch.randn(mask.shape, generator=generator, device=mask.device)
    elif intervention == "transparency":
        mask = mask * (_TRANSPARENCY if strength is None else strength)
    elif intervention in ("rotation", "rotation_transparency"):
        mask = _rotate(mask, 180.0 if strength is None else strength, generator)
        if intervention == "rotation_transparency":
            mask = mask * _TRANSPARENCY
    else:
        raise ValueError(f"unknown intervention {intervention!r}: one of {', '.join(get_args(Intervention))}")
    return mask.clamp(MASK_EPSILON, 1 - MASK_EPSILON)


def _rotate(mask: Tensor, max_degrees: float, generator: torch.Generator | None) -> Tensor:
    """Turn each mask by its own angle, uniform in ±max_degrees, bilinear, filling with background."""
    batch = mask.shape[0]
    angle = (2 * torch.rand(batch, generator=generator, device=mask.device) - 1) * torch.pi * max_degrees / 180
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(mask.shape), align_corners=False)
    return F.grid_sample(mask, grid, align_corners=False)


def shuffle_patches(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Tile each image 2x2 and crop a random window of its own size: a random cyclic shift for each image.

    CGN's MNIST models do this after texture and background, which makes their output random even at a fixed
    noise. Here it is a step of its own, so that distillation has a deterministic target.
    """
    batch, _, height, width = images.shape
    device = images.device
    down = torch.randint(height, (batch, 1), generator=generator, device=device)
    right = torch.randint(width, (batch, 1), generator=generator, device=device)
    rows = (torch.arange(height, device=device) + down) % height  # (B, H)
    columns = (torch.arange(width, device=device) + right) % width  # (B, W)
    index = torch.arange(batch, device=device)
    shuffled = images.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shuffled.permute(0, 3, 1, 2)


class Source(Protocol):
    """What renders the three mechanisms: a CGN under black-box access, or the students, the baseline, the miniature."""

    name: str
    """Where it comes from, for tags and titles."""
    sha256: str
    """Identity of its weights."""
    stand_in: bool
    """Whether it is an untrained or miniature stand-in for the paper's teacher."""
    resolution: int
    """Side of its images."""
    num_classes: int
    """Labels are integers below this."""
    noise_dim: int
    """Length of its noise vector."""

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw noise (n, noise_dim) from the source's own prior."""
        ...

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return a mask (B, 1, H, W) in [0, 1], or a texture or background (B, 3, H, W) in [-1, 1].

        The same input always gives the same output. Inputs may lie on any device; the output is on the source's.
        """
        ...

    def parameters(self, mechanism: Mechanism) -> int:
        """Count a mechanism's parameters: for the tables of sizes, never for training."""
        ...
