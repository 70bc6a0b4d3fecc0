"""What the heads of CGN's invariant ensemble look at.

The measures are those of CGN's ImageNet experiments: accuracy on ImageNet-val; on IN-9, accuracy with backgrounds of
the same and of random classes, whose difference is the background gap (BG gap); and on cue-conflict stimuli the shape
bias, the share of shape among the decisions for shape or texture.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from skdcgn.classifiers.ensemble import load_in_order
from skdcgn.classifiers.networks import HEADS, Head, InvariantEnsemble
from skdcgn.configs.classifiers import EnsembleConfig
from skdcgn.data.imagenet import CueConflict, ImageSet, RobustnessSets, center_crop, read_image
from skdcgn.images import to_float
from skdcgn.runtime import autocast


class _Views(Dataset[Tensor]):
    """The test view of every image of a set, (3, side, side) uint8."""

    def __init__(self, images: ImageSet, side: int) -> None:
        self._images, self._side = images, side

    def __getitem__(self, index: int) -> Tensor:
        return center_crop(read_image(self._images.paths[index]), self._side)


@torch.no_grad()
def predict(
    model: InvariantEnsemble, images: ImageSet, config: EnsembleConfig, device: torch.device
) -> Iterator[tuple[slice, dict[Head, Tensor]]]:
    """Classify the test view of every image.

    Yields:
        Which images of the set these are, and their logits (B, num_classes) float32 for each of `HEADS`.
    """
    model.eval()
    start = 0
    for pixels in load_in_order(
        _Views(images, config.resolution), range(len(images)), config.workers, config.batch_size
    ):
        with autocast(device, config.precision):
            logits = model(to_float(pixels.to(device)).contiguous(memory_format=torch.channels_last))
        yield slice(start, start + len(pixels)), {head: values.float().cpu() for head, values in logits.items()}
        start += len(pixels)


def imagenet_accuracy(
    model: InvariantEnsemble, images: ImageSet, config: EnsembleConfig, device: torch.device
) -> dict[str, float]:
    """Return `top1_<head>` and `top5_<head>` on a set with the classifier's own classes, such as ImageNet-val."""
    correct = {f"top{k}_{head}": 0 for head in HEADS for k in (1, 5)}
    for part, logits in predict(model, images, config, device):
        labels = images.labels[part, None]
        for head, values in logits.items():
            hits = values.topk(5, dim=1).indices == labels  # (B, 5)
            correct[f"top1_{head}"] += int(hits[:, 0].sum())
            correct[f"top5_{head}"] += int(hits.sum())
    return {name: count / len(images) for name, count in correct.items()}


def in9_accuracy(
    model: InvariantEnsemble, images: ImageSet, mapping: Tensor, config: EnsembleConfig, device: torch.device
) -> dict[Head, float]:
    """Return each head's accuracy on a variation of IN-9.

    Args:
        model: a classifier of ImageNet's classes.
        images: of one of the nine classes each.
        mapping: see `data.imagenet.in9_map`; a prediction outside the nine classes is wrong.
        config: how images are seen.
        device: where to run.
    """
    correct = dict.fromkeys(HEADS, 0)
    for part, logits in predict(model, images, config, device):
        for head, values in logits.items():
            correct[head] += int((mapping[values.argmax(dim=1)] == images.labels[part]).sum())
    return {head: count / len(images) for head, count in correct.items()}


def measure_in9(
    model: InvariantEnsemble,
    variations: Mapping[str, ImageSet],
    mapping: Tensor,
    config: EnsembleConfig,
    device: torch.device,
) -> dict[str, float]:
    """Return `in9_<variation>_<head>` for each variation, and `bg_gap_<head>`: mixed_same less mixed_rand.

    Args:
        model: a classifier of ImageNet's classes.
        variations: the sets by their names, mixed_same and mixed_rand among them.
        mapping: see `data.imagenet.in9_map`.
        config: how images are seen.
        device: where to run.
    """
    accuracies = {name: in9_accuracy(model, images, mapping, config, device) for name, images in variations.items()}
    measured = {f"in9_{name}_{head}": value for name, heads in accuracies.items() for head, value in heads.items()}
    same, random = accuracies["mixed_same"], accuracies["mixed_rand"]
    return measured | {f"bg_gap_{head}": same[head] - random[head] for head in HEADS}


def category_decisions(logits: Tensor, categories: Sequence[Sequence[int]]) -> Tensor:
    """Decide for a category: that whose classes have the highest mean probability (Geirhos et al., 2019).

    Args:
        logits: (B, num_classes).
        categories: the classes of each category.

    Returns:
        (B,), positions in `categories`.
    """
    probabilities = logits.softmax(dim=1)
    return torch.stack([probabilities[:, list(members)].mean(dim=1) for members in categories], dim=1).argmax(dim=1)


def measure_cue_conflict(
    model: InvariantEnsemble, stimuli: CueConflict, config: EnsembleConfig, device: torch.device
) -> dict[str, float]:
    """Return `shape_bias_<head>`, and `cue_accuracy_<head>`, on stimuli whose shape and texture disagree.

    The shape bias is the share of decisions for the shape among those for the shape or the texture, the cue accuracy is
    the share of these two among all decisions: without it a bias says little. Without any such decision the bias is
    left out.
    """
    shape, texture = dict.fromkeys(HEADS, 0), dict.fromkeys(HEADS, 0)
    for part, logits in predict(model, stimuli, config, device):
        for head, values in logits.items():
            decisions = category_decisions(values, stimuli.categories)
            shape[head] += int((decisions == stimuli.labels[part]).sum())
            texture[head] += int((decisions == stimuli.textures[part]).sum())
    decided = {head: shape[head] + texture[head] for head in HEADS}
    measured = {f"cue_accuracy_{head}": decided[head] / len(stimuli) for head in HEADS}
    return measured | {f"shape_bias_{head}": shape[head] / decided[head] for head in HEADS if decided[head]}


def measure(
    model: InvariantEnsemble, sets: RobustnessSets, config: EnsembleConfig, device: torch.device
) -> dict[str, float]:
    """Return all metrics of `imagenet_accuracy`, `measure_in9` and `measure_cue_conflict`, by their names."""
    return {
        **imagenet_accuracy(model, sets.validation, config, device),
        **measure_in9(model, sets.in9, sets.in9_map, config, device),
        **measure_cue_conflict(model, sets.stimuli, config, device),
    }
