"""Checkpoints of TinyGAN's and SKDCGN's authors, read into this project's own networks.

Both projects have one architecture and one set of weight names. `model_<epoch>.tar` holds generator and
discriminator with their optimizers (TinyGAN's, and the paper's baseline), `generator_<epoch>.pt` a generator alone
(SKDCGN's). This project's networks compute the same from the same weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from skdcgn.data.weights import fill, load_state_dict
from skdcgn.errors import InputError
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANGenerator

# Their names on the left: whole names or dotted parts of them.
_GENERATOR_NAMES = {
    "embeding": "class_embedding",
    "dw_conv1": "depthwise1",
    "dw_conv2": "depthwise2",
    "pw_conv1": "pointwise1",
    "pw_conv2": "pointwise2",
    "c_sc": "shortcut",
    "cbn0": "norm1",
    "cbn1": "norm2",
    "embed": "affine",
    "bn": "norm",
    "colorize": "to_image",
}


def load_published_generator(path: Path, num_classes: int | None = None) -> TinyGANGenerator:
    """Read a generator, strictly, in evaluation mode.

    Its noise is the whole input vector: for SKDCGN's MNIST generators that is the teacher's 32-d noise followed by
    the teacher's 10-d label embedding.

    Args:
        path: a `model_*.tar` or a `generator_*.pt`.
        num_classes: classes of the data; by default the rows of the class embedding, which are 1000 in all of them.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    state = {
        ".".join(_GENERATOR_NAMES.get(part, part) for part in key.split(".")): value
        for key, value in load_state_dict(path, "G").items()
    }
    try:
        config = _generator_config(state, num_classes)
        generator = TinyGANGenerator(config)
    except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"{path} holds no TinyGAN generator ({error}): give a model_*.tar or generator_*.pt."
        ) from None
    return fill(generator, state, f"The weights in {path} do not fit a TinyGAN of their own sizes")


def _generator_config(state: Mapping[str, Tensor], num_classes: int | None) -> TinyGANConfig:
    """Read the architecture off the shapes of the weights."""
    blocks, width = len({key.split(".")[1] for key in state if key.startswith("blocks.")}), len(state["norm.weight"])
    rows, class_dim = state["class_embedding.weight"].shape
    outputs, inputs = state["fc.weight"].shape
    start = math.isqrt(outputs // (width * 2 ** (blocks - 1)))
    channels = len(state["to_image.weight"])
    return TinyGANConfig(
        resolution=start * 2**blocks,
        width=width,
        blocks=blocks,
        noise_dim=inputs,
        label_input="none",
        class_dim=class_dim,
        class_rows=rows,
        num_classes=num_classes or rows,
        channels=channels,
        mask_channels=channels,
    )
