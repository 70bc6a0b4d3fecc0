"""Compare the objectives of Appendix D (paper Sec. 4.4, D.1-D.3, Figs. 12, 13, 14, 16).

    python experiments/ablation_losses.py                                      all variants, mechanisms and seeds
    python experiments/ablation_losses.py --variant d3_mse --mechanism shape   one of them
    python experiments/ablation_losses.py --profile paper --variant d2_kl_outputs

Runs of one seed and mechanism differ in nothing but the variant: same initial weights, same order of the data.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from experiments.cases import student_case, students_study
from experiments.presets import EPOCHS, GRAY_OBJECTIVES, PROFILES, StudentsConfig
from skdcgn.commands.experiments import experiment
from skdcgn.configs.fields import Evaluations
from skdcgn.runs.plan import Plan
from skdcgn.tinygan.variants import APPENDIX_D

DESCRIPTION = """The objectives of Appendix D compared with the plain one, seed by seed: held-out fidelity and noise
energy (high-frequency content relative to the teacher's) by step. Feeds **Figures 12, 13, 14 and 16**."""

SHOWN_EPOCHS = (2, 5, 10, 15, 20, 30)
"""Epochs to evaluate after, of the paper's 30: its figures show 2, 10 and 30."""


@dataclass(frozen=True)
class Config(StudentsConfig):
    """Ablation of the students' objective; `loss` is the plain one, to which each variant makes its changes."""

    evaluations: Evaluations = tuple(epoch / EPOCHS for epoch in SHOWN_EPOCHS)
    """Held-out evaluations during training: how many, or at which fractions of it."""
    variant: Literal[(*APPENDIX_D, "all")] = "all"
    """The objective, see `skdcgn.tinygan.variants.APPENDIX_D`."""


DEFAULTS = {profile: Config(profile, **GRAY_OBJECTIVES[profile]) for profile in PROFILES}


def plan(config: Config) -> Plan:
    """Return a case for each seed, mechanism and variant."""
    variants = list(APPENDIX_D) if config.variant == "all" else [config.variant]
    study = students_study("ablation_losses", config, DEFAULTS, ("variant",), "Sec. 4.4, Appendix D", DESCRIPTION)
    cases = [
        student_case(
            study,
            config,
            mechanism,
            seed,
            (variant,),
            tags={"variant": variant, "paper": APPENDIX_D[variant].paper},
            loss=APPENDIX_D[variant].loss(config.loss),
            distill=replace(config.distill, published_code=APPENDIX_D[variant].published_data),
        )
        for seed, mechanism, variant in product(config.seeds, config.mechanisms, variants)
    ]
    shown = ("iou", "l1", "ssim", "frechet", "noise_energy")
    return Plan(cases, ("mechanism", "variant", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
