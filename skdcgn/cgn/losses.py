"""The losses of CGNs for MNIST and ImageNet (Sauer and Geiger, 2021, Sec. 3.1 and appendix), as pure functions.

On ImageNet one noise u and one label y give the target x_gt of an unconstrained generator, the mask m, the texture f
and the background b; their composition x_gen (Eq. 1) has to be x_gt. What makes the three of them a shape, a texture
and a background are the losses on each of them alone. `cgn_terms` returns the weighted terms whose sum is the
objective. The style losses of both compare Gram matrices of a frozen network's features (`StyleFeatures`).
"""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.data import weights
from skdcgn.errors import InputError, Unavailable
from skdcgn.images import IMAGENET_MEAN, IMAGENET_STD
from skdcgn.mechanisms import compose

Perceptual = Literal["vgg16", "random", "none"]

_STYLE_SCALE = 5e3  # the authors' Gram distances enter as w^2 * 5e3


def gram_matrix(features: Tensor) -> Tensor:
    """Gram matrices of features (B, C, H, W), divided by C * H * W: (B, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


class StyleFeatures(nn.Module):
    """Four blocks of a frozen convolutional net whose Gram matrices describe an image's style."""

    def __init__(self, blocks: list[nn.Sequential], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @classmethod
    def vgg16(cls, path: Path) -> Self:
        """ImageNet VGG16 up to relu4_3, from torchvision's weights file at `path`."""
        from torchvision.models import vgg  # here, because it takes seconds that few runs need to pay

        layers = vgg.make_layers(vgg.cfgs["D"])[:23]
        state = {key.removeprefix("features."): value for key, value in weights.load_state_dict(path).items()}
        own = {key: value for key, value in state.items() if key in layers.state_dict()}
        weights.fill(layers, own, f"{path} holds no weights of VGG16")
        return cls([layers[:4], layers[4:9], layers[9:16], layers[16:23]], IMAGENET_MEAN, IMAGENET_STD)

    @classmethod
    def random(cls) -> Self:
        """A small net as PyTorch initializes it, where no pretrained one is available."""
        widths = (3, 16, 32, 64, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
            for i, o in itertools.pairwise(widths)
        ]
        return cls(blocks, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of images (B, 3, H, W) in [-1, 1] after each block."""
        features = ((images + 1) / 2 - self.mean) / self.std
        outputs = []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        return outputs


def style_distance(generated: list[Tensor], real: list[Tensor], block_weights: tuple[float, ...]) -> Tensor:
    """CGN's perceptual style loss: sum over blocks of w^2 * 5000 * L1 between Gram matrices."""
    return sum(
        weight**2 * _STYLE_SCALE * F.l1_loss(gram_matrix(g.float()), gram_matrix(r.float()))
        for weight, g, r in zip(block_weights, generated, real, strict=True)
        if weight
    )


def style_features(perceptual: Perceptual) -> tuple[Perceptual, StyleFeatures | None]:
    """Return the features that a style loss will really use, and the net.

    Args:
        perceptual: the features to use. Where "vgg16" is not at hand, a warning says that there will be none.
    """
    if perceptual == "random":
        return "random", StyleFeatures.random()
    if perceptual == "vgg16":
        try:
            return "vgg16", StyleFeatures.vgg16(weights.locate("vgg16"))
        except Unavailable as error:
            warnings.warn(f"CGN training continues without a perceptual loss: {error}", stacklevel=3)
    return "none", None


@dataclass(frozen=True)
class CGNLossConfig:
    """Weights of CGN's objective, the authors' for ImageNet; a weight of 0 leaves the term out."""

    reconstruction: float = 100.0
    """Weight of L_rec, the pixel distance of x_gen and x_gt."""
    perceptual_blocks: tuple[float, float, float, float] = (4.0, 4.0, 4.0, 4.0)
    """Weights w of the four feature blocks in the style distance of x_gen and x_gt, each as w^2 * 5000."""
    binary: float = 300.0
    """Weight of the mask's entropy, in bits."""
    mask_size: float = 500.0
    """Weight of the hinge on the share of the image that is mask."""
    mask_interval: tuple[float, float] = (0.1, 0.9)
    """Shares that the hinge leaves alone."""
    texture_blocks: tuple[float, float, float, float] = (0.0, 5.0, 5.0, 0.0)
    """Block weights of the style distance of f and patches of the object."""
    patch_side: int = 128
    """Side to which x_gt and m are brought before patches are cut."""
    patch_size: int = 15
    """Side of a patch there."""
    patch_positions: int = 100
    """Patches are drawn from so many positions, those with the most mask."""
    patch_grid: int = 6
    """Patches along each side of the picture that they are laid out in."""
    background: float = 2000.0
    """Weight of the saliency of b."""

    def __post_init__(self) -> None:
        low, high = self.mask_interval
        if not 0 <= low <= high <= 1:
            raise InputError(f"the mask interval must lie in order within [0, 1], not {low:g} to {high:g}.")
        positions = (self.patch_side - self.patch_size + 1) ** 2 if 0 < self.patch_size <= self.patch_side else 0
        if not 1 <= self.patch_positions <= positions or self.patch_grid < 1:
            raise InputError(
                f"patches of {self.patch_size} pixels have {positions} positions in {self.patch_side}x"
                f"{self.patch_side}: patch_positions must be 1 to that many, and patch_grid at least 1."
            )
        factors = (self.reconstruction, self.binary, self.mask_size, self.background)
        if min(factors) < 0 or not any(factors):
            raise InputError("a CGN needs a loss: no weight may be negative, and one must be above 0.")


class Rendered(NamedTuple):
    """What a CGN makes of one batch of noise and labels."""

    target: Tensor
    """x_gt, (B, 3, H, W) in [-1, 1], from the unconstrained generator."""
    premask: Tensor
    """The shape generator's picture, (B, 3, H, W) in [-1, 1], in which U²-Net finds the mask."""
    mask: Tensor
    """m, (B, 1, H, W) in [0, 1]."""
    texture: Tensor
    """f, (B, 3, H, W) in [-1, 1]."""
    background: Tensor
    """b, (B, 3, H, W) in [-1, 1]."""
    saliency: Tensor
    """What U²-Net finds in b, (B, 1, H, W) in [0, 1]."""

    @property
    def image(self) -> Tensor:
        """x_gen, (B, 3, H, W) in [-1, 1] (Eq. 1)."""
        return compose(self.mask, self.texture, self.background)


def reconstruction_distance(image: Tensor, target: Tensor) -> Tensor:
    """L_rec: mean L1 distance of x_gen and x_gt, (B, 3, H, W) each."""
    return F.l1_loss(image, target)


def binary_entropy(mask: Tensor) -> Tensor:
    """L_binary: mean entropy, in bits, of each value of m (B, 1, H, W) in (0, 1) as a coin's probability."""
    return -(mask * mask.log2() + (1 - mask) * (1 - mask).log2()).mean()


def least_squares_terms(real_scores: Tensor, generated_scores: Tensor) -> dict[str, Tensor]:
    """Least-squares terms of a discriminator's objective: real images score 1, generated ones 0 (Mao et al., 2017)."""
    return {
        "discriminator_real": 0.5 * (real_scores - 1).square().mean(),
        "discriminator_generated": 0.5 * generated_scores.square().mean(),
    }


def mask_on_frame(mask: Tensor, width: int = 4) -> Tensor:
    """Mean of masks (B, 1, H, W) on the outer `width` pixels, where digits have next to no strokes.

    An inverted mask with texture and background exchanged composes the very same image, so that no loss on images
    can tell them apart. Where the object is not can.
    """
    inner = mask[:, :, width:-width, width:-width]
    return (mask.sum() - inner.sum()) / (mask.numel() - inner.numel())


def color_distance(generated: Tensor, real: Tensor) -> Tensor:
    """Distance of the colors of image pairs (B, 3, H, W): the 1-Wasserstein distance of each channel's values, mean.

    Where the colors lie in the image does not matter to it, how much of the image they cover does.
    """
    return F.l1_loss(generated.flatten(2).sort(dim=2).values, real.flatten(2).sort(dim=2).values)


def mask_size_hinge(mask: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """L_mask: how far the share of each image that is mask, the mean of m (B, 1, H, W), lies outside [low, high]."""
    share = mask.mean(dim=(1, 2, 3))
    return (F.relu(low - share) + F.relu(share - high)).mean()


def background_saliency(saliency: Tensor) -> Tensor:
    """L_bg: mean of what U²-Net finds in the background, (B, 1, H, W) in [0, 1]: there should be no object."""
    return saliency.mean()


def texture_patches(image: Tensor, mask: Tensor, generator: torch.Generator, config: CGNLossConfig) -> Tensor:
    """Lay out patches of each object side by side: the target of the texture's style.

    Args:
        image: x_gt, (B, 3, H, W).
        mask: m, (B, 1, H, W).
        generator: draws the patches, with repetition, on the images' device.
        config: which patches, see the fields that begin with `patch_`.

    Returns:
        (B, 3, H, W), `patch_grid` * `patch_grid` patches resized to the image's own side.
    """
    batch, device = len(image), image.device
    side, size, positions, grid = config.patch_side, config.patch_size, config.patch_positions, config.patch_grid
    small = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    coverage = F.avg_pool2d(F.interpolate(mask, size=(side, side), mode="bicubic", align_corners=False), size, stride=1)
    across = coverage.shape[-1]
    covered = coverage.flatten(1).topk(positions, dim=1).indices  # (B, positions)
    drawn = torch.randint(positions, (batch, grid**2), generator=generator, device=device)
    corner = covered.gather(1, drawn).view(batch, grid, grid, 1, 1)
    offset = torch.arange(size, device=device)
    rows, columns = corner // across + offset[:, None], corner % across + offset  # (B, grid, grid, size, size) together
    index = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    patches = small.permute(0, 2, 3, 1)[index, rows, columns]  # (B, grid, grid, size, size, 3)
    sheet = patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, grid * size, grid * size)
    return F.interpolate(sheet, size=image.shape[-2:], mode="bicubic", align_corners=False)


def cgn_terms(
    rendered: Rendered,
    features: Callable[[Tensor], list[Tensor]] | None,
    config: CGNLossConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """CGN's objective as weighted terms: its generators minimize their sum.

    Args:
        rendered: a batch.
        features: of images, for both style distances (see `StyleFeatures`), or None, which leaves these
            out.
        config: the weights.
        generator: draws the patches, on the batch's device.
    """
    image, target, mask = rendered.image, rendered.target.detach(), rendered.mask
    terms = {}
    if config.reconstruction:
        terms["reconstruction"] = config.reconstruction * reconstruction_distance(image, target)
    if features is not None:
        patches = texture_patches(target, mask.detach(), generator, config)
        with torch.no_grad():
            wanted = [block.chunk(2) for block in features(torch.cat([target, patches]))]
        found = [block.chunk(2) for block in features(torch.cat([image, rendered.texture]))]
        for half, (name, blocks) in enumerate(
            {"perceptual": config.perceptual_blocks, "texture": config.texture_blocks}.items()
        ):
            if any(blocks):
                terms[name] = style_distance([f[half] for f in found], [w[half] for w in wanted], blocks)
    if config.binary:
        terms["binary"] = config.binary * binary_entropy(mask)
    if config.mask_size:
        terms["mask_size"] = config.mask_size * mask_size_hinge(mask, *config.mask_interval)
    if config.background:
        terms["background"] = config.background * background_saliency(rendered.saliency)
    return terms
