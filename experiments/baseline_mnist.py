"""The paper's baseline on MNIST: a CGN whose mechanisms are TinyGANs, trained without a teacher (Sec. 4.2).

    python experiments/baseline_mnist.py                                 on double-colored MNIST, minutes
    python experiments/baseline_mnist.py --dataset digits --seeds 0      no network, no data

It has the students' architecture and the CGN's training: what it lacks beside SKDCGN is the distillation. The paper
shows its baseline on ImageNet only (Figs. 8-10, `baseline_cgn_tinygan.py`).
"""

from experiments.cases import baselines
from experiments.presets import BASELINES, BaselinesConfig
from skdcgn.commands.experiments import experiment
from skdcgn.runs.plan import Plan

DEFAULTS = BASELINES


def plan(config: BaselinesConfig) -> Plan:
    """Return a case for each seed."""
    shown = ("train_accuracy", "valid_accuracy", "test_accuracy", "stroke_iou")
    return Plan(baselines(config), ("dataset", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
