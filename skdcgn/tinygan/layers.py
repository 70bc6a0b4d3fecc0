"""Layers that the slim student shares with the CGN for MNIST."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW = 5 * 10**5
"""Multiplications on the small grid below which the calls, not the multiplications, take the time: a single image of a
slim student is faster with the plain layers."""


class UpsampledConv2d(nn.Conv2d):
    """A nearest x2 upsampling and the 3x3 convolution after it, as one 2x2 convolution on the small grid.

    Each output pixel of the pair sees only 2x2 input pixels, so that the taps that meet the same one can be summed
    first: the same function with 2.25 times fewer multiplications, exact up to rounding. The weight stays the 3x3
    convolution's, (O, I, 3, 3), and an `nn.Identity` keeps the upsampling's place before it, so that parameters are
    named as in the CGN authors' checkpoints.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, O, 2H, 2W), channels last in memory."""
        height, width = x.shape[2:]
        # An exported graph would have the choice fixed to the batch of its example.
        if not torch.compiler.is_exporting() and len(x) * height * width * self.weight.numel() < _FEW:
            return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), self.weight, self.bias, padding=1)
        kernel = _sum_taps(_sum_taps(self.weight, 2), 4)  # (column phase, row phase, O, I, 2, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        output = F.conv2d(x, kernel.flatten(0, 2), bias, padding=1)  # (B, 4 O, H + 1, W + 1)
        output = output.permute(0, 2, 3, 1).unflatten(3, (2, 2, self.out_channels))
        rows = [torch.stack([output[:, i : i + height, j : j + width, j, i] for j in (0, 1)], dim=3) for i in (0, 1)]
        return torch.stack(rows, dim=2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _sum_taps(weight: Tensor, dim: int) -> Tensor:
    """Fold the 3 taps of an axis into 2, for the first and for the second of two upsampled pixels (new axis 0)."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)])


class FullTanh(nn.Tanh):
    """A tanh in fp32 even under autocast: in bf16 it rounds to 1 early, and its slope there to 0."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())
