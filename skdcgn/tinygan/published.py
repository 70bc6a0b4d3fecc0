"""Checkpoints of TinyGAN's and SKDCGN's authors, read into this project's own networks.

Both projects have one architecture and one set of weight names. `model_<epoch>.tar` holds generator and
discriminator with their optimizers (TinyGAN's, and the paper's baseline), `generator_<epoch>.pt` a generator alone
(SKDCGN's). This project's networks compute the same from the same weights.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from skdcgn.data.weights import load_state_dict
from skdcgn.errors import InputError
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANDiscriminator, TinyGANGenerator

Network = TypeVar("Network", bound=nn.Module)

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
_DISCRIMINATOR_NAMES = {
    "embeding": "class_embedding",
    "fc_src": "score",
    # They use PyTorch's older spectral norm, with the same vectors under other names.
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
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
    state = _renamed(load_state_dict(path, "G"), _GENERATOR_NAMES)
    try:
        config = _generator_config(state, num_classes)
        generator = TinyGANGenerator(config)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"{path} holds no TinyGAN generator ({error}): give a model_*.tar or generator_*.pt."
        ) from None
    return _filled(generator, state, path)


def load_published_discriminator(path: Path) -> TinyGANDiscriminator:
    """Read a discriminator, strictly, in evaluation mode.

    Args:
        path: a `model_*.tar`, or a file of the discriminator's weights alone.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    state = load_state_dict(path, "D")
    # Activations take the odd places in their list of layers.
    state = {
        re.sub(r"^layers\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}.", key): value
        for key, value in state.items()
    }
    state = _renamed(state, _DISCRIMINATOR_NAMES)
    try:
        first = state["layers.0.parametrizations.weight.original"]
        blocks = _count(state, "layers")
        rows = len(state["class_embedding.parametrizations.weight.original"])
        config = TinyGANConfig(2**blocks, blocks=blocks, class_rows=rows, num_classes=rows, channels=first.shape[1])
        discriminator = TinyGANDiscriminator(config, width=len(first))
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path} holds no TinyGAN discriminator ({error}): give a model_*.tar.") from None
    return _filled(discriminator, state, path)


def _generator_config(state: Mapping[str, Tensor], num_classes: int | None) -> TinyGANConfig:
    """Read the architecture off the shapes of the weights."""
    blocks, width = _count(state, "blocks"), len(state["norm.weight"])
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


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """Count the members of a list of layers."""
    numbers = {int(key.split(".")[1]) for key in state if key.startswith(f"{name}.")}
    if not numbers:
        raise KeyError(name)
    return len(numbers)


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {".".join(names.get(part, part) for part in key.split(".")): value for key, value in state.items()}


def _filled(network: Network, state: Mapping[str, Tensor], path: Path) -> Network:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The weights in {path} do not fit a TinyGAN of their own sizes: {reason}") from None
    return network.eval()
