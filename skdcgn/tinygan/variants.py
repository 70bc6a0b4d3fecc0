"""The objectives that the paper compares in Appendix D, and the KL terms of its convergence claim, by name.

A preset says what differs from the plain objective (Eq. 7), which is TinyGAN's without the term on real images.
The paper gives the weights of the plain objective only: each added term has weight 1 here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skdcgn.tinygan.losses import LossConfig


@dataclass(frozen=True)
class Preset:
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
        """Return the plain objective with this preset's changes."""
        return replace(plain, **self.changes)


_KL_OUTPUTS = {"kl": 1.0, "kl_on": "pixels", "kl_direction": "teacher_student", "temperature": 1.0}

_KL_MODULE = {"kl": 1.0, "kl_on": "activations", "kl_direction": "student_teacher", "temperature": 8.0}

APPENDIX_D: Mapping[str, Preset] = {
    "tinygan": Preset("Eq. 7", "plain loss"),
    "cross_entropy": Preset("Appendix D, Fig. 12", "cross entropy", {"cross_entropy": 1.0}),
    "d1_kl_layers": Preset("Appendix D.1, Fig. 13", "D.1: KL for each layer", {"feature_distance": "kl"}),
    "d2_kl_outputs": Preset("Appendix D.2, Fig. 14", "D.2: KL of the outputs", _KL_OUTPUTS),
    "d3_mse": Preset("Appendix D.3, Fig. 16", "D.3: MSE for each layer", {"feature_distance": "mse"}),
    "published_code": Preset("released code", "published code", published_data=True),
}
"""tinygan: the plain objective.
cross_entropy: binary cross entropy on the discriminator's outputs, for student and discriminator.
d1_kl_layers: KL over channels for each discriminator level, in the place of its L1.
d2_kl_outputs: L1 for each level, and once the KL of teacher's and student's outputs (each value as a Bernoulli
probability).
d3_mse: MSE for each level, in the place of its L1.
published_code: what the released code did when it meant D.2. Its loss module computes a KL and returns the loss
without it, which leaves the plain objective; its teacher set pairs textures and backgrounds with other noise than
their own, and keeps JPEGs normalised one by one."""

KL_TERMS: Mapping[str, Preset] = {
    "none": Preset("Eq. 7; the released code in effect", "no KL"),
    "paper": Preset("Eq. 6, Appendix D.2, Fig. 15", "KL of the paper", _KL_OUTPUTS),
    "published_module": Preset("released loss module", "KL of the released module", _KL_MODULE),
}
"""none: the plain objective.
paper: KL(teacher || student) of the outputs.
published_module: what the released module computes, and drops, here really added: arguments swapped, softmax over the
channels of the last discriminator activation, temperature 8."""
