"""Counterfactual images from any source, in batches or as whole data sets: a CGN teacher, or SKDCGN in its place.

    python -m skdcgn counterfactuals --source cgn:double_colored --n 10000 --out counterfactuals
    python -m skdcgn counterfactuals --source runs:/<id of a run of mnist_kd> --n 100000 --out students --format shards

writes one to a folder: PNG images (or safetensors shards), `index.csv` (and `index.parquet`) with the label of each
mechanism for every image, and `set.json`, which says what it is. `skdcgn.sources` tells what can be a source. A
command that was interrupted goes on where it stopped.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skdcgn.mechanisms import Intervention, Mechanism, Source, compose, intervene, shuffle_patches


class Counterfactuals(NamedTuple):
    """A batch of composed images and everything they were composed of."""

    images: Tensor
    """x_gen, (B, 3, H, W) in [-1, 1]."""
    labels: dict[Mechanism, Tensor]
    """The label of each mechanism, (B,) each; the shape's is the label of the image."""
    mask: Tensor
    """m, (B, 1, H, W) in [0, 1], after the intervention."""
    texture: Tensor
    """f, (B, 3, H, W) in [-1, 1]."""
    background: Tensor
    """b, (B, 3, H, W) in [-1, 1]."""


def sample_counterfactuals(
    source: Source,
    labels: Tensor,
    generator: torch.Generator,
    permute: bool = True,
    intervention: Intervention = "none",
    noise: dict[Mechanism, Tensor] | None = None,
) -> Counterfactuals:
    """Compose counterfactual images (Sec. 2 of the paper, Eq. 1).

    Args:
        source: where the mechanisms come from.
        labels: the label of the shape, (B,).
        generator: source of noise, permutations, patch shuffles and interventions.
        permute: permute the labels over the batch for texture and background. Without it (or with a batch of one)
            they keep the shape's label, and the images are no counterfactuals.
        intervention: applied to the masks (Sec. 4.5).
        noise: use this noise, (B, noise_dim) for each mechanism, instead of fresh draws: to compare two sources on
            the same input.
    """
    batch, device = len(labels), labels.device
    mechanism_labels, outputs = {}, {}
    for mechanism in Mechanism:
        drawn = source.sample_noise(batch, generator)
        z = drawn if noise is None else noise[mechanism]
        order = torch.randperm(batch, generator=generator, device=device)
        y = labels if mechanism is Mechanism.SHAPE or not permute else labels[order]
        output = source.render(mechanism, z, y)
        if mechanism is not Mechanism.SHAPE:
            output = shuffle_patches(output, generator)
        mechanism_labels[mechanism], outputs[mechanism] = y, output
    mask = intervene(outputs[Mechanism.SHAPE], intervention, generator)
    texture, background = outputs[Mechanism.TEXTURE], outputs[Mechanism.BACKGROUND]
    return Counterfactuals(compose(mask, texture, background), mechanism_labels, mask, texture, background)
