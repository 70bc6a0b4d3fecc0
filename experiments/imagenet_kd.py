"""Distill the mechanisms of the ImageNet CGN into TinyGAN students (paper Sec. 4.1, Figs. 2, 6, 15).

    python experiments/imagenet_kd.py                                   the miniature at 32x32: two minutes
    python experiments/imagenet_kd.py --profile paper --mechanism shape the published setting, 256x256
    python experiments/imagenet_kd.py --profile full --classes best     classes that CGN's authors found to work well
    torchrun --nproc_per_node 4 experiments/imagenet_kd.py --profile paper --teacher-sets DIR

full and paper need the CGN authors' 1.1 GB (python -m skdcgn weights says how to get it). Teacher sets are written
first where they are missing; python -m skdcgn teacher-sets does so on as many devices as there are.
Masks are distilled twice, with and without the KL term (Fig. 15). The three students of a seed are put together in
another run.
"""

from experiments.cases_imagenet import distillation
from experiments.presets_imagenet import DISTILLATION, DistillationConfig
from skdcgn.commands.experiments import experiment
from skdcgn.runs.plan import Plan

DEFAULTS = DISTILLATION


def plan(config: DistillationConfig) -> Plan:
    """Return a case for each seed, mechanism and objective, and one for the students of each seed together."""
    shown = ("iou", "l1", "ssim", "frechet", "parameters", "teacher_parameters")
    return Plan(distillation(config), ("kind", "mechanism", "objective", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
