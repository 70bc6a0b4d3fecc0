"""Ask why students fail on random noise (paper Sec. 4.3): too small, or trained on the wrong noise?

    python experiments/noise_pairing.py                                        both teacher sets, all mechanisms
    python experiments/noise_pairing.py --pairing published --mechanism shape
    python experiments/noise_pairing.py --profile full

The published scripts stored textures and backgrounds with other noise than they were made from, and every target as a
JPEG, normalized image by image. Masks kept their noise: they show what the files alone do. `final/noise_response` is
how far a student follows noise as its teacher does, on noise never seen; `final/seen_*` is measured on the noise of
the training set, compared with the teacher's true output.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from experiments.cases import student_case, students_study
from experiments.presets import GRAY_OBJECTIVES, STUDENTS, StudentsConfig, families
from skdcgn.commands.experiments import experiment
from skdcgn.recipes.configs.students import ClassMeansConfig
from skdcgn.runs.identity import derive
from skdcgn.runs.plan import Plan

DESCRIPTION = """Students of exact teacher sets compared with students of sets drawn as the published scripts did,
seed by seed, on seen and unseen noise (Sec. 4.3); and the teacher's class means, as a student without noise."""


@dataclass(frozen=True)
class Config(StudentsConfig):
    """Exact noise compared with the published pipeline's."""

    pairing: Literal["exact", "published", "all"] = "all"
    """Teacher set: each image with its own noise, or as the published scripts drew it."""


DEFAULTS = {
    profile: Config(
        profile, **{**GRAY_OBJECTIVES[profile], "loss": given.loss, "heldout_per_class": given.heldout_per_class}
    )
    for profile, given in STUDENTS.items()
}


def plan(config: Config) -> Plan:
    """Return the class means of each mechanism, and a case for each seed, mechanism and pairing."""
    from skdcgn.recipes.students import make_class_means, make_responding_student

    pairings = ["exact", "published"] if config.pairing == "all" else [config.pairing]
    study = students_study("noise_pairing", config, DEFAULTS, ("pairing",), "Sec. 4.3", DESCRIPTION)
    means = [
        study.case(
            "class_means",
            f"{mechanism} class means",
            derive(ClassMeansConfig, config, teacher=config.teacher_config, mechanism=mechanism.value),
            make_class_means,
            mechanism=mechanism.value,
        )
        for mechanism in config.mechanisms
    ]
    students = [
        student_case(
            study,
            config,
            mechanism,
            seed,
            (pairing,),
            make=make_responding_student,
            tags={"pairing": pairing},
            distill=replace(config.distill, published_code=pairing == "published"),
            frechet=False,
        )
        for mechanism, seed, pairing in product(config.mechanisms, config.seeds, pairings)
    ]
    shown = ("iou", "l1", "seen_iou", "seen_l1", "noise_response")
    return Plan([*means, *students], ("kind", "mechanism", "pairing", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__, families(DEFAULTS))
