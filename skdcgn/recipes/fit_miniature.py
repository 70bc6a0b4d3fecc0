"""How close a fitted miniature of the ImageNet CGN is to the Wildlife-MNIST CGN that it was fitted to."""

import torch

from skdcgn.cgn.imagenet import ImageNetCGN
from skdcgn.cgn.miniature import target
from skdcgn.data.labels import balanced_labels
from skdcgn.measure import fidelity
from skdcgn.mechanisms import Mechanism, NoisePrior, Source
from skdcgn.randomness import stream


@torch.no_grad()
def scores(cgn: ImageNetCGN, teacher: Source, truncation: float, per_class: int, seed: int = 0) -> dict[str, float]:
    """Measure a miniature against what it was fitted to, on noise that no fit saw.

    Args:
        cgn: the miniature, in evaluation mode.
        teacher: the Wildlife-MNIST CGN.
        truncation: of the noise.
        per_class: images of each class.
        seed: of the noise.

    Returns:
        `<part>_l1` of the four generators; `shape_iou` of the miniature's masks, `saliency_iou` of its U²-Net on the
        teacher's own composed images, with the teacher's masks.
    """
    labels = balanced_labels(per_class, teacher.num_classes)
    noise = NoisePrior(truncation).sample(len(labels), teacher.noise_dim, stream(seed, "miniature", "scores"))
    measured = {}
    for part in ("biggan_GT", "f_shape", "f_text", "f_bg"):
        images = cgn.generate(part, noise, labels, truncation)
        measured[f"{part}_l1"] = fidelity.l1(target(teacher, part, noise, labels), images)
    masks = teacher.render(Mechanism.SHAPE, noise, labels)
    measured["shape_iou"] = fidelity.mask_iou(masks, cgn(Mechanism.SHAPE, noise, labels, truncation))
    measured["saliency_iou"] = fidelity.mask_iou(masks, cgn.u2net(target(teacher, "biggan_GT", noise, labels)))
    return measured
