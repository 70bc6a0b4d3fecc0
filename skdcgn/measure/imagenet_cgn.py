"""Measures of ImageNet's CGNs that need no features: how far losses are fulfilled, what counterfactuals look like.

Those that need features are `measure.features.measure_source`'s.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skdcgn.cgn import losses
from skdcgn.cgn.baseline import UnconstrainedTeacher
from skdcgn.cgn.losses import Rendered
from skdcgn.cgn.teachers import images_at_once
from skdcgn.data.labels import evenly_spread_labels
from skdcgn.images import fit_resolution
from skdcgn.measure import fidelity
from skdcgn.mechanisms import Mechanism, Source, compose
from skdcgn.randomness import stream


def measure_losses(rendered: Rendered) -> dict[str, float]:
    """Measure how far a CGN's outputs fulfill what its losses ask for, without their weights."""
    mask = rendered.mask
    return {
        "reconstruction": losses.reconstruction_distance(rendered.image, rendered.target).item(),
        "mask_entropy": losses.binary_entropy(mask).item(),
        "mask_share": mask.mean().item(),
        "background_saliency": losses.background_saliency(rendered.saliency).item(),
    }


def counterfactual_inputs(
    reference: UnconstrainedTeacher, count: int, seed: int = 0
) -> tuple[Tensor, dict[Mechanism, Tensor]]:
    """Draw inputs as CGN does on ImageNet: one noise for all mechanisms, and independent labels.

    Returns:
        Noise (count, noise_dim), and the labels (count,) of each mechanism. On the reference's device.
    """
    generator = stream(seed, "baseline", "counterfactuals")
    noise = reference.sample_noise(count, generator).to(reference.device)
    labels = {Mechanism.SHAPE: evenly_spread_labels(count, reference.num_classes)}
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        labels[mechanism] = torch.randint(reference.num_classes, (count,), generator=generator)
    return noise, {mechanism: y.to(reference.device) for mechanism, y in labels.items()}


def measure_counterfactuals(
    source: Source, reference: UnconstrainedTeacher, count: int, seed: int = 0
) -> dict[str, float]:
    """Measure the counterfactuals of a source by what needs no features; all sources get the same input.

    Args:
        source: a CGN, SKDCGN's students, or the baseline.
        reference: the unconstrained generator, whose images of the same noise and the shape's label are the natural
            ones that counterfactuals are compared with.
        count: counterfactuals.
        seed: of the inputs.

    Returns:
        `mask_share`, mean of the masks; `mask_grey`, share of their values between 0.1 and 0.9; `mask_collapsed`,
        share of masks that leave less than a tenth of the image to object or background; `noise_energy` of the
        images over the reference's (see `fidelity.noise_energy`); and `pixel_variation_<mechanism>`, mean absolute
        difference of two outputs of the same label in [-1, 1].
    """
    noise, labels = counterfactual_inputs(reference, count, seed)
    other_noise = reference.sample_noise(count, stream(seed, "baseline", "variation")).to(reference.device)
    rows, sizes = [], []
    for index in torch.arange(count, device=reference.device).split(images_at_once(reference.resolution)):
        own_labels = {mechanism: y[index] for mechanism, y in labels.items()}
        mask, texture, background = (source.render(m, noise[index], own_labels[m]) for m in Mechanism)
        image = compose(mask, texture, background)
        natural = reference.render(Mechanism.TEXTURE, noise[index], own_labels[Mechanism.SHAPE])
        share = mask.mean(dim=(1, 2, 3))
        row = {
            "mask_share": share.mean().item(),
            "mask_grey": ((mask > 0.1) & (mask < 0.9)).float().mean().item(),
            "mask_collapsed": ((share < 0.1) | (share > 0.9)).float().mean().item(),
            "noise_energy": fidelity.noise_energy(natural, fit_resolution(image, reference.resolution)),
        }
        for mechanism, output in zip(Mechanism, (mask, texture, background), strict=True):
            other = source.render(mechanism, other_noise[index], own_labels[mechanism])
            pair = (mechanism.to_image(each, mechanism.channels) for each in (output, other))
            row[f"pixel_variation_{mechanism}"] = fidelity.l1(*pair)
        rows.append(row)
        sizes.append(len(index))
    return mean_over_chunks(rows, sizes)


def mean_over_chunks(rows: Sequence[Mapping[str, float]], sizes: Sequence[int]) -> dict[str, float]:
    """Return the mean of each metric over chunks of these sizes."""
    return {key: sum(row[key] * n for row, n in zip(rows, sizes, strict=True)) / sum(sizes) for key in rows[0]}
