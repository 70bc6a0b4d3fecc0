"""U²-Net for salient objects (Qin et al., 2020), which turns the shape generator's pictures into masks.

What CGN's public code does with it, and so does this one: the picture enters as the generator leaves it, in
[-1, 1] (U²-Net itself was trained on inputs normalized by ImageNet's mean and deviation); only the fused map
comes out, through a sigmoid and without the min-max stretch of U²-Net's own demo; and feature maps are
upsampled with aligned corners (U²-Net's own code does not align them). Names and shapes of the weights are
those of `u2net.pth`.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Widths = tuple[tuple[int, int], ...]
"""(middle, outer) channels of the eleven stages: En_1 to En_6, then De_5 to De_1."""


# The table of Qin et al., Fig. 5: 44.0M parameters.
FULL_WIDTHS: Widths = (
    *((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)),
    *((256, 512), (128, 256), (64, 128), (32, 64), (16, 64)),
)
SMALL_WIDTHS: Widths = ((5, 8),) * 11
"""The miniature's: 48k parameters."""

_LEVELS = 6


# Encoder and decoder stages of a level share their kind of block; from level 5 on maps are too small to pool.
_DEPTHS = (7, 6, 5, 4, 4, 4)
_DILATED = (False, False, False, False, True, True)


def _conv(in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv_s1=nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation),
            bn_s1=nn.BatchNorm2d(out_channels),
            relu_s1=nn.ReLU(inplace=True),
        )
    )


def _pool(features: Tensor) -> Tensor:
    # ceil_mode keeps a map of one pixel at one pixel, so that any input size works.
    return F.max_pool2d(features, 2, stride=2, ceil_mode=True)


def _resize_like(features: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(features, size=target.shape[2:], mode="bilinear", align_corners=True)


class RSU(nn.Module):
    """Residual U-block: a small U-Net around its own first convolution (Qin et al., Sec. 3.1, Fig. 2).

    RSU-7 to RSU-4 pool between levels; RSU-4F (`dilated`) keeps the resolution and dilates instead.
    """

    def __init__(
        self, depth: int, in_channels: int, middle_channels: int, out_channels: int, dilated: bool = False
    ) -> None:
        super().__init__()
        self.depth = depth
        self.dilated = dilated
        self.rebnconvin = _conv(in_channels, out_channels, 1)
        for level in range(1, depth + 1):
            # Where levels pool, only the deepest convolution dilates, in place of a last pooling.
            dilation = 2 ** (level - 1) if dilated else 1 + (level == depth)
            inputs = out_channels if level == 1 else middle_channels
            self.add_module(f"rebnconv{level}", _conv(inputs, middle_channels, dilation))
        for level in range(depth - 1, 0, -1):
            dilation = 2 ** (level - 1) if dilated else 1
            outputs = out_channels if level == 1 else middle_channels
            self.add_module(f"rebnconv{level}d", _conv(2 * middle_channels, outputs, dilation))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        entry = x = self.rebnconvin(features)
        skips = []
        for level in range(1, self.depth):
            if level > 1 and not self.dilated:
                x = _pool(x)
            x = self.get_submodule(f"rebnconv{level}")(x)
            skips.append(x)
        x = self.get_submodule(f"rebnconv{self.depth}")(x)
        for level in range(self.depth - 1, 0, -1):
            skip = skips[level - 1]
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat([_resize_like(x, skip), skip], dim=1))
        return x + entry


class U2Net(nn.Module):
    """U²-Net: a U-Net of residual U-blocks with six side outputs that one more convolution fuses.

    Args:
        widths: channels of the stages, `FULL_WIDTHS` for the published network.
    """

    def __init__(self, widths: Widths = FULL_WIDTHS) -> None:
        super().__init__()
        self.widths = widths
        encoder, decoder = widths[:_LEVELS], widths[_LEVELS:]
        channels = 3
        for level, (middle, outer) in enumerate(encoder, start=1):
            self.add_module(f"stage{level}", self._block(level, channels, middle, outer))
            channels = outer
        sides = [channels]
        for level, (middle, outer) in zip(range(_LEVELS - 1, 0, -1), decoder, strict=True):
            skip_channels = encoder[level - 1][1]
            self.add_module(f"stage{level}d", self._block(level, channels + skip_channels, middle, outer))
            channels = outer
            sides.insert(0, channels)
        for level, side_channels in enumerate(sides, start=1):
            self.add_module(f"side{level}", nn.Conv2d(side_channels, 1, 3, padding=1))
        self.outconv = nn.Conv2d(_LEVELS, 1, 1)

    @staticmethod
    def _block(level: int, in_channels: int, middle: int, outer: int) -> RSU:
        return RSU(_DEPTHS[level - 1], in_channels, middle, outer, dilated=_DILATED[level - 1])

    def forward(self, images: Tensor) -> Tensor:
        """Find the salient object.

        Args:
            images: (B, 3, H, W) in [-1, 1], of any size.

        Returns:
            The mask (B, 1, H, W) in [0, 1].
        """
        return self.logits(images)[:, :1].sigmoid()

    def logits(self, images: Tensor) -> Tensor:
        """Return all seven maps before the sigmoid, (B, 7, H, W): the fused one, then side outputs 1 to 6.

        U²-Net is trained on the sum of the binary cross entropies of all seven (Qin et al., Sec. 3.3).
        """
        x, skips = images, []
        for level in range(1, _LEVELS + 1):
            x = self.get_submodule(f"stage{level}")(x if level == 1 else _pool(x))
            skips.append(x)
        sides = [_resize_like(self.get_submodule(f"side{_LEVELS}")(x), images)]
        for level in range(_LEVELS - 1, 0, -1):
            skip = skips[level - 1]
            x = self.get_submodule(f"stage{level}d")(torch.cat([_resize_like(x, skip), skip], dim=1))
            sides.insert(0, _resize_like(self.get_submodule(f"side{level}")(x), images))
        return torch.cat([self.outconv(torch.cat(sides, dim=1)), *sides], dim=1)
