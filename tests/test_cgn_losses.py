"""CGN's losses against values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skdcgn.cgn import losses
from skdcgn.cgn.losses import CGNLossConfig, Rendered, StyleFeatures, cgn_terms, gram_matrix, style_distance
from skdcgn.errors import InputError
from skdcgn.randomness import seeded, stream

SMALL = CGNLossConfig(patch_side=16, patch_size=3, patch_positions=5, patch_grid=2)


def rendered(size: int = 16) -> Rendered:
    """Outputs of every kind, with gradients."""
    generator = stream(0, "rendered")
    pictures = [torch.rand(2, 3, size, size, generator=generator) * 1.8 - 0.9 for _ in range(4)]
    masks = [torch.rand(2, 1, size, size, generator=generator) * 0.05 + 0.02 for _ in range(2)]
    outputs = [each.requires_grad_() for each in (*pictures, *masks)]
    target, premask, texture, background, mask, saliency = outputs
    return Rendered(target, premask, mask, texture, background, saliency)


@pytest.fixture(scope="module")
def features() -> StyleFeatures:
    with seeded(0, "features"):
        return StyleFeatures.random()


def test_composition_is_equation_1() -> None:
    ones = torch.ones(1, 3, 1, 1)
    outputs = Rendered(ones, ones, torch.full((1, 1, 1, 1), 0.25), 0.8 * ones, -0.4 * ones, torch.zeros(1, 1, 1, 1))
    assert torch.allclose(outputs.image, (0.25 * 0.8 - 0.75 * 0.4) * ones)


def test_reconstruction_is_the_mean_absolute_difference() -> None:
    image = torch.tensor([0.5, -1.0, 0.0]).view(1, 3, 1, 1)
    target = torch.tensor([0.0, 1.0, 0.25]).view(1, 3, 1, 1)
    assert losses.reconstruction_distance(image, target).item() == pytest.approx((0.5 + 2 + 0.25) / 3)


def test_binary_entropy_is_in_bits() -> None:
    entropy = [losses.binary_entropy(torch.full((1, 1, 2, 2), p)).item() for p in (0.5, 0.25, 0.0001)]
    assert entropy[0] == pytest.approx(1.0)
    assert entropy[1] == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))
    assert entropy[2] == pytest.approx(0.0001 * math.log2(10_000) + 0.9999 * math.log2(1 / 0.9999), rel=1e-3)


def test_mask_size_hinge_leaves_the_interval_alone() -> None:
    masks = torch.tensor([0.02, 0.1, 0.5, 0.9, 0.96]).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    by_hand = [0.08, 0, 0, 0, 0.06]
    for mask, expected in zip(masks.split(1), by_hand, strict=True):
        assert losses.mask_size_hinge(mask).item() == pytest.approx(expected, abs=1e-6)
    assert losses.mask_size_hinge(masks).item() == pytest.approx(sum(by_hand) / 5, abs=1e-6)
    # It looks at each image's share, not at the batch's: one full and one empty mask are both wrong.
    full_and_empty = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)])
    assert losses.mask_size_hinge(full_and_empty, 0.2, 0.7).item() == pytest.approx((0.2 + 0.3) / 2)


def test_background_saliency_is_a_mean() -> None:
    saliency = torch.tensor([[0.0, 1.0], [0.5, 0.1]]).view(1, 1, 2, 2)
    assert losses.background_saliency(saliency).item() == pytest.approx(0.4)


def test_gram_matrix_by_hand() -> None:
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # (1, 2, 1, 2)
    assert torch.equal(gram_matrix(activations), torch.tensor([[[5.0, 11.0], [11.0, 25.0]]]) / 4)


def test_style_distance_by_hand() -> None:
    one = [torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 1)]  # Gram matrices 1 and 1
    two = [2 * torch.ones(1, 1, 1, 2), 3 * torch.ones(1, 1, 1, 1)]  # 4 and 9
    assert style_distance(two, one, (4.0, 5.0)).item() == pytest.approx(5000 * (16 * 3 + 25 * 8))
    assert style_distance(two, one, (0.0, 5.0)).item() == pytest.approx(5000 * 25 * 8)


def test_patches_come_from_where_the_mask_is() -> None:
    """The object is the lower right quarter, and shows where each of its pixels lies."""
    place = torch.arange(64.0).view(8, 8).expand(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[:, :, 4:, 4:] = 1
    config = CGNLossConfig(patch_side=8, patch_size=2, patch_positions=9, patch_grid=4)
    patches = losses.texture_patches(place, mask, stream(0, "patches"), config)
    assert patches.shape == (1, 3, 8, 8)
    corners = {8 * row + column for row in range(4, 7) for column in range(4, 7)}  # of 2x2 patches within the object
    seen = set()
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            patch = patches[0, 0, row : row + 2, column : column + 2]
            corner = round(patch[0, 0].item())
            assert torch.allclose(patch, corner + torch.tensor([[0.0, 1.0], [8.0, 9.0]]), atol=1e-4)
            seen.add(corner)
    assert seen <= corners
    assert len(seen) > 4


def test_patches_are_each_images_own_and_repeatable() -> None:
    image = torch.stack([torch.full((3, 20, 20), value) for value in (-0.5, 0.5)])
    mask = torch.rand(2, 1, 20, 20, generator=stream(0, "mask"))
    patches = losses.texture_patches(image, mask, stream(1, "patches"), CGNLossConfig())
    assert torch.allclose(patches, image, atol=1e-5)
    varied = torch.rand(2, 3, 20, 20, generator=stream(2, "image"))
    first, second, other = (
        losses.texture_patches(varied, mask, stream(seed, "patches"), CGNLossConfig()) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_terms_are_the_weighted_losses(features: StyleFeatures) -> None:
    outputs = rendered()
    terms = cgn_terms(outputs, features, SMALL, stream(0, "patches"))
    assert list(terms) == ["reconstruction", "perceptual", "texture", "binary", "mask_size", "background"]
    assert terms["reconstruction"].item() == pytest.approx(100 * F.l1_loss(outputs.image, outputs.target).item())
    assert terms["binary"].item() == pytest.approx(300 * losses.binary_entropy(outputs.mask).item())
    assert terms["mask_size"].item() == pytest.approx(500 * (0.1 - outputs.mask.mean(dim=(1, 2, 3))).mean().item())
    assert terms["background"].item() == pytest.approx(2000 * outputs.saliency.mean().item())
    perceptual = style_distance(features(outputs.image), features(outputs.target), (4.0, 4.0, 4.0, 4.0))
    assert terms["perceptual"].item() == pytest.approx(perceptual.item(), rel=1e-4)
    patches = losses.texture_patches(outputs.target, outputs.mask, stream(0, "patches"), SMALL)
    texture = style_distance(features(outputs.texture), features(patches), (0.0, 5.0, 5.0, 0.0))
    assert terms["texture"].item() == pytest.approx(texture.item(), rel=1e-4)


def gradients(config: CGNLossConfig, features: StyleFeatures | None) -> list[Tensor | None]:
    outputs = rendered()
    sum(cgn_terms(outputs, features, config, stream(0, "patches")).values()).backward()
    return [output.grad for output in outputs]


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"reconstruction": 50.0}, {"mask", "texture", "background"}),
        ({"perceptual_blocks": (1.0, 1.0, 1.0, 1.0)}, {"mask", "texture", "background"}),
        ({"texture_blocks": (0.0, 1.0, 1.0, 0.0)}, {"texture"}),
        ({"binary": 30.0}, {"mask"}),
        ({"mask_size": 50.0}, {"mask"}),
        ({"background": 200.0}, {"saliency"}),
    ],
)
def test_each_weight_moves_what_it_is_about(changes: dict, moved: set[str], features: StyleFeatures) -> None:
    before, after = gradients(SMALL, features), gradients(replace(SMALL, **changes), features)
    assert before[Rendered._fields.index("target")] is None  # the frozen generator's
    for name, old, new in zip(Rendered._fields, before, after, strict=True):
        if old is not None:
            assert torch.allclose(old, new, rtol=1e-3, atol=1e-7) == (name not in moved), name


def test_terms_without_weight_or_features_are_left_out(features: StyleFeatures) -> None:
    alone = replace(SMALL, binary=0, mask_size=0, background=0, perceptual_blocks=(0, 0, 0, 0))
    assert set(cgn_terms(rendered(), features, alone, stream(0, "patches"))) == {"reconstruction", "texture"}
    assert set(cgn_terms(rendered(), None, alone, stream(0, "patches"))) == {"reconstruction"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mask_interval": (0.9, 0.1)}, "mask_interval"),
        ({"patch_size": 200}, "give at most 0"),
        ({"patch_positions": 0}, "patch_positions"),
        ({"binary": -1.0}, "binary is -1.0"),
        ({"reconstruction": 0.0, "binary": 0.0, "mask_size": 0.0, "background": 0.0}, "nothing to learn from"),
    ],
)
def test_impossible_losses_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        CGNLossConfig(**wrong)
