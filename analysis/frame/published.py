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


class Published(NamedTuple):
    """What was published of one source of training images, in percent; None where nothing was."""

    cgn_paper: Accuracy | None
    """Sauer and Geiger, Counterfactual Generative Networks, ICLR 2021."""
    replication: Accuracy | None
    """Its independent replication, Re-CGN."""


NONE = Published(None, None)

ROBUSTNESS: Mapping[str, Mapping[str, Published]] = {
    "double_colored": {
        "original": Published(Accuracy(100, 10.3), Accuracy(100, 10.5)),
        "gan": Published(Accuracy(100, 10.8), Accuracy(100, 10.6)),
        "cgn": Published(Accuracy(97.4, 89.0), Accuracy(94.8, 86.5)),
    },
    "colored": {"cgn": Published(Accuracy(99.7, 95.1), Accuracy(99.4, 92.3))},
    "wildlife": {"cgn": Published(Accuracy(99.2, 85.7), Accuracy(95.5, 81.4))},
}
"""Accuracy of the invariant classifier by data set and source of its training images; the test set is the last 10,000
of MNIST-train."""


def robustness(dataset: str, source: str) -> Published:
    """Return what was published of a data set and a source of training images."""
    return ROBUSTNESS.get(dataset, {}).get(source, NONE)
