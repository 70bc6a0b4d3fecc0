"""Composition, interventions, the patch shuffle, noise priors, and rendering all of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.errors import InputError
from skdcgn.mechanisms import (
    MASK_EPSILON,
    Mechanism,
    NoisePrior,
    compose,
    draw_shifts,
    intervene,
    render_composed,
    render_finite,
    shift_patches,
    shuffle_patches,
)
from skdcgn.randomness import stream
from skdcgn.tinygan.records import draw_records


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


def test_masks_map_to_gray_images_and_back() -> None:
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


def test_priors_draw_what_their_teachers_do() -> None:
    normal = NoisePrior().sample(6, 5, stream(0, "noise"))
    assert torch.equal(normal, torch.randn(6, 5, generator=stream(0, "noise")))
    truncated = NoisePrior(0.4).sample(6, 5, stream(0, "noise"))
    bounded = torch.nn.init.trunc_normal_(torch.empty(6, 5), a=-2.0, b=2.0, generator=stream(0, "noise"))
    assert torch.equal(truncated, 0.4 * bounded)
    assert truncated.abs().max() <= 0.8


@pytest.mark.parametrize("truncation", [0.0, -1.0, 1.1])
def test_impossible_priors_are_told(truncation: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \(0, 1\]"):
        NoisePrior(truncation)


def test_shifts_drawn_beforehand_shuffle_as_the_shuffle_does() -> None:
    images = torch.rand(5, 3, 8, 8, generator=stream(0, "images"))
    shifted = shift_patches(images, draw_shifts(5, 8, stream(1, "shuffle")))
    assert torch.equal(shifted, shuffle_patches(images, stream(1, "shuffle")))
    assert torch.equal(shift_patches(images, torch.zeros(5, 2, dtype=torch.long)), images)


def test_rendering_composes_what_the_source_renders(random_teacher: MNISTTeacher) -> None:
    labels = {m: torch.arange(4) + offset for offset, m in enumerate(Mechanism)}
    noise = {m: random_teacher.sample_noise(4, stream(0, m)) for m in Mechanism}
    shifts = {Mechanism.TEXTURE: draw_shifts(4, 32, stream(0, "shifts"))}
    mask, texture, background = (random_teacher.render(m, noise[m], labels[m]) for m in Mechanism)
    texture = shift_patches(texture, shifts[Mechanism.TEXTURE])
    modified = intervene(mask, "noise", stream(0, "mask"), 0.5)
    drawn = render_composed(random_teacher, noise, labels, shifts, "noise", stream(0, "mask"), 0.5)
    for left, right in zip(drawn[2:], (modified, texture, background), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(drawn.images, compose(modified, texture, background))
    assert all(torch.equal(drawn.labels[m], labels[m]) for m in Mechanism)
    assert render_composed(random_teacher, noise, labels, resolution=16).images.shape == (4, 3, 16, 16)


def test_a_mask_serves_several_images_in_a_row(random_teacher: MNISTTeacher) -> None:
    counts = {Mechanism.SHAPE: 2, Mechanism.TEXTURE: 6, Mechanism.BACKGROUND: 6}
    noise = {m: random_teacher.sample_noise(count, stream(0, m)) for m, count in counts.items()}
    drawn = render_composed(random_teacher, noise, {m: torch.arange(count) for m, count in counts.items()})
    assert drawn.labels[Mechanism.SHAPE].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(drawn.mask[0], drawn.mask[2])
    assert not torch.equal(drawn.mask[2], drawn.mask[3])
    assert torch.equal(drawn.images, compose(*drawn[2:]))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_teacher_that_returns_no_numbers_is_refused(
    random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """As pixels of 0 to 255 these would be black or white."""
    given = random_teacher.sample_noise(2, stream(0, "noise")), torch.tensor([1, 2])
    sound = random_teacher.render(Mechanism.TEXTURE, *given)
    assert torch.equal(render_finite(random_teacher, Mechanism.TEXTURE, *given), sound)
    sound[1, 0, 0, 0] = wrong
    monkeypatch.setattr(random_teacher, "render", lambda *_: sound)
    with pytest.raises(InputError, match="random CGN returns NaN or infinite values for the texture"):
        draw_records(random_teacher, Mechanism.TEXTURE, given[1], stream(0, "records"))
