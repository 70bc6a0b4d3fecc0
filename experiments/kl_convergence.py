"""Ask whether KL makes students converge faster (paper Appendix D.2, Fig. 15), on MNIST with the real teacher.

    python experiments/kl_convergence.py                    without KL, with the paper's, with the released module's
    python experiments/kl_convergence.py --mechanism shape --target-iou 0.7
    python experiments/kl_convergence.py --profile paper --kl paper

Runs of one seed and mechanism differ in nothing but the KL term: same initial weights, same order of the data.
`final/steps_to_target` is the step at which held-out fidelity first reaches the target; a run that never does has none.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from experiments.cases import student_case, students_study
from experiments.presets import EPOCHS, OBJECTIVES, PROFILES, StudentsConfig
from skdcgn.commands.experiments import experiment
from skdcgn.configs.fields import Evaluations, Fraction, NonNegativeFloat
from skdcgn.recipes.configs.students import ConvergenceConfig
from skdcgn.runs.plan import Plan
from skdcgn.tinygan.variants import KL_TERMS

DESCRIPTION = """Steps to a fixed held-out fidelity with and without KL, seed by seed. Feeds the MNIST counterpart of
**Figure 15**."""


@dataclass(frozen=True)
class Config(StudentsConfig):
    """Convergence with and without KL; `loss` is the objective without it, to which a KL term is added."""

    evaluations: Evaluations = EPOCHS
    """Held-out evaluations during training: one for each of the paper's epochs."""
    kl: Literal[(*KL_TERMS, "all")] = "all"
    """The KL term, see `skdcgn.tinygan.variants.KL_TERMS`."""
    target_iou: Fraction = 0.5
    """The held-out mask IoU to reach (shape)."""
    target_l1: NonNegativeFloat = 0.05
    """The held-out L1 to reach (texture, background)."""


DEFAULTS = {profile: Config(profile, **OBJECTIVES[profile]) for profile in PROFILES}
DEFAULTS["smoke"] = replace(DEFAULTS["smoke"], evaluations=10)


def plan(config: Config) -> Plan:
    """Return a case for each seed, mechanism and KL term."""
    from skdcgn.recipes.students import make_converging_student

    terms = list(KL_TERMS) if config.kl == "all" else [config.kl]
    study = students_study("kl_convergence", config, DEFAULTS, ("kl",), "Appendix D.2, Fig. 15", DESCRIPTION)
    cases = [
        student_case(
            study,
            config,
            mechanism,
            seed,
            (kl,),
            ConvergenceConfig,
            make_converging_student,
            {"kl": kl},
            loss=KL_TERMS[kl].loss(config.loss),
            frechet=False,
        )
        for seed, mechanism, kl in product(config.seeds, config.mechanisms, terms)
    ]
    return Plan(cases, ("mechanism", "kl", "seed"), ("iou", "l1", "steps_to_target"), config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
