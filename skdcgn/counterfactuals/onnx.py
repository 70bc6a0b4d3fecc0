"""Three students and their composition as one ONNX graph, for use without PyTorch (optional extra `onnx`)."""

from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.mechanisms import Mechanism, compose

INPUTS = ("noise", "shape", "texture", "background")
OUTPUTS = ("mask", "texture_image", "background_image", "image")
TOLERANCE = 1e-4
"""How far an output value of the graph may be from PyTorch's."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Composition(nn.Module):
    """Three students and Eq. 1, as a network: what the graph computes."""

    def __init__(self, source: SKDCGN) -> None:
        super().__init__()
        self.students = nn.ModuleDict({mechanism.value: source.student(mechanism) for mechanism in Mechanism})

    def forward(
        self, noise: Tensor, shape: Tensor, texture: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Render and compose; patches are not shifted, since that is random.

        Args:
            noise: u, (B, noise_dim), the same for all mechanisms.
            shape: label of the shape, (B,) int64.
            texture: label of the texture, likewise.
            background: label of the background, likewise.

        Returns:
            Mask (B, 1, H, W) in [0, 1]; texture, background and image, (B, 3, H, W) in [-1, 1].
        """
        labels = dict(zip(Mechanism, (shape, texture, background), strict=True))
        mask, front, back = (
            mechanism.from_image(self.students[mechanism.value](noise, y)) for mechanism, y in labels.items()
        )
        return mask, front, back, compose(mask, front, back)


def draw_inputs(source: SKDCGN, batch: int, generator: torch.Generator) -> Inputs:
    """Draw noise (B, noise_dim) and three labels (B,)."""
    labels = torch.randint(source.num_classes, (3, batch), generator=generator)
    return source.sample_noise(batch, generator), *labels


def export(source: SKDCGN, path: Path) -> None:
    """Write the graph of three students to a file.

    Raises:
        InputError: the packages of the extra `onnx` are missing.
    """
    if missing := [name for name in ("onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise InputError(f"ONNX needs the packages {' and '.join(missing)}: pip install -e '.[onnx]'.")
    example = draw_inputs(source, 5, torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    shapes = {name: {0: batch} for name in INPUTS}
    with atomic_path(path) as partial, redirect_stdout(StringIO()):  # the exporter reports its progress
        torch.onnx.export(
            Composition(source).eval(),
            example,
            str(partial),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def load(path: Path) -> Callable[[Inputs], list[np.ndarray]]:
    """Return a graph as a function of inputs, on one thread of the CPU.

    Returns:
        The function, whose results are in the order of `OUTPUTS`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[np.ndarray]:
        return session.run(list(OUTPUTS), dict(zip(INPUTS, (field.numpy() for field in inputs), strict=True)))

    return run


@torch.no_grad()
def difference(source: SKDCGN, graph: Callable[[Inputs], list[np.ndarray]], batch: int = 256) -> float:
    """Return the largest difference between an output value of the graph and PyTorch's, over a batch of draws."""
    inputs = draw_inputs(source, batch, torch.Generator().manual_seed(1))
    expected = Composition(source)(*inputs)
    found = graph(inputs)
    return max(float(np.abs(ours - theirs.numpy()).max()) for ours, theirs in zip(found, expected, strict=True))
