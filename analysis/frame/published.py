"""Accuracies that others published, to stand beside ours: data only."""

from collections.abc import Mapping
from typing import NamedTuple


class Accuracy(NamedTuple):
    """Accuracy in training and in test, in percent."""

    train: float
    test: float


TABLE_1: Mapping[str, Accuracy] = {
    "noise": Accuracy(99.9, 14.96),
    "rotation": Accuracy(99.1, 13.51),
    "transparency": Accuracy(94.7, 58.86),
}
"""The only numbers of the paper: Table 1, by the modification of the mask."""


CGN_PAPER = "CGN paper"
"""Sauer and Geiger, Counterfactual Generative Networks, ICLR 2021."""

REPLICATION = "replication"
"""Its independent replication, Re-CGN."""

ROBUSTNESS: Mapping[tuple[str, str], Mapping[str, Accuracy]] = {
    ("double_colored", "original"): {CGN_PAPER: Accuracy(100, 10.3), REPLICATION: Accuracy(100, 10.5)},
    ("double_colored", "gan"): {CGN_PAPER: Accuracy(100, 10.8), REPLICATION: Accuracy(100, 10.6)},
    ("double_colored", "cgn"): {CGN_PAPER: Accuracy(97.4, 89.0), REPLICATION: Accuracy(94.8, 86.5)},
    ("colored", "cgn"): {CGN_PAPER: Accuracy(99.7, 95.1), REPLICATION: Accuracy(99.4, 92.3)},
    ("wildlife", "cgn"): {CGN_PAPER: Accuracy(99.2, 85.7), REPLICATION: Accuracy(95.5, 81.4)},
}
"""By data set and source of training images, who published what accuracy of the invariant classifier; the test set is
the last 10,000 of MNIST-train."""
