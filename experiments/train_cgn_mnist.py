"""Train a CGN for an MNIST variant, and compare it with its authors' own (paper Sec. 2 and 4.1).

    python experiments/train_cgn_mnist.py                                double-colored MNIST
    python experiments/train_cgn_mnist.py --dataset digits               scikit-learn's digits: no network, no data
    python experiments/train_cgn_mnist.py --dataset wildlife --training.discriminator conv
    python experiments/train_cgn_mnist.py --profile paper                the authors' training: VGG16, 46,900 steps

The run keeps the generator as `cgn.safetensors`, which every other script takes with `--teacher`. What it is worth is
the accuracy, on digits whose colors tell nothing, of a classifier that learned from its counterfactuals alone.
"""

from experiments.cases import cgn_case
from experiments.presets import CGNS
from skdcgn.commands.experiments import experiment
from skdcgn.recipes.configs.cgns import CGNConfig
from skdcgn.runs.plan import Plan

DEFAULTS = CGNS


def plan(config: CGNConfig) -> Plan:
    """Return the one case."""
    shown = ("train_accuracy", "valid_accuracy", "test_accuracy", "authors_valid_accuracy", "authors_test_accuracy")
    return Plan([cgn_case(config)], ("dataset", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
