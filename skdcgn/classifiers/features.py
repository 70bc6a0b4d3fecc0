"""Digit features: the project's own digit classifier, with which the Fréchet distances on MNIST are taken.

It is the invariant classifier, trained on real MNIST digits in random colors (`python -m skdcgn feature-network`), so
that its features follow the shape.
"""

from importlib import resources

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from skdcgn.classifiers.networks import InvariantCNN
from skdcgn.errors import InputError

FEATURE_NETWORK = "mnist_features.safetensors"


def load_feature_network() -> InvariantCNN:
    """Load the digit-feature network that comes with the package, frozen and in eval mode.

    Its `features` map images (B, 3, 32, 32) in [-1, 1] to (B, 64).

    Raises:
        InputError: the package lacks the file.
    """
    file = resources.files("skdcgn") / "assets" / FEATURE_NETWORK
    if not file.is_file():
        raise InputError(
            f"The package lacks assets/{FEATURE_NETWORK}: install it whole, or make the file with "
            "`python -m skdcgn feature-network`."
        )
    model = InvariantCNN()
    model.load_state_dict(safetensors.torch.load(file.read_bytes()))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def digit_features(images: Tensor) -> np.ndarray:
    """Features (B, 64) of RGB images (B, 3, 32, 32) by the project's own digit classifier.

    It stands in for Inception, which has nothing to say about 32x32 digits: Fréchet distances on MNIST are
    comparable with each other only.
    """
    network = load_feature_network().to(images.device)
    return torch.cat([network.features(chunk) for chunk in images.split(500)]).cpu().numpy()


@torch.no_grad()
def digit_probabilities(features: np.ndarray) -> np.ndarray:
    """Class probabilities (B, 10) that go with `digit_features`."""
    return load_feature_network().linear(torch.from_numpy(features)).softmax(dim=1).numpy()
