"""The objectives that the paper compares in Appendix D, and the KL terms of its convergence claim, by name.

An objective says what differs from the plain one (Eq. 7), which is TinyGAN's without the term on real images. The paper
gives the weights of the plain objective only: each added term has weight 1 here. A new entry is a new variant: the
experiments take their choices, and the figures their titles, from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skdcgn.configs.tinygan import LossConfig


@dataclass(frozen=True)
class Objective:
    """A named objective: what it changes in the plain one."""

    paper: str
    """Where the paper, or its code, has it."""
    title: str
    """For figures and tables."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `LossConfig` that differ."""
    published_data: bool = False
    """Whether it also learns from a teacher set drawn as the published scripts did (`DistillConfig.published_code`)."""

    def loss(self, plain: LossConfig) -> LossConfig:
        """Return the plain objective with the changes of this one."""
        return replace(plain, **self.changes)


_KL_OUTPUTS = {"kl": 1.0, "kl_on": "pixels", "kl_direction": "teacher_student", "temperature": 1.0}
_KL_MODULE = {"kl": 1.0, "kl_on": "activations", "kl_direction": "student_teacher", "temperature": 8.0}

APPENDIX_D: Mapping[str, Objective] = {
    "tinygan": Objective("Eq. 7", "plain loss"),
    # Binary cross entropy on the discriminator's outputs, for student and discriminator.
    "cross_entropy": Objective("Appendix D, Fig. 12", "cross entropy", {"cross_entropy": 1.0}),
    # KL over channels for each discriminator level, in the place of its L1.
    "d1_kl_layers": Objective("Appendix D.1, Fig. 13", "D.1: KL for each layer", {"feature_distance": "kl"}),
    # L1 for each level, and once the KL of teacher's and student's outputs (each value as a Bernoulli probability).
    "d2_kl_outputs": Objective("Appendix D.2, Fig. 14", "D.2: KL of the outputs", _KL_OUTPUTS),
    # MSE for each level, in the place of its L1.
    "d3_mse": Objective("Appendix D.3, Fig. 16", "D.3: MSE for each layer", {"feature_distance": "mse"}),
    # What the released code did when it meant D.2. Its loss module computes a KL and returns the loss without it, which
    # leaves the plain objective; its teacher set pairs textures and backgrounds with other noise than their own, and
    # keeps JPEGs normalized one by one.
    "published_code": Objective("released code", "published code", published_data=True),
}

KL_TERMS: Mapping[str, Objective] = {
    "none": Objective("Eq. 7; the released code in effect", "no KL"),
    # KL(teacher || student) of the outputs.
    "paper": Objective("Eq. 6, Appendix D.2, Fig. 15", "KL of the paper", _KL_OUTPUTS),
    # What the released module computes, and drops, here really added: arguments swapped, softmax over the channels of
    # the last discriminator activation, temperature 8.
    "published_module": Objective("released loss module", "KL of the released module", _KL_MODULE),
}
