"""The losses of SKDCGN: Eq. 2-8 of the paper and the variants of its Appendix D, as pure functions.

T is the teacher's image, S the student's, D_i the i-th activation of the student's discriminator. Images are in
[-1, 1]. `LossConfig` holds the weights, with the paper's names. A term enters the objective, and the log, through
one dict only: `generator_terms` and `discriminator_terms` return weighted terms whose sum is the loss.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from skdcgn.configs.tinygan import FeatureDistance, LossConfig

_PROBABILITY_EPSILON = 1e-4

Distance = Callable[[Tensor, Tensor, float], Tensor]
"""Of a teacher's and a student's tensor, at a temperature."""


def channel_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax_c(teacher) || softmax_c(student)) over channels of (B, C, ...), mean over batch and positions."""
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def image_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 6 with the images themselves as P and Q: softmax over all values of an image (B, C, H, W), mean over B."""
    return channel_kl(teacher.flatten(1), student.flatten(1), temperature)


def pixel_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 6 with each value as a Bernoulli probability (x + 1) / 2, mean over all values of (B, C, H, W).

    A Bernoulli probability has no softmax, so that the temperature changes nothing.
    """
    p = ((teacher + 1) / 2).clamp(_PROBABILITY_EPSILON, 1 - _PROBABILITY_EPSILON)
    q = ((student + 1) / 2).clamp(_PROBABILITY_EPSILON, 1 - _PROBABILITY_EPSILON)
    return (p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())).mean()


FEATURE_DISTANCES: Mapping[str, Distance] = {
    "l1": lambda teacher, student, temperature: F.l1_loss(student, teacher),  # Eq. 5
    "kl": channel_kl,  # Appendix D.1
    "mse": lambda teacher, student, temperature: F.mse_loss(student, teacher),  # Appendix D.3
}
"""Distances of two activations (B, C, H, W), for Eq. 5."""

KL_DIVERGENCES: Mapping[str, Distance] = {"pixels": pixel_kl, "image": image_kl, "activations": channel_kl}
"""Forms of Eq. 6: between images, or for "activations" between the last ones of the discriminator."""


def pixel_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """L_KD_pix, Eq. 2: mean L1 distance of two batches of images (B, C, H, W)."""
    return F.l1_loss(student, teacher)


def adversarial_student(student_scores: Tensor) -> Tensor:
    """L_KD_S, Eq. 3: minus the mean score (B,) of the student's images."""
    return -student_scores.mean()


def adversarial_discriminator(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """L_KD_D, Eq. 4: hinge loss of the discriminator on scores (B,).

    The paper prints a leading minus and max(0, 1 - D) for both kinds of image, which would reward errors. This is
    the standard hinge, as the published code has it: 1 - D for the teacher's images, 1 + D for the student's.
    """
    return F.relu(1 - teacher_scores).mean() + F.relu(1 + student_scores).mean()


def feature_distance(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    alphas: Sequence[float],
    distance: FeatureDistance = "l1",
    temperature: float = 1.0,
) -> Tensor:
    """L_KD_feat, Eq. 5: weighted sum over levels of the distance between discriminator activations.

    Args:
        teacher: D_i(T), each (B, C_i, H_i, W_i), first to last level.
        student: D_i(S), likewise.
        alphas: alpha_i; the last `len(teacher)` of them are used.
        distance: a key of `FEATURE_DISTANCES`.
        temperature: of the softmax of "kl".

    Raises:
        ValueError: there are more levels than alphas.
    """
    if len(alphas) < len(teacher):
        raise ValueError(f"{len(teacher)} discriminator levels need as many alphas, got {len(alphas)}")
    levels = zip(alphas[-len(teacher) :], teacher, student, strict=True)
    return sum(alpha * FEATURE_DISTANCES[distance](t, s, temperature) for alpha, t, s in levels)


def generator_terms(
    teacher: Tensor,
    student: Tensor,
    teacher_activations: Sequence[Tensor],
    student_activations: Sequence[Tensor],
    student_scores: Tensor | None,
    config: LossConfig,
    epoch: int,
    adversarial: bool,
    scores_beside_real: Tensor | None = None,
) -> dict[str, Tensor]:
    """L_S, Eq. 7, as weighted terms: the student minimizes their sum.

    Args:
        teacher: T(z, y), (B, C, H, W).
        student: S(z, y), likewise.
        teacher_activations: D_i(T); empty without a discriminator.
        student_activations: D_i(S); empty without a discriminator.
        student_scores: D(S), (B,), or None without a discriminator.
        config: the weights.
        epoch: from 0, for the decay of lambda_1.
        adversarial: whether this step is one with the adversarial terms (see `LossConfig.n_critic`).
        scores_beside_real: D(S), (B,), of the images that the student draws for the labels of real ones; needed
            where `config.real` has a weight and the step is adversarial.
    """
    terms = {}
    if config.feature:
        activations = teacher_activations, student_activations
        distance = feature_distance(*activations, config.alphas, config.feature_distance, config.temperature)
        terms["feature"] = config.feature * distance
    if config.lambda_1:
        terms["pixel"] = config.lambda_1_at(epoch) * pixel_distance(teacher, student)
    if config.lambda_2 and adversarial:
        terms["adversarial"] = config.lambda_2 * adversarial_student(student_scores)
    if config.lambda_2 and config.real and adversarial:
        terms["adversarial_real"] = config.real * config.lambda_2 * adversarial_student(scores_beside_real)
    if config.kl:
        compared = teacher, student
        if config.kl_on == "activations":
            compared = teacher_activations[-1], student_activations[-1]
        if config.kl_direction == "student_teacher":
            compared = compared[::-1]
        terms["kl"] = config.kl * KL_DIVERGENCES[config.kl_on](*compared, config.temperature)
    if config.cross_entropy:
        target = torch.ones_like(student_scores)
        terms["cross_entropy"] = config.cross_entropy * F.binary_cross_entropy_with_logits(student_scores, target)
    return terms


def discriminator_terms(
    teacher_scores: Tensor,
    student_scores: Tensor,
    config: LossConfig,
    real_scores: Tensor | None = None,
    scores_beside_real: Tensor | None = None,
) -> dict[str, Tensor]:
    """L_D, Eq. 8, as weighted terms: the discriminator minimizes their sum.

    The cross entropy run of Appendix D adds a term on the student's images with target 0, the original TinyGAN one
    on real images.

    Args:
        teacher_scores: D(T), (B,).
        student_scores: D(S), (B,).
        config: the weights.
        real_scores: D of real images, (B,), needed where `config.real` has a weight.
        scores_beside_real: D(S), (B,), of the images that the student draws for the labels of the real ones; likewise.
    """
    terms = {"discriminator": adversarial_discriminator(teacher_scores, student_scores)}
    if config.cross_entropy:
        target = torch.zeros_like(student_scores)
        cross_entropy = F.binary_cross_entropy_with_logits(student_scores, target)
        terms["discriminator_cross_entropy"] = config.cross_entropy * cross_entropy
    if config.real:
        terms["discriminator_real"] = config.real * adversarial_discriminator(real_scores, scores_beside_real)
    return terms
