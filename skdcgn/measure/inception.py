"""The Inception network of the FID: pytorch-fid's, loaded from a file that is at hand.

It is the TensorFlow Inception of December 2015 with that port's three patched kinds of blocks, strictly loaded from
the file that `skdcgn.data.weights` calls `fid_inception`. pytorch-fid itself would download the file into a cache of
its own.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.data import weights
from skdcgn.errors import InputError

FEATURES, LOGITS = 2048, 1008
SIDE = 299
"""Side to which images are enlarged for the network."""


class FIDInception(nn.Module):
    """The Inception network of pytorch-fid, with its features and its logits."""

    def __init__(self) -> None:
        super().__init__()
        from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2  # slow
        from torchvision.models import inception_v3

        network = inception_v3(weights=None, num_classes=LOGITS, aux_logits=False, init_weights=False)
        network.Mixed_5b = FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = FIDInceptionA(288, pool_features=64)
        for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            setattr(network, name, FIDInceptionC(768, channels_7x7=channels))
        network.Mixed_7b = FIDInceptionE_1(1280)
        network.Mixed_7c = FIDInceptionE_2(2048)
        self.classifier = network.fc
        network.fc = nn.Identity()
        self.network = network

    @classmethod
    def load(cls, path: Path) -> "FIDInception":
        """Read the network from pytorch-fid's file, strictly, frozen and in evaluation mode.

        Raises:
            InputError: the file is missing, damaged, or of another network.
        """
        state = weights.load_state_dict(path)
        with torch.device("meta"):
            inception = cls()
        renamed = {
            key.replace("fc.", "classifier.", 1) if key.startswith("fc.") else f"network.{key}": value
            for key, value in state.items()
        }
        try:
            inception.load_state_dict(renamed, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is not pytorch-fid's Inception network: {reason}") from None
        return inception.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, 2048) of images (B, 3, H, W) in [-1, 1]."""
        return self.network(F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, 1008) that go with `features`, for the Inception score."""
        return self.classifier(features)
