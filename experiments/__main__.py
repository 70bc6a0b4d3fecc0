"""The whole suite: every experiment of the plan at one scale, then the report.

    python -m experiments                                    a first look, on a laptop
    python -m experiments --profile paper --only mnist_kd    one experiment in the published setting
    python -m experiments --dry-run                          what is finished, and why the rest would run

Finished runs are not run again, interrupted ones are resumed. An experiment that fails does not stop the others.
Several run at a time, a thread each, and write to log files; with --jobs 1 they run one by one in the terminal.
"""

import importlib

import tyro

from skdcgn import cli
from skdcgn.commands.suite import Config, Entry, run

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


def entries() -> list[Entry]:
    """Return the experiments of the suite."""
    flags = {**ON_REAL_IMAGES, **dict.fromkeys(ON_A_TEACHER, "--dataset"), **dict.fromkeys(ON_IMAGENET, "")}
    return [
        Entry(name, importlib.import_module(f"experiments.{name}"), flag, name in ON_REAL_IMAGES)
        for name, flag in flags.items()
    ]


if __name__ == "__main__":
    cli.entry(lambda: run(entries(), tyro.cli(Config, prog="python -m experiments", description=__doc__)))
