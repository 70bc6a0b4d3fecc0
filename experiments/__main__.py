"""The whole suite: every experiment of the plan at one scale, then the report.

    python -m experiments                                    a first look, on a laptop
    python -m experiments --profile paper --only mnist_kd    one experiment in the published setting
    python -m experiments --dry-run                          what is finished, and why the rest would run
    python -m experiments status                             how far the suite is, wherever it runs

Finished runs are not made again, interrupted ones are resumed. A run that fails stops only those that need it. Several
are made at the same time, a thread each; each has a log file.
"""

import importlib
import sys
from typing import TYPE_CHECKING

import tyro

from skdcgn import cli
from skdcgn.configs.suite import Config

if TYPE_CHECKING:
    from skdcgn.commands.experiments.suite import Entry

ON_REAL_IMAGES = {
    "train_cgn_mnist": "--dataset",
    "baseline_mnist": "--dataset",
    "table1_shape_im": "--dataset",
    "ood_robustness": "--datasets",
}
"""Experiments that need MNIST itself, and their option for the data set."""

ON_A_TEACHER = (
    "mnist_kd",
    "ablation_losses",
    "kl_convergence",
    "noise_pairing",
    "sweep_kl",
    "sweep_lambdas",
)
"""Experiments that need an MNIST teacher only."""

ON_IMAGENET = ("imagenet_kd", "baseline_cgn_tinygan", "imagenet_ood")
"""Experiments on ImageNet, or on its miniature at the small profiles."""


def entries() -> "list[Entry]":
    """Return the experiments of the suite."""
    from skdcgn.commands.experiments.suite import Entry

    flags = {**ON_REAL_IMAGES, **dict.fromkeys(ON_A_TEACHER, "--dataset"), **dict.fromkeys(ON_IMAGENET, "")}
    return [
        Entry(name, importlib.import_module(f"experiments.{name}"), flag, name in ON_REAL_IMAGES)
        for name, flag in flags.items()
    ]


def main() -> None:
    """Run the suite, or say how far it is, as the command line says."""
    asked = sys.argv[1:2] == ["status"]
    config = tyro.cli(Config, prog="python -m experiments", description=__doc__, args=sys.argv[1 + asked :])
    from skdcgn.commands.experiments import suite  # takes seconds to import, which --help need not pay

    (suite.status if asked else suite.run)(entries(), config)


if __name__ == "__main__":
    cli.entry(main)
