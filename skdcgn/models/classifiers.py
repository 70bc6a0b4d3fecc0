"""The invariant classifier of the MNIST experiments (Sauer and Geiger, 2021; here Sec. 4.5 and Table 1)."""

from torch import Tensor, nn

FEATURES = 64


class InvariantCNN(nn.Module):
    """CGN's small classifier: input batch norm, four convolutions, average pool, one linear layer.

    Convolutions: 5x5 to 32 channels, max pool 3x3 of stride 2, 3x3 to 32, 3x3 of stride 2 to 64, 3x3 to 64, each
    with a ReLU. The last pool averages the whole map, so that any image size works (the original's 7x7 window
    leaves out the last row and column of the 8x8 map). The outputs are logits, where the original returns their
    log-softmax.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 32, 5, padding=2),
            nn.MaxPool2d(3, stride=2, padding=1),  # before the ReLU: the same function, cheaper
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, FEATURES, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, padding=1),
            nn.ReLU(),
        )
        self.linear = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, 64) before the last layer, of images (B, 3, H, W) in [-1, 1]."""
        return self.convolutions(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, 3, H, W) in [-1, 1]."""
        return self.linear(self.features(images))
