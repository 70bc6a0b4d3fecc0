"""The three independent mechanisms of a CGN: what renders them, their composition (Eq. 1), interventions on the mask.

Value ranges, everywhere in this project: masks lie in [0, 1] and have one channel, textures, backgrounds and
composed images lie in [-1, 1] and have three. `to_image` and `from_image` move a mechanism's output to and from
the [-1, 1] image space that students and discriminators work in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.configs.names import Intervention, Mechanism
from skdcgn.errors import InputError
from skdcgn.images import fit_resolution

MASK_EPSILON = 1e-4
"""CGN clamps its masks to [MASK_EPSILON, 1 - MASK_EPSILON]."""

_TRANSPARENCY = 0.75


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


def draw_shifts(count: int, side: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the cyclic shifts of `count` images, rows down and columns right: (count, 2) in [0, side)."""
    device = "cpu" if generator is None else generator.device
    down = torch.randint(side, (count, 1), generator=generator, device=device)
    right = torch.randint(side, (count, 1), generator=generator, device=device)
    return torch.cat([down, right], dim=1)


def shift_patches(images: Tensor, shifts: Tensor) -> Tensor:
    """Tile each square image (B, C, H, H) 2x2 and crop the window of its own size at its shift (B, 2)."""
    side, device = images.shape[-1], images.device
    down, right = shifts.to(device).split(1, dim=1)
    rows = (torch.arange(side, device=device) + down) % side  # (B, H)
    columns = (torch.arange(side, device=device) + right) % side  # (B, H)
    index = torch.arange(len(images), device=device)
    shifted = images.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def shuffle_patches(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Tile each square image 2x2 and crop a random window of its own size: a random cyclic shift for each image.

    CGN's MNIST models do this after texture and background, which makes their output random even at a fixed
    noise. Here it is a step of its own, so that distillation has a deterministic target.
    """
    return shift_patches(images, draw_shifts(len(images), images.shape[-1], generator))


@dataclass(frozen=True)
class NoisePrior:
    """The distribution of a source's noise; a student's is that of the teacher that it learned from."""

    truncation: float | None = None
    """None for N(0, I); t in (0, 1] for BigGAN's, a standard normal cut off at ±2, times t."""

    def __post_init__(self) -> None:
        if self.truncation is not None and not 0 < self.truncation <= 1:
            raise InputError(f"the truncation must lie in (0, 1], not {self.truncation:g}: try CGN's own, 0.5.")

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Tensor:
        """Draw noise (n, dim), float32, on the generator's device."""
        if self.truncation is None:
            return torch.randn(n, dim, generator=generator, device=generator.device)
        noise = torch.empty(n, dim, device=generator.device)
        return self.truncation * nn.init.trunc_normal_(noise, a=-2.0, b=2.0, generator=generator)


NORMAL = NoisePrior()
"""The prior of MNIST's CGNs."""


class Source(Protocol):
    """What renders the three mechanisms: a CGN under black-box access, or the students, the baseline, the miniature.

    Classes that implement it derive from it, and inherit how noise is drawn.
    """

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
    prior: NoisePrior
    """Distribution of its noise."""

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw noise (n, noise_dim) from the source's own prior, on the generator's device."""
        return self.prior.sample(n, self.noise_dim, generator)

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return a mask (B, 1, H, W) in [0, 1], or a texture or background (B, 3, H, W) in [-1, 1].

        The same input always gives the same output. Inputs may lie on any device; the output is on the source's.
        """
        ...

    def parameters(self, mechanism: Mechanism) -> int:
        """Count a mechanism's parameters: for the tables of sizes, never for training."""
        ...


def render_finite(source: Source, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
    """Render a mechanism: numbers only, since pixels of 0 to 255 would not show that a teacher returns others.

    Raises:
        InputError: the source returns NaN or infinite values.
    """
    output = source.render(mechanism, noise, labels)
    if not output.isfinite().all():
        raise InputError(f"{source.name} returns NaN or infinite values for the {mechanism}: give sound weights.")
    return output


def in_chunks(function: Callable[[Tensor, Tensor], Tensor], noise: Tensor, labels: Tensor, size: int) -> Tensor:
    """Apply a function of noise (B, noise_dim) and labels (B,), such as a rendering, to at most `size` at a time."""
    pairs = zip(noise.split(size), labels.split(size), strict=True)
    return torch.cat([function(z, y) for z, y in pairs])


class Counterfactuals(NamedTuple):
    """A batch of composed images and everything they were composed of."""

    images: Tensor
    """x_gen, (B, 3, H, W) in [-1, 1]."""
    labels: Mapping[Mechanism, Tensor]
    """The label of each mechanism, (B,) each; the shape's is the label of the image."""
    mask: Tensor
    """m, (B, 1, H, W) in [0, 1], after the intervention."""
    texture: Tensor
    """f, (B, 3, H, W) in [-1, 1]."""
    background: Tensor
    """b, (B, 3, H, W) in [-1, 1]."""


def render_composed(
    source: Source,
    noise: Mapping[Mechanism, Tensor],
    labels: Mapping[Mechanism, Tensor],
    shifts: Mapping[Mechanism, Tensor] | None = None,
    intervention: Intervention = "none",
    generator: torch.Generator | None = None,
    strength: float | None = None,
    resolution: int | None = None,
) -> Counterfactuals:
    """Render the three mechanisms and compose them (Sec. 2 of the paper, Eq. 1). Only the intervention is random.

    Args:
        source: what renders the mechanisms.
        noise: z of each mechanism, (B, noise_dim).
        labels: y of each mechanism, (B,). Noise and labels of the shape may be shorter, (M,) with B a multiple of M:
            then each mask is rendered once and serves B / M images in a row.
        shifts: patch shifts by mechanism, see `draw_shifts`; those that are not named are not shifted.
        intervention: applied to the mask of every image (Sec. 4.5).
        generator: source of what is random in an intervention.
        strength: of the intervention, see `intervene`.
        resolution: side of the images, by default the source's. Mechanisms are brought to it before anything else.

    Returns:
        Images and mechanisms on the noise's device.
    """
    outputs, count = {}, len(labels[Mechanism.TEXTURE])
    for mechanism in Mechanism:
        z, y = noise[mechanism], labels[mechanism]
        output = fit_resolution(source.render(mechanism, z, y).to(z.device), resolution or source.resolution)
        if shifts is not None and mechanism in shifts:
            output = shift_patches(output, shifts[mechanism])
        outputs[mechanism] = output if len(y) == count else output.repeat_interleave(count // len(y), dim=0)
    mask = intervene(outputs[Mechanism.SHAPE], intervention, generator, strength)
    texture, background = outputs[Mechanism.TEXTURE], outputs[Mechanism.BACKGROUND]
    labels = {mechanism: y.repeat_interleave(count // len(y)) for mechanism, y in labels.items()}
    return Counterfactuals(compose(mask, texture, background), labels, mask, texture, background)
