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

from experiments.cases import student_case, teacher_of
from experiments.presets import OBJECTIVES, PROFILES, STUDENTS, StudentsConfig
from skdcgn.commands import experiment
from skdcgn.recipes.students import ClassMeansConfig, make_class_means, make_responding_student
from skdcgn.runs.identity import overrides
from skdcgn.runs.lifecycle import Case, Plan

DESCRIPTION = """Students of exact teacher sets compared with students of sets drawn as the published scripts did,
seed by seed, on seen and unseen noise (Sec. 4.3); and the teacher's class means, as a student without noise."""


@dataclass(frozen=True)
class Config(StudentsConfig):
    """Exact noise compared with the published pipeline's."""

    pairing: Literal["exact", "published", "all"] = "all"
    """Teacher set: each image with its own noise, or as the published scripts drew it."""


# Masks are drawn as gray RGB, as the published students do: the published teacher set holds them so.
DEFAULTS = {
    profile: Config(
        profile,
        student=replace(OBJECTIVES[profile]["student"], mask_channels=3),
        distill=OBJECTIVES[profile]["distill"],
        loss=STUDENTS[profile]["loss"],
        seeds=OBJECTIVES[profile]["seeds"],
        heldout_per_class=STUDENTS[profile]["heldout_per_class"],
    )
    for profile in PROFILES
}


def plan(config: Config) -> Plan:
    """Return the class means of each mechanism, and a case for each seed, mechanism and pairing."""
    teacher = teacher_of(config.teacher_config, config.profile, config.runtime)
    pairings = ["exact", "published"] if config.pairing == "all" else [config.pairing]
    changed = overrides(config, DEFAULTS[config.profile], ("dataset", "mechanism", "seeds", "teacher", "pairing"))
    tags = {"paper": "Sec. 4.3", "overrides": changed}
    common = {"kind": "class_means", "profile": config.profile, "dataset": config.dataset, **teacher.tags, **tags}
    means = [
        Case(
            "noise_pairing",
            f"{mechanism} class means",
            ClassMeansConfig(config.profile, teacher.config, mechanism.value, config.heldout_per_class, config.runtime),
            make_class_means,
            {**common, "mechanism": mechanism.value},
            teacher.needs,
            teacher.inputs,
            description=DESCRIPTION,
        )
        for mechanism in config.mechanisms
    ]
    students = [
        student_case(
            "noise_pairing",
            config,
            teacher,
            mechanism,
            seed,
            {"pairing": pairing, **tags},
            DESCRIPTION,
            (pairing,),
            make=make_responding_student,
            distill=replace(config.distill, published_code=pairing == "published"),
            frechet=False,
        )
        for mechanism, seed, pairing in product(config.mechanisms, config.seeds, pairings)
    ]
    shown = ("iou", "l1", "seen_iou", "seen_l1", "noise_response")
    return Plan([*means, *students], ("kind", "mechanism", "pairing", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
