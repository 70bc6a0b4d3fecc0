"""One batch of counterfactual images from any source: a CGN, or SKDCGN in its place."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skdcgn.mechanisms import Counterfactuals, Intervention, Mechanism, Source, draw_shifts, render_composed


def sample_counterfactuals(
    source: Source,
    labels: Tensor,
    generator: torch.Generator,
    permute: bool = True,
    intervention: Intervention = "none",
    noise: Mapping[Mechanism, Tensor] | None = None,
) -> Counterfactuals:
    """Compose counterfactual images as CGN's MNIST models do, patch shuffle included (Sec. 2 of the paper, Eq. 1).

    Args:
        source: where the mechanisms come from.
        labels: the label of the shape, (B,), on the generator's device.
        generator: source of noise, permutations, patch shuffles and interventions.
        permute: permute the labels over the batch for texture and background. Without it (or with a batch of one)
            they keep the shape's label, and the images are no counterfactuals.
        intervention: applied to the masks (Sec. 4.5).
        noise: use this noise, (B, noise_dim) for each mechanism, instead of fresh draws: to compare two sources on
            the same input.
    """
    batch = len(labels)
    drawn, own_labels, shifts = {}, {}, {}
    for mechanism in Mechanism:
        drawn[mechanism] = source.sample_noise(batch, generator)
        order = torch.randperm(batch, generator=generator, device=labels.device)
        own_labels[mechanism] = labels if mechanism is Mechanism.SHAPE or not permute else labels[order]
        if mechanism is not Mechanism.SHAPE:
            shifts[mechanism] = draw_shifts(batch, source.resolution, generator)
    return render_composed(source, noise or drawn, own_labels, shifts, intervention, generator)
