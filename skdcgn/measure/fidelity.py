"""Fidelity of a student to its teacher on the same input: masks, pixels, structure, noise."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from skdcgn.mechanisms import Mechanism


def mask_iou(teacher: Tensor, student: Tensor, threshold: float = 0.5) -> float:
    """Mean intersection over union of masks (B, 1, H, W) binarized at `threshold`; two empty masks agree."""
    a, b = teacher > threshold, student > threshold
    intersection = (a & b).sum(dim=(1, 2, 3)).float()
    union = (a | b).sum(dim=(1, 2, 3)).float()
    return torch.where(union > 0, intersection / union.clamp_min(1), 1.0).mean().item()


def nearest_stroke_iou(masks: Tensor, labels: Tensor, strokes: Tensor, stroke_labels: Tensor) -> float:
    """Mean IoU of generated masks with the nearest real stroke of their class: are they digits at all?

    A generated mask has no stroke of its own to compare with. Strokes of held-out digits, put in place of the
    masks, show how much there is to reach.

    Args:
        masks: (N, 1, H, W) in [0, 1], binarized at 0.5.
        labels: (N,).
        strokes: true masks (M, 1, H, W), 0 or 1.
        stroke_labels: (M,), with every class of `labels`.
    """
    nearest = []
    for label in labels.unique():
        a = (masks[labels == label] > 0.5).flatten(1).float()
        b = strokes[stroke_labels == label].flatten(1).float()
        intersection = a @ b.T  # (N_y, M_y)
        union = a.sum(dim=1, keepdim=True) + b.sum(dim=1) - intersection
        nearest.append((intersection / union.clamp_min(1)).amax(dim=1))
    return torch.cat(nearest).mean().item()


def l1(teacher: Tensor, student: Tensor) -> float:
    """Mean absolute difference of images (B, C, H, W) in [-1, 1]."""
    return F.l1_loss(student, teacher).item()


def ssim(teacher: Tensor, student: Tensor) -> float:
    """Mean structural similarity of images (B, C, H, W) in [-1, 1]; 1 for equal ones."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import

    # It takes many times the memory of the images: 85 of 256x256 at a time, and all small ones at once.
    at_once = max(1, (1 << 24) // teacher[0].numel())
    pairs = zip(student.split(at_once), teacher.split(at_once), strict=True)
    values = [structural_similarity_index_measure(s, t, data_range=2.0).item() * len(s) for s, t in pairs]
    return sum(values) / len(teacher)


def noise_energy(teacher: Tensor, student: Tensor) -> float:
    """High-frequency energy of the student's images (B, C, H, W) over that of the teacher's.

    The energy is the mean square of the discrete Laplacian (each pixel against the mean of its four neighbors, inner
    pixels only): 1 for images as noisy as the teacher's, less for blurred ones, more for noisier ones.
    """
    return _high_pass(student).square().mean().item() / max(_high_pass(teacher).square().mean().item(), 1e-12)


def _high_pass(images: Tensor) -> Tensor:
    inner = images[..., 1:-1, 1:-1]
    vertical, horizontal = images[..., :, 1:-1], images[..., 1:-1, :]
    neighbors = vertical[..., :-2, :] + vertical[..., 2:, :] + horizontal[..., :-2] + horizontal[..., 2:]
    return inner - neighbors / 4


def noise_response(teacher: Tensor, student: Tensor, labels: Tensor) -> float:
    """How far the student answers to its noise as the teacher does, label aside: a correlation.

    That of the two deviations from the class means, over all pixels: 1 for equal answers, 0 for a student that ignores
    its noise or makes something unrelated of it. Changes of brightness and contrast that all images share leave it as
    it is.

    Args:
        teacher: (B, C, H, W).
        student: likewise, on the same noise.
        labels: y, (B,), of both.
    """
    a, b = (_within_class(images, labels) for images in (teacher, student))
    norm = (a.norm() * b.norm()).item()
    return (a * b).sum().item() / norm if norm > 0 else 0.0


def _within_class(images: Tensor, labels: Tensor) -> Tensor:
    deviations = images.clone()
    for label in labels.unique():
        deviations[labels == label] -= images[labels == label].mean(dim=0)
    return deviations


def steps_to(history: Sequence[tuple[int, float]], target: float, rising: bool) -> float:
    """Return the step at which a metric first reaches a target, interpolated between evaluations; NaN if it never does.

    Args:
        history: (step, value), in order.
        target: the value to reach.
        rising: whether the metric rises towards it (IoU) or falls (L1).
    """
    sign = 1 if rising else -1
    previous: tuple[int, float] | None = None
    for step, value in history:
        if sign * value >= sign * target:
            if previous is None or value == previous[1]:
                return float(step)
            return previous[0] + (target - previous[1]) / (value - previous[1]) * (step - previous[0])
        previous = (step, value)
    return float("nan")


def fidelity(mechanism: Mechanism, teacher: Tensor, student: Tensor) -> dict[str, float]:
    """Measure how close a student's outputs are to its teacher's on the same input.

    Args:
        mechanism: whose outputs these are.
        teacher: (B, C, H, W), a mask in [0, 1] or images in [-1, 1].
        student: likewise, at the teacher's resolution.

    Returns:
        `l1`, `ssim` and `noise_energy` in the [-1, 1] image space; `iou` for masks.
    """
    measured = {"iou": mask_iou(teacher, student)} if mechanism is Mechanism.SHAPE else {}
    a, b = mechanism.to_image(teacher, mechanism.channels), mechanism.to_image(student, mechanism.channels)
    return measured | {"l1": l1(a, b), "ssim": ssim(a, b), "noise_energy": noise_energy(a, b)}
