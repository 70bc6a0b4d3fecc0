"""How large everything is: the one place where scale is decided.

A profile is a set of defaults. Every field of an experiment can still be overridden on its command line.
"""

from dataclasses import dataclass, replace
from typing import Literal

from skdcgn.cgn_training import PUBLISHED, CGNTrainingConfig
from skdcgn.distill import DistillConfig
from skdcgn.losses import LossConfig
from skdcgn.models.tinygan import NATIVE_MNIST, PUBLISHED_MNIST, TinyGANConfig

Profile = Literal["smoke", "quick", "full", "paper"]
"""smoke: tests. quick: a first look on a laptop. full: our best answer. paper: the published setting."""


@dataclass(frozen=True)
class Scale:
    """The sizes of the MNIST experiments at one profile."""

    student: TinyGANConfig
    """Architecture of the students."""
    distill: DistillConfig
    """Their training."""
    loss: LossConfig
    """Their objective."""
    ablation: DistillConfig
    """Training where objectives are compared: all of Appendix D's have a discriminator."""
    ablation_loss: LossConfig
    """The plain objective of those comparisons: the paper's, lambda_1 falling to 0 after two thirds of the training."""
    ablation_heldout_per_class: int
    """Held-out images of each class there, where evaluations are many."""
    sweep: DistillConfig
    """Training of one trial of a search."""
    sweep_trials: int
    """Trials of a search."""
    sweep_evaluations: int
    """Held-out evaluations of a trial: where hopeless ones are stopped."""
    sweep_confirm_seeds: tuple[int, ...]
    """Fresh seeds on which a search's best trial is held against the paper's values."""
    cgn: CGNTrainingConfig
    """Training of a CGN of our own."""
    seeds: tuple[int, ...]
    """Seeds of an experiment whose table needs an interval."""
    evaluations: int
    """Held-out evaluations during a training."""
    heldout_per_class: int
    """Held-out images of each class."""


# The right-sized recipe: pixel distance and KL alone (Eq. 2 and 6), a high learning rate that falls to 0.
_NATIVE_LOSS = LossConfig(feature=0.0, lambda_1=1.0, lambda_1_decay=0.0, lambda_2=0.0, kl=1.0)
_NATIVE_DISTILL = DistillConfig(
    steps=6000,
    texture_steps=2500,
    batch_size=32,
    learning_rate=1.2e-2,
    texture_learning_rate=3e-3,
    betas=(0.9, 0.99),
    schedule="cosine",
    per_class=2000,
)

_PAPER_EPOCHS, _PAPER_EPOCH_STEPS = 30, 10_000 // 64

# The paper's objectives on the native student: its learning rate of 2e-4 would need its number of steps.
_ABLATION = DistillConfig(
    steps=_PAPER_EPOCHS * (10_000 // 32),
    batch_size=32,
    learning_rate=3e-3,
    schedule="cosine",
    discriminator_width=16,
)

_SWEEP = DistillConfig(
    batch_size=32,
    learning_rate=1e-2,
    betas=(0.5, 0.99),
    schedule="cosine",
    discriminator_width=16,
)

MNIST: dict[Profile, Scale] = {
    "smoke": Scale(
        student=NATIVE_MNIST,
        distill=DistillConfig(
            steps=12, learning_rate=3e-3, schedule="cosine", batch_size=8, per_class=4, discriminator_width=8
        ),
        loss=LossConfig(kl=1.0),
        ablation=replace(_ABLATION, steps=30, batch_size=8, per_class=8, discriminator_width=8),
        ablation_loss=LossConfig(lambda_1_decay=0.1),
        ablation_heldout_per_class=10,
        sweep=DistillConfig(
            steps=6, learning_rate=3e-3, schedule="cosine", batch_size=8, per_class=4, discriminator_width=8
        ),
        sweep_trials=3,
        sweep_evaluations=2,
        sweep_confirm_seeds=(1, 2, 3),
        cgn=CGNTrainingConfig(steps=20),
        seeds=(0,),
        evaluations=2,
        heldout_per_class=10,
    ),
    "quick": Scale(
        student=NATIVE_MNIST,
        distill=_NATIVE_DISTILL,
        loss=_NATIVE_LOSS,
        ablation=replace(_ABLATION, steps=180, learning_rate=8e-3, per_class=192),
        ablation_loss=LossConfig(lambda_1_decay=0.1),
        ablation_heldout_per_class=20,
        sweep=replace(_SWEEP, steps=200, per_class=500, warmup=20),
        sweep_trials=30,
        sweep_evaluations=5,
        sweep_confirm_seeds=(1, 2, 3, 4),
        cgn=CGNTrainingConfig(steps=3000),
        seeds=(0, 1, 2),
        evaluations=5,
        heldout_per_class=100,
    ),
    "full": Scale(
        student=NATIVE_MNIST,
        distill=replace(_NATIVE_DISTILL, steps=40_000, texture_steps=20_000, per_class=10_000),
        loss=_NATIVE_LOSS,
        ablation=_ABLATION,
        ablation_loss=LossConfig(),
        ablation_heldout_per_class=100,
        sweep=replace(_SWEEP, steps=4000, per_class=2000),
        sweep_trials=100,
        sweep_evaluations=10,
        sweep_confirm_seeds=(1, 2, 3, 4, 5),
        cgn=CGNTrainingConfig(steps=16_000),
        seeds=(0, 1, 2, 3, 4),
        evaluations=10,
        heldout_per_class=500,
    ),
    "paper": Scale(
        student=PUBLISHED_MNIST,
        distill=DistillConfig(steps=_PAPER_EPOCHS * _PAPER_EPOCH_STEPS),
        loss=LossConfig(),
        ablation=DistillConfig(steps=_PAPER_EPOCHS * _PAPER_EPOCH_STEPS),
        ablation_loss=LossConfig(),
        ablation_heldout_per_class=100,
        sweep=DistillConfig(steps=_PAPER_EPOCHS * _PAPER_EPOCH_STEPS),
        sweep_trials=30,
        sweep_evaluations=_PAPER_EPOCHS,
        sweep_confirm_seeds=(1, 2, 3, 4, 5),
        cgn=PUBLISHED,
        seeds=(0, 1, 2, 3, 4),
        evaluations=_PAPER_EPOCHS,
        heldout_per_class=100,
    ),
}
