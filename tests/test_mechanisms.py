"""Composition, interventions and the patch shuffle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skdcgn.mechanisms import MASK_EPSILON, Mechanism, compose, intervene, shuffle_patches
from skdcgn.randomness import stream


@given(seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_composition_lies_between_texture_and_background(seed: int, channels: int) -> None:
    generator = stream(seed, "compose")
    mask = torch.rand(2, channels, 8, 8, generator=generator)
    texture = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    background = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    image = compose(mask, texture, background)
    assert (image <= torch.maximum(texture, background) + 1e-6).all()
    assert (image >= torch.minimum(texture, background) - 1e-6).all()


def test_composition_by_hand() -> None:
    mask = torch.tensor([0.0, 1.0, 0.25]).view(1, 1, 1, 3)
    image = compose(mask, torch.ones(1, 3, 1, 3), -torch.ones(1, 3, 1, 3))
    assert torch.equal(image[0, 0, 0], torch.tensor([-1.0, 1.0, -0.5]))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_shuffled_image_is_a_crop_of_the_tiling(seed: int) -> None:
    generator = stream(seed, "shuffle")
    images = torch.rand(2, 3, 6, 6, generator=generator)
    shuffled = shuffle_patches(images, generator)
    for image, result in zip(images, shuffled, strict=True):
        tiled = image.repeat(1, 2, 2)
        crops = [tiled[:, i : i + 6, j : j + 6] for i in range(6) for j in range(6)]
        assert any(torch.equal(result, crop) for crop in crops)


def test_shuffle_is_seeded_and_differs_between_images() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(16, 3, 8, 8)
    first, again = (shuffle_patches(images, stream(3, "shuffle")) for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple(image.flatten().tolist()) for image in first}) > 8


def test_masks_map_to_grey_images_and_back() -> None:
    mask = torch.rand(2, 1, 4, 4, generator=stream(0, "mask"))
    image = Mechanism.SHAPE.to_image(mask, 3)
    assert image.shape == (2, 3, 4, 4)
    assert image.min() >= -1
    assert torch.allclose(Mechanism.SHAPE.from_image(image), mask)
    texture = torch.rand(2, 3, 4, 4, generator=stream(0, "texture"))
    assert torch.equal(Mechanism.TEXTURE.from_image(Mechanism.TEXTURE.to_image(texture, 3)), texture)


@pytest.mark.parametrize("intervention", ["noise", "rotation", "transparency", "rotation_transparency"])
def test_interventions_stay_in_range_and_change_the_mask(intervention: str) -> None:
    mask = torch.zeros(4, 1, 16, 16)
    mask[:, :, 2:6, 2:12] = 1
    modified = intervene(mask, intervention, stream(0, intervention))
    assert modified.shape == mask.shape
    assert modified.min() >= MASK_EPSILON
    assert modified.max() <= 1 - MASK_EPSILON
    assert not torch.allclose(modified, mask, atol=0.1)
    assert torch.equal(modified, intervene(mask, intervention, stream(0, intervention)))


def test_transparency_scales_and_none_leaves_alone() -> None:
    mask = torch.full((1, 1, 2, 2), 0.8)
    assert torch.allclose(intervene(mask, "transparency"), torch.full((1, 1, 2, 2), 0.6))
    assert intervene(mask, "none") is mask
    with pytest.raises(ValueError, match="unknown intervention"):
        intervene(mask, "blur")


def test_rotation_by_a_full_range_turns_each_mask_its_own_way() -> None:
    mask = torch.zeros(1, 1, 17, 17)
    mask[:, :, 8, 2:15] = 1
    rotated = intervene(mask.expand(6, 1, 17, 17), "rotation", stream(1, "rotation"))
    assert torch.allclose(rotated.sum(dim=(1, 2, 3)), mask.sum(), rtol=0.2)
    assert (rotated[0] - rotated[1]).abs().max() > 0.5


def test_the_published_rotation_run_keeps_the_factor_of_transparency() -> None:
    mask = torch.zeros(3, 1, 9, 9)
    mask[:, :, 2:7, 3:6] = 1
    rotated = intervene(mask, "rotation", stream(2, "rotation"))
    both = intervene(mask, "rotation_transparency", stream(2, "rotation"))
    assert both.max() <= 0.75
    assert torch.allclose(both, (0.75 * rotated).clamp_min(MASK_EPSILON), atol=MASK_EPSILON)
