"""Distill the mechanisms of an MNIST CGN into small students (paper Sec. 4.3, Fig. 7).

    python experiments/mnist_kd.py                                        all three mechanisms, three seeds: minutes
    python experiments/mnist_kd.py --student slim                         slim students instead of the paper's TinyGAN
    python experiments/mnist_kd.py --profile paper --mechanism shape      the published setting
    python experiments/mnist_kd.py --dataset wildlife --loss.kl 0.5       another teacher, another KL weight
    python experiments/mnist_kd.py --dataset digits                       no network, no data: a teacher trained here

Every student is a run of its own; finished ones are not trained again. The three of a seed are put together in another
run, which counterfactuals can be drawn from (python -m skdcgn counterfactuals).
"""

from experiments.cases import distillation
from experiments.presets import STUDENTS, DistillationConfig, families
from skdcgn.commands.experiments import experiment
from skdcgn.runs.plan import Plan

DEFAULTS = STUDENTS


def plan(config: DistillationConfig) -> Plan:
    """Return a case for each mechanism and seed, and one for the students of each seed together."""
    shown = ("iou", "l1", "ssim", "frechet", "parameters", "teacher_parameters")
    return Plan(distillation(config), ("kind", "mechanism", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__, families(DEFAULTS))
