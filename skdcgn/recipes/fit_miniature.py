"""The miniature ImageNet CGN, fitted by regression to the CGN for Wildlife MNIST.

It has the classes of the real one (BigGAN-deep four times, and a U²-Net) at 32x32 with ten labels, so that every
ImageNet script runs on pictures that mean something where the authors' weights are not at hand. Each of its
generators learns to draw, from the same noise and label, what a part of the Wildlife-MNIST CGN draws:

    f_text, f_bg   the texture and the background
    biggan_GT      the composed image (Eq. 1)
    f_shape        the mask, as a grey picture
    u2net          the mask, from composed images and from the pictures of f_shape and biggan_GT; from plain
                   backgrounds, that there is nothing
"""

import torch

from skdcgn.cgn.imagenet import ImageNetCGN, truncated_noise
from skdcgn.cgn.miniature import target
from skdcgn.data.labels import balanced_labels
from skdcgn.measure import fidelity
from skdcgn.mechanisms import Mechanism, Source
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
    noise = truncated_noise(len(labels), teacher.noise_dim, truncation, stream(seed, "miniature", "scores"))
    measured = {}
    for part in ("biggan_GT", "f_shape", "f_text", "f_bg"):
        images = cgn.generate(part, noise, labels, truncation)
        measured[f"{part}_l1"] = fidelity.l1(target(teacher, part, noise, labels), images)
    masks = teacher.render(Mechanism.SHAPE, noise, labels)
    measured["shape_iou"] = fidelity.mask_iou(masks, cgn(Mechanism.SHAPE, noise, labels, truncation))
    measured["saliency_iou"] = fidelity.mask_iou(masks, cgn.u2net(target(teacher, "biggan_GT", noise, labels)))
    return measured
