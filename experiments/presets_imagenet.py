"""What the ImageNet experiments share: recipes by profile (`experiments.cases_imagenet` has the cases).

A recipe that belongs to one experiment alone stands in its script.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from experiments.presets import EPOCHS, NATIVE_DISTILL, NATIVE_LOSS, SMOKE_DISTILL, StudentsConfig
from skdcgn.configs.cgn import ReconstructionConfig
from skdcgn.configs.fields import Seed, Share
from skdcgn.configs.names import Precision, Profile
from skdcgn.configs.tinygan import NATIVE_MNIST, PUBLISHED_IMAGENET, DistillConfig, LossConfig
from skdcgn.recipes.configs.baseline_cgn_tinygan import CGNRecipe, PartsConfig, TinyGANRecipe
from skdcgn.recipes.configs.sources import ImageNetTeacherConfig
from skdcgn.runs.plan import RunConfig


@dataclass(frozen=True)
class DistillationConfig(StudentsConfig):
    """Distillation of the ImageNet CGN."""

    dataset: Literal["imagenet", "miniature"] = "imagenet"
    """The CGN authors' teacher at 256x256, or its packaged miniature at 32x32 with ten classes."""
    classes: str = "all"
    """all, animals, best (those the CGN authors found to work well), or ids such as 0-99 or 1,5,7."""
    truncation: Share | None = None
    """Truncation of the teacher's noise; CGN's own 0.5 by default, 1 for the miniature."""
    teacher_precision: Precision = "fp32"
    """Precision that the teacher renders with."""
    objective: Literal["kl", "no_kl", "both"] = "both"
    """With the KL term (of weight loss.kl, or 1 where that is 0) or without it; both is the profile's own, and for
    masks the other one as well, for Figure 15."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""
    teacher_sets: Path | None = None
    """Folder of python -m skdcgn teacher-sets; by default one beside the run store."""

    @property
    def teacher_config(self) -> ImageNetTeacherConfig:
        """The teacher."""
        return ImageNetTeacherConfig(self.dataset, self.teacher, self.truncation, self.teacher_precision)


# Epochs 1 and 23 of 30 are those that Fig. 15 shows.
_FIGURE_15 = tuple(epoch / EPOCHS for epoch in (1, 5, 10, 15, 23, 30))

DISTILLATION: Mapping[Profile, DistillationConfig] = {
    "smoke": DistillationConfig(
        "smoke",
        NATIVE_MNIST,
        SMOKE_DISTILL,
        loss=LossConfig(kl=1.0),
        heldout_per_class=2,
        evaluations=(0.5, 1.0),
        dataset="miniature",
    ),
    "quick": DistillationConfig(
        "quick",
        NATIVE_MNIST,
        replace(NATIVE_DISTILL, steps=800, texture_steps=1200, texture_learning_rate=8e-3, per_class=500),
        loss=NATIVE_LOSS,
        heldout_per_class=50,
        evaluations=_FIGURE_15,
        dataset="miniature",
    ),
    "full": DistillationConfig(
        "full",
        replace(PUBLISHED_IMAGENET, mask_channels=1),
        DistillConfig(steps=200_000, batch_size=32, learning_rate=1e-3, betas=(0.0, 0.9), schedule="cosine", ema=0.999),
        loss=LossConfig(lambda_1=1.0, lambda_1_decay=0.0, kl=1.0),
        heldout_per_class=1,
        evaluations=_FIGURE_15,
    ),
    "paper": DistillationConfig(
        "paper",
        PUBLISHED_IMAGENET,
        DistillConfig(steps=EPOCHS * (1_000_000 // 32), batch_size=32),
        heldout_per_class=1,
        evaluations=EPOCHS,
    ),
}
"""Students of the ImageNet CGN, by profile."""


@dataclass(frozen=True)
class BaselineConfig(RunConfig):
    """The baseline for ImageNet."""

    tinygan: TinyGANRecipe
    cgn: CGNRecipe
    seed: Seed = 0
    """Of weights, noise and labels."""
    real_images: Path | None = None
    """ImageFolder of real images, such as ImageNet's train; the miniature's are made here where it is left out."""
    teacher: Path | None = None
    """Another file in the format of cgn.pth."""
    biggan: Path | None = None
    """BigGAN-deep-256 alone, in place of the teacher's biggan_GT."""
    u2net: Path | None = None
    """U²-Net alone, in place of the teacher's."""
    tinygan_checkpoint: Path | None = None
    """A TinyGAN of the authors (model_*.tar), in place of stage tinygan."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding that the TinyGAN starts from, such as BigGAN's."""

    @property
    def parts(self) -> PartsConfig:
        """What it takes of others' work."""
        miniature = DISTILLATION[self.profile].dataset == "miniature"
        return PartsConfig(miniature, self.cgn.training.truncation, self.teacher, self.biggan, self.u2net)


# As many updates as the authors', of far smaller batches, and higher learning rates to see them work. The shape's must
# stay low: at a hundred times theirs the entropy of the masks drives all of them to one stroke.
_MINIATURE_CGN = ReconstructionConfig(
    steps=300,
    batch_size=8,
    accumulate=1,
    shape_lr=2e-5,
    texture_lr=1e-3,
    background_lr=5e-4,
    perceptual="random",
    precision="fp32",
)
_LOSS = LossConfig(lambda_1=1.0, lambda_1_decay=0.0, real=0.2)

BASELINE: Mapping[Profile, BaselineConfig] = {
    "smoke": BaselineConfig(
        "smoke",
        TinyGANRecipe(
            NATIVE_MNIST,
            DistillConfig(steps=6, batch_size=4, per_class=0, discriminator_width=8),
            LossConfig(real=0.2),
            heldout=20,
        ),
        CGNRecipe(replace(_MINIATURE_CGN, steps=4, batch_size=2, accumulate=2), heldout=20),
    ),
    "quick": BaselineConfig(
        "quick",
        TinyGANRecipe(
            NATIVE_MNIST,
            DistillConfig(
                steps=800,
                batch_size=16,
                learning_rate=3e-3,
                betas=(0.5, 0.99),
                schedule="cosine",
                per_class=0,
                discriminator_width=16,
            ),
            _LOSS,
            heldout=200,
        ),
        CGNRecipe(_MINIATURE_CGN, heldout=200),
    ),
    "full": BaselineConfig(
        "full",
        TinyGANRecipe(
            DISTILLATION["full"].student,
            DistillConfig(steps=200_000, batch_size=32, learning_rate=1e-3, schedule="cosine", ema=0.999, per_class=0),
            _LOSS,
        ),
        # The authors' 300 updates of 4000 images are few and large: more and smaller ones of as many images in all.
        CGNRecipe(ReconstructionConfig(steps=75_000, batch_size=16, accumulate=25, truncation=0.5)),
    ),
    "paper": BaselineConfig(
        "paper",
        TinyGANRecipe(
            PUBLISHED_IMAGENET,
            DistillConfig(steps=18 * (1_000_000 // 16), batch_size=16, per_class=0),
            LossConfig(real=0.2),
        ),
        CGNRecipe(ReconstructionConfig(truncation=0.5, batch_statistics=True)),
    ),
}
"""The paper's baseline on ImageNet, by profile: its TinyGAN learns from real images too, as the original TinyGAN."""
