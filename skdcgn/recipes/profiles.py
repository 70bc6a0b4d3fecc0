"""How large everything is: the one place where scale is decided.

A profile is a set of defaults. Every field of an experiment can still be overridden on its command line.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from skdcgn.cgn.adversarial import PUBLISHED, CGNTrainingConfig
from skdcgn.cgn.miniature import FitConfig
from skdcgn.cgn.reconstruction import ReconstructionConfig
from skdcgn.classifiers.ensemble import EnsembleConfig
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.counterfactuals.gan import GANConfig
from skdcgn.data.mnist import Dataset, Variant
from skdcgn.mechanisms import Intervention
from skdcgn.recipes.table1_shape_im import Init, Labels, When
from skdcgn.tinygan.distillation import DistillConfig
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import NATIVE_MNIST, PUBLISHED_IMAGENET, PUBLISHED_MNIST, TinyGANConfig

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
    cgn: CGNTrainingConfig
    """Training of a CGN of our own."""
    cgn_images: int
    """Counterfactuals that a classifier learns from, to judge that CGN."""
    classifier: ClassifierConfig
    """The classifier's training."""
    seeds: tuple[int, ...]
    """Seeds of an experiment whose table needs an interval."""
    student_seeds: tuple[int, ...]
    """Seeds of `mnist_kd`, whose students take long at full and paper."""
    baseline_seeds: tuple[int, ...]
    """Seeds of `baseline_mnist`, each a CGN trained from nothing."""
    evaluations: int
    """Held-out evaluations during a training."""
    heldout_per_class: int
    """Held-out images of each class."""


# The right-sized recipe: pixel distance and KL alone (Eq. 2 and 6), a high learning rate that falls to 0.
_NATIVE_LOSS = LossConfig(feature=0.0, lambda_1=1.0, lambda_1_decay=0.0, lambda_2=0.0, kl=1.0)

_NATIVE_DISTILL = DistillConfig(
    steps=3000,
    texture_steps=2000,
    batch_size=32,
    learning_rate=1.2e-2,
    texture_learning_rate=3e-3,
    betas=(0.9, 0.99),
    schedule="cosine",
    per_class=1500,
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
        cgn=CGNTrainingConfig(steps=20),
        cgn_images=200,
        classifier=ClassifierConfig(epochs=1),
        seeds=(0,),
        student_seeds=(0,),
        baseline_seeds=(0,),
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
        cgn=CGNTrainingConfig(steps=2400),
        cgn_images=8000,
        classifier=ClassifierConfig(epochs=4),
        seeds=(0, 1, 2),
        student_seeds=(0, 1, 2),
        baseline_seeds=(0,),
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
        cgn=CGNTrainingConfig(steps=16_000),
        cgn_images=100_000,
        classifier=ClassifierConfig(),
        seeds=(0, 1, 2, 3, 4),
        student_seeds=(0,),
        baseline_seeds=(0, 1, 2, 3, 4),
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
        cgn=PUBLISHED,
        cgn_images=100_000,
        classifier=ClassifierConfig(),
        seeds=(0, 1, 2, 3, 4),
        student_seeds=(0,),
        baseline_seeds=(0, 1, 2, 3, 4),
        evaluations=_PAPER_EPOCHS,
        heldout_per_class=100,
    ),
}

TrainingSource = Literal["original", "gan", "cgn", "skdcgn", "skdcgn_published", "baseline"]


@dataclass(frozen=True)
class RobustnessScale:
    """The sizes of the comparison of training images for classifiers, at one profile."""

    datasets: tuple[Dataset, ...]
    """MNIST variants; digits needs no download."""
    sources: tuple[TrainingSource, ...]
    """Where training images come from; skdcgn_published are students of the published size, trained as published."""
    seeds: tuple[int, ...]
    """One classifier for each seed, source and data set."""
    images: int
    """Images of each source that a classifier learns from."""
    per_mask: int
    """Counterfactuals of one mask."""
    classifier: ClassifierConfig
    """Training of the classifier."""
    generators: int
    """Generators trained of each kind (GANs, students, baselines), which the seeds take in turns."""
    gan: GANConfig
    """Training of the conditional GAN; its seed is overwritten."""
    students: Profile
    """Profile of `mnist_kd` and `baseline_mnist` that trains the right-sized students and the baseline."""
    published_students: Profile
    """Profile of `mnist_kd` that trains the students of the published size: one set, for all seeds."""


_SOURCES: tuple[TrainingSource, ...] = ("original", "gan", "cgn", "skdcgn", "baseline")

_FULL_ROBUSTNESS = RobustnessScale(
    datasets=get_args(Variant),
    sources=get_args(TrainingSource),
    seeds=(0, 1, 2, 3, 4),
    images=100_000,
    per_mask=10,
    classifier=ClassifierConfig(),
    generators=5,
    gan=GANConfig(),
    students="full",
    published_students="paper",
)

ROBUSTNESS: dict[Profile, RobustnessScale] = {
    "smoke": replace(
        _FULL_ROBUSTNESS,
        datasets=("double_colored",),
        sources=_SOURCES,
        seeds=(0,),
        images=200,
        classifier=ClassifierConfig(epochs=1),
        generators=1,
        gan=GANConfig(steps=6, batch_size=8),
        students="smoke",
        published_students="smoke",
    ),
    "quick": replace(
        _FULL_ROBUSTNESS,
        datasets=("double_colored",),
        sources=_SOURCES,
        seeds=(0, 1, 2),
        images=8000,
        per_mask=2,  # at so few images, more of one mask are too few masks
        classifier=ClassifierConfig(epochs=4, batch_size=32),
        generators=1,
        gan=GANConfig(steps=600),
        students="quick",
    ),
    "full": _FULL_ROBUSTNESS,
    "paper": replace(_FULL_ROBUSTNESS, classifier=ClassifierConfig(precision="fp32")),
}


@dataclass(frozen=True)
class ImageNetScale:
    """The sizes of the ImageNet experiments at one profile."""

    miniature: bool
    """Whether the teacher is the packaged miniature rather than the CGN authors' 1.1 GB."""
    student: TinyGANConfig
    """Architecture of the students."""
    distill: DistillConfig
    """Their training."""
    loss: LossConfig
    """Their objective."""
    seeds: tuple[int, ...]
    """Seeds of an experiment whose table needs an interval."""
    evaluations: int | tuple[float, ...]
    """Held-out evaluations during a training: how many, or at which fractions of it."""
    heldout_per_class: int
    """Held-out images of each class."""
    fit: FitConfig
    """How the miniature itself is made."""


# Epochs 1 and 23 of 30 are those that Fig. 15 shows.
_FIGURE_15 = tuple(epoch / _PAPER_EPOCHS for epoch in (1, 5, 10, 15, 23, 30))

IMAGENET: dict[Profile, ImageNetScale] = {
    "smoke": ImageNetScale(
        miniature=True,
        student=NATIVE_MNIST,
        distill=MNIST["smoke"].distill,
        loss=LossConfig(kl=1.0),
        seeds=(0,),
        evaluations=(0.5, 1.0),
        heldout_per_class=2,
        fit=FitConfig(3, 3, 3, 3, batch_size=8),
    ),
    "quick": ImageNetScale(
        miniature=True,
        student=NATIVE_MNIST,
        distill=replace(_NATIVE_DISTILL, steps=800, texture_steps=1200, texture_learning_rate=8e-3, per_class=500),
        loss=_NATIVE_LOSS,
        seeds=(0, 1, 2),
        evaluations=_FIGURE_15,
        heldout_per_class=50,
        fit=FitConfig(),
    ),
    "full": ImageNetScale(
        miniature=False,
        student=replace(PUBLISHED_IMAGENET, mask_channels=1),
        distill=DistillConfig(
            steps=200_000, batch_size=32, learning_rate=1e-3, betas=(0.0, 0.9), schedule="cosine", ema=0.999
        ),
        loss=LossConfig(lambda_1=1.0, lambda_1_decay=0.0, kl=1.0),
        seeds=(0, 1, 2),
        evaluations=_FIGURE_15,
        heldout_per_class=1,
        fit=FitConfig(),
    ),
    "paper": ImageNetScale(
        miniature=False,
        student=PUBLISHED_IMAGENET,
        distill=DistillConfig(steps=_PAPER_EPOCHS * (1_000_000 // 32), batch_size=32),
        loss=LossConfig(),
        seeds=(0, 1, 2),
        evaluations=_PAPER_EPOCHS,
        heldout_per_class=1,
        fit=FitConfig(),
    ),
}


@dataclass(frozen=True)
class BaselineScale:
    """The sizes of the paper's baseline on ImageNet, a CGN of TinyGANs, at one profile; see `ImageNetScale`."""

    distill: DistillConfig
    """Training of the TinyGAN."""
    loss: LossConfig
    """Its objective, with real images as the original TinyGAN's."""
    training: ReconstructionConfig
    """Training of the CGN."""
    heldout: int
    """Held-out images of both."""
    counterfactuals: int
    """Counterfactuals that are measured."""


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

_PUBLISHED_TINYGAN_STEPS = 18 * (1_000_000 // 16)

BASELINE: dict[Profile, BaselineScale] = {
    "smoke": BaselineScale(
        distill=DistillConfig(steps=6, batch_size=4, per_class=0, discriminator_width=8),
        loss=LossConfig(real=0.2),
        training=replace(_MINIATURE_CGN, steps=4, batch_size=2, accumulate=2),
        heldout=20,
        counterfactuals=20,
    ),
    "quick": BaselineScale(
        distill=DistillConfig(
            steps=800,
            batch_size=16,
            learning_rate=3e-3,
            betas=(0.5, 0.99),
            schedule="cosine",
            per_class=0,
            discriminator_width=16,
        ),
        loss=LossConfig(lambda_1=1.0, lambda_1_decay=0.0, real=0.2),
        training=_MINIATURE_CGN,
        heldout=200,
        counterfactuals=500,
    ),
    "full": BaselineScale(
        distill=DistillConfig(
            steps=200_000, batch_size=32, learning_rate=1e-3, schedule="cosine", ema=0.999, per_class=0
        ),
        loss=LossConfig(lambda_1=1.0, lambda_1_decay=0.0, real=0.2),
        # The authors' 300 updates of 4000 images are few and large: more and smaller ones of as many images in all.
        training=ReconstructionConfig(steps=75_000, batch_size=16, accumulate=25, truncation=0.5),
        heldout=1000,
        counterfactuals=10_000,
    ),
    "paper": BaselineScale(
        distill=DistillConfig(steps=_PUBLISHED_TINYGAN_STEPS, batch_size=16, per_class=0),
        loss=LossConfig(real=0.2),
        training=ReconstructionConfig(truncation=0.5, batch_statistics=True),
        heldout=1000,
        counterfactuals=10_000,
    ),
}


@dataclass(frozen=True)
class ShapeScale:
    """The sizes of the study of the shape mechanism (Table 1), and which readings of it, at one profile."""

    interventions: tuple[Intervention, ...]
    """Modifications of the mask; none is the control."""
    when: tuple[When, ...]
    """When masks are modified: while the CGN is trained (as the released script does), while it is sampled, or both.
    For sampling alone it is the given teacher, not trained any more."""
    init: tuple[Init, ...]
    """What a CGN is trained from: new weights (as the paper), or the teacher's, with a new discriminator."""
    labels: tuple[Labels, ...]
    """Labels of texture and background: permuted, or the digit's own, as the released sampler leaves them."""
    strengths: tuple[float, ...]
    """Transparencies beside the paper's 0.75, with permuted labels: the curve for Sec. 4.4's claim."""
    strengths_when: tuple[When, ...]
    """When those are applied."""
    training: CGNTrainingConfig
    """Training of a CGN from new weights; its intervention and seed are overwritten."""
    finetune: CGNTrainingConfig
    """Training from the teacher's weights, likewise."""
    images: int
    """Counterfactuals of a case."""
    per_mask: int
    """Of one mask."""
    classifier: ClassifierConfig
    """Training of the digit classifier."""
    unpermuted_epochs: int
    """Its epochs where labels are not permuted: colour gives them away, which is soon learnt."""
    two_way_images: int
    """Images of each kind, real and counterfactual, that the two-way classifier learns from."""
    two_way_epochs: int
    """Its epochs."""
    test_images: int | None
    """Images of each test set; all by default."""
    seeds: tuple[int, ...]
    """One CGN and one classifier for each seed and case."""


_MODIFICATIONS: tuple[Intervention, ...] = ("none", "noise", "rotation", "transparency")

SHAPE_STUDY: dict[Profile, ShapeScale] = {
    "smoke": ShapeScale(
        interventions=("none", "noise"),
        when=("sampling", "training"),
        init=("pretrained",),
        labels=("permuted", "unpermuted"),
        strengths=(0.5,),
        strengths_when=("sampling",),
        training=CGNTrainingConfig(steps=4),
        finetune=CGNTrainingConfig(steps=3, texture_warmup=0),
        images=60,
        per_mask=2,
        classifier=ClassifierConfig(epochs=1),
        unpermuted_epochs=1,
        two_way_images=30,
        two_way_epochs=1,
        test_images=50,
        seeds=(0,),
    ),
    "quick": ShapeScale(
        interventions=_MODIFICATIONS,
        when=("sampling", "training"),
        init=("pretrained",),
        labels=("permuted", "unpermuted"),
        strengths=(0.5,),
        strengths_when=("sampling",),
        training=CGNTrainingConfig(steps=3000),
        # Quicker than from new weights, at a high learning rate: far enough to tell what each modification does.
        finetune=CGNTrainingConfig(steps=300, lr=5e-4, texture_warmup=0),
        images=2700,
        per_mask=2,
        classifier=ClassifierConfig(epochs=10, batch_size=32, gamma=0.85),
        unpermuted_epochs=2,
        two_way_images=300,
        two_way_epochs=3,
        test_images=1000,
        seeds=(0, 1, 2),
    ),
    "full": ShapeScale(
        interventions=(*_MODIFICATIONS, "rotation_transparency"),
        when=("sampling", "training", "both"),
        init=("scratch",),
        labels=("permuted", "unpermuted"),
        strengths=(0.25, 0.5, 0.9),
        strengths_when=("sampling", "training", "both"),
        training=CGNTrainingConfig(steps=10_000),
        finetune=CGNTrainingConfig(steps=3000, texture_warmup=0),
        images=20_000,
        per_mask=4,
        classifier=ClassifierConfig(epochs=8),
        unpermuted_epochs=2,
        two_way_images=5000,
        two_way_epochs=3,
        test_images=None,
        seeds=(0, 1, 2),
    ),
    "paper": ShapeScale(
        interventions=(*_MODIFICATIONS, "rotation_transparency"),
        when=("training", "both", "sampling"),
        init=("scratch",),
        labels=("permuted", "unpermuted"),
        strengths=(),
        strengths_when=(),
        training=replace(PUBLISHED, steps=46_000),
        finetune=replace(PUBLISHED, steps=46_000),
        images=100_000,
        per_mask=10,
        classifier=ClassifierConfig(precision="fp32"),
        unpermuted_epochs=10,
        two_way_images=30_000,
        two_way_epochs=10,
        test_images=None,
        seeds=(0, 1, 2),
    ),
}


@dataclass(frozen=True)
class EnsembleScale:
    """The sizes of the invariant ensemble's experiment on ImageNet at one profile; see `ImageNetScale`."""

    training: EnsembleConfig
    """Training of the ensembles."""
    seeds: tuple[int, ...]
    """One ensemble for each seed and source of counterfactuals."""
    evaluations: int
    """Times at which the validation accuracy is measured."""
    images: int = 100
    """Training images of each class, where miniature pictures take ImageNet's place; of the test sets, half as many."""


# A backbone that starts from nothing takes most of its few steps for the counterfactuals: shapes are learnt last.
_MINIATURE_ENSEMBLE = EnsembleConfig(
    backbone="small",
    pretrained=False,
    resolution=32,
    epochs=6,
    batch_size=16,
    counterfactual_ratio=6.0,
    optimizer="adamw",
    learning_rate=1e-2,
    schedule="cosine",
    weight_decay=0.05,
    random_crops=False,
    counterfactuals=3000,
    workers=0,
)

ENSEMBLE: dict[Profile, EnsembleScale] = {
    "smoke": EnsembleScale(
        training=replace(_MINIATURE_ENSEMBLE, epochs=1, counterfactuals=60), seeds=(0,), evaluations=1, images=8
    ),
    "quick": EnsembleScale(training=_MINIATURE_ENSEMBLE, seeds=(0, 1, 2), evaluations=2),
    "full": EnsembleScale(training=EnsembleConfig(), seeds=(0, 1, 2), evaluations=15),
    "paper": EnsembleScale(training=EnsembleConfig(precision="fp32"), seeds=(0, 1, 2), evaluations=45),
}
