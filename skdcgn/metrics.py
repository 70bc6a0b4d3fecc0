"""How good, how big and how fast: fidelity of a student to its teacher, intervals, parameters, MACs, latency."""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.linalg import LinAlgWarning
from scipy.spatial.distance import pdist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from skdcgn.classification import load_feature_network
from skdcgn.mechanisms import Mechanism


def mask_iou(teacher: Tensor, student: Tensor, threshold: float = 0.5) -> float:
    """Mean intersection over union of masks (B, 1, H, W) binarised at `threshold`; two empty masks agree."""
    a, b = teacher > threshold, student > threshold
    intersection = (a & b).sum(dim=(1, 2, 3)).float()
    union = (a | b).sum(dim=(1, 2, 3)).float()
    return torch.where(union > 0, intersection / union.clamp_min(1), 1.0).mean().item()


def nearest_stroke_iou(masks: Tensor, labels: Tensor, strokes: Tensor, stroke_labels: Tensor) -> float:
    """Mean IoU of generated masks with the nearest real stroke of their class: are they digits at all?

    A generated mask has no stroke of its own to be held against. Strokes of held-out digits, put in place of the
    masks, show how much there is to reach.

    Args:
        masks: (N, 1, H, W) in [0, 1], binarised at 0.5.
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

    The energy is the mean square of the discrete Laplacian (each pixel against the mean of its four neighbours, inner
    pixels only): 1 for images as noisy as the teacher's, less for blurred ones, more for noisier ones.
    """
    return _high_pass(student).square().mean().item() / max(_high_pass(teacher).square().mean().item(), 1e-12)


def _high_pass(images: Tensor) -> Tensor:
    inner = images[..., 1:-1, 1:-1]
    vertical, horizontal = images[..., :, 1:-1], images[..., 1:-1, :]
    neighbours = vertical[..., :-2, :] + vertical[..., 2:, :] + horizontal[..., :-2] + horizontal[..., 2:]
    return inner - neighbours / 4


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


def frechet_distance(teacher_features: np.ndarray, student_features: np.ndarray) -> float:
    """Fréchet distance of two sets of features (N, D), by pytorch-fid's formula."""
    from pytorch_fid.fid_score import calculate_frechet_distance  # slow to import

    moments = []
    for features in (teacher_features, student_features):
        moments += [features.mean(axis=0), np.cov(features, rowvar=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, about an argument that pytorch-fid gives
        warnings.simplefilter("ignore", LinAlgWarning)  # few samples have singular covariances: pytorch-fid sees to it
        return float(calculate_frechet_distance(*moments))


@torch.no_grad()
def digit_features(images: Tensor) -> np.ndarray:
    """Features (B, 64) of RGB images (B, 3, 32, 32) by the project's own digit classifier.

    It stands in for Inception, which has nothing to say about 32x32 digits: Fréchet distances on MNIST are
    comparable with each other only.
    """
    network = load_feature_network().to(images.device)
    return torch.cat([network.features(chunk) for chunk in images.split(500)]).cpu().numpy()


@torch.no_grad()
def digit_probabilities(features: np.ndarray) -> np.ndarray:
    """Class probabilities (B, 10) that go with `digit_features`."""
    return load_feature_network().linear(torch.from_numpy(features)).softmax(dim=1).numpy()


def inception_score(probabilities: np.ndarray, splits: int = 10) -> float:
    """Inception score (Salimans et al., 2016): exp of the mean KL(p(y|x) || p(y)), the mean over splits of the images.

    From 1 to the number of classes; high where each image is of a certain class and all classes occur. The images must
    be in random order, or their classes in turns: a split stands for all of them.

    Args:
        probabilities: p(y|x), (N, K), of a classifier; scores of different classifiers are not to be compared.
        splits: parts of equal size that the score is taken of.
    """
    scores = []
    for part in np.array_split(probabilities.astype(np.float64), splits):
        marginal = part.mean(axis=0, keepdims=True)
        divergence = part * (np.log(part + 1e-12) - np.log(marginal + 1e-12))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))


def intra_class_variation(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance of the features (N, D) of two images of one class, the mean over classes.

    Against the teacher's own it tells how many variants of a class a student makes: 0 where they are all alike.

    Args:
        features: (N, D).
        labels: (N,), at least two of each class that occurs.
    """
    return float(np.mean([pdist(features[labels == label]).mean() for label in np.unique(labels)]))


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


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return mean and Student-t interval (standard deviation with ddof = 1) of values over seeds.

    With a single value there is no interval: low and high are NaN.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values to take a mean of")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half), len(values))


def parameters(network: nn.Module) -> int:
    """Count the trainable and frozen parameters of a network (buffers left out)."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(forward: Callable[[], object]) -> int:
    """Count the multiply-accumulates of one call (matrix products and convolutions)."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2


@torch.no_grad()
def peak_megabytes(forward: Callable[[], object]) -> float | None:
    """Return the GPU memory that a call needs at its peak, weights on the GPU included; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    forward()
    return torch.cuda.max_memory_allocated() / 1e6


@torch.no_grad()
def latency_ms(forward: Callable[[], object], repeats: int = 7) -> float:
    """Return the median wall time of a call in milliseconds, after three calls to warm up."""
    times = []
    for repeat in range(repeats + 3):
        start = time.perf_counter()
        forward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if repeat >= 3:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
