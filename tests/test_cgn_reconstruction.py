"""The trainer of ImageNet's CGN: what it moves, with BigGANs and with TinyGANs, and bit-identical continuation."""

import io
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from skdcgn.cgn.baseline import TinyGANImageNetCGN
from skdcgn.cgn.imagenet import MINIATURE, ImageNetCGN
from skdcgn.cgn.losses import CGNLossConfig
from skdcgn.cgn.reconstruction import ReconstructionConfig, ReconstructionTrainer, render_all
from skdcgn.cgn.u2net import SMALL_WIDTHS, U2Net
from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.data import weights
from skdcgn.errors import InputError, Unavailable
from skdcgn.mechanisms import MASK_EPSILON, Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.networks import TinyGANGenerator

CONFIG = ReconstructionConfig(
    steps=4,
    batch_size=2,
    accumulate=2,
    shape_lr=1e-3,
    texture_lr=1e-3,
    background_lr=1e-3,
    perceptual="random",
    precision="fp32",
    loss=CGNLossConfig(patch_side=32, patch_size=5, patch_positions=20, patch_grid=3),
)
TINY = replace(MINIATURE, shape_width=4, texture_width=4)


def tinygans() -> TinyGANImageNetCGN:
    with seeded(0, "tinygans"):
        return TinyGANImageNetCGN.of(TinyGANGenerator(replace(NATIVE_MNIST, width=4)), U2Net(SMALL_WIDTHS))


def biggans() -> ImageNetCGN:
    return ImageNetCGN(TINY, stream(0, "biggans"))


CGNS = {"tinygans": tinygans, "biggans": biggans}


@pytest.fixture(params=CGNS)
def make_cgn(request: pytest.FixtureRequest):
    return CGNS[request.param]


def states(cgn: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in cgn.state_dict().items()}


def first_losses(config: ReconstructionConfig) -> dict[str, float]:
    return next(ReconstructionTrainer(config, tinygans()).fit())[1]


def test_only_the_three_generators_learn(make_cgn) -> None:
    cgn = make_cgn()
    before = states(cgn)
    for _ in ReconstructionTrainer(CONFIG, cgn).fit():
        pass
    moved = {key.split(".")[0] for key, value in states(cgn).items() if not torch.equal(value, before[key])}
    assert moved == {"f_shape", "f_text", "f_bg"}


def test_normalisation_keeps_its_statistics(make_cgn) -> None:
    """BigGAN's table is fixed; TinyGAN's running statistics are too, unless asked otherwise."""
    cgn = make_cgn()
    before = states(cgn)
    for _ in ReconstructionTrainer(CONFIG, cgn).fit():
        pass
    for key, value in states(cgn).items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, before[key]), key


def test_published_baseline_normalises_by_the_batch() -> None:
    cgn = tinygans()
    before = states(cgn)
    trainer = ReconstructionTrainer(replace(CONFIG, batch_statistics=True, batch_size=1), cgn)
    trainer.update(next(trainer.batches()))
    after = states(cgn)
    changed = {key.split(".")[0] for key in after if "running_mean" in key and not torch.equal(after[key], before[key])}
    assert changed == {"f_shape", "f_text", "f_bg"}
    trainer.render(torch.zeros(1, 32), torch.zeros(1, dtype=torch.long))
    assert all(torch.equal(value, after[key]) for key, value in states(cgn).items())


def test_weights_move_once_an_update(make_cgn) -> None:
    cgn = make_cgn()
    trainer = ReconstructionTrainer(replace(CONFIG, steps=6, accumulate=3), cgn)
    parameters = list(trainer.generators[Mechanism.TEXTURE].parameters())
    moved = []
    for _ in range(6):
        before = [parameter.detach().clone() for parameter in parameters]
        trainer.update(next(trainer.batches()))
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)))
    assert moved == [False, False, True] * 2


def test_accumulated_gradient_is_the_mean_over_batches() -> None:
    first, second, both = (ReconstructionTrainer(replace(CONFIG, steps=3, accumulate=n), tinygans()) for n in (1, 1, 3))
    gradients = []
    for trainer, step in ((first, 0), (second, 1)):
        trainer.step = step
        trainer._optimizers = []  # keep the gradients
        trainer.update(next(trainer.batches()))
        gradients.append([parameter.grad for parameter in trainer.generators[Mechanism.SHAPE].parameters()])
    both.update(next(both.batches()))
    both.update(next(both.batches()))
    for a, b, parameter in zip(*gradients, both.generators[Mechanism.SHAPE].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, (a + b) / 3, rtol=1e-3, atol=1e-5)


def test_losses_are_reported_with_their_sum() -> None:
    losses = first_losses(CONFIG)
    terms = {"reconstruction", "perceptual", "texture", "binary", "mask_size", "background"}
    assert set(losses) <= terms | {"total"}
    assert losses["total"] == pytest.approx(sum(value for name, value in losses.items() if name != "total"), rel=1e-5)


@pytest.mark.parametrize(
    ("make_cgn", "stop"),
    [  # between two updates, or within one
        ("tinygans", 2),
        ("tinygans", 3),
        pytest.param("biggans", 3, marks=pytest.mark.slow),
    ],
    indirect=["make_cgn"],
)
def test_continuation_is_bit_identical(make_cgn, stop: int) -> None:
    whole = ReconstructionTrainer(CONFIG, make_cgn())
    expected = dict(whole.fit())

    first = ReconstructionTrainer(CONFIG, make_cgn())
    steps = first.fit()
    seen = dict(next(steps) for _ in range(stop))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)

    second = ReconstructionTrainer(CONFIG, make_cgn())
    second.load_state_dict(torch.load(buffer, weights_only=True))
    seen |= dict(second.fit())
    assert seen == expected
    for key, value in whole.cgn.state_dict().items():
        assert torch.equal(value, second.cgn.state_dict()[key]), key


def test_textures_become_what_their_loss_asks_for() -> None:
    texture_alone = replace(CONFIG.loss, binary=0, mask_size=0, background=0, perceptual_blocks=(0, 0, 0, 0))
    config = replace(CONFIG, steps=20, accumulate=1, texture_lr=1e-2, loss=texture_alone)
    losses = [losses["texture"] for _, losses in ReconstructionTrainer(config, tinygans()).fit()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_everything_comes_from_one_noise_and_label(make_cgn) -> None:
    cgn = make_cgn().eval()
    noise, labels = torch.randn(2, 32, generator=stream(0, "noise")), torch.tensor([1, 7])
    with torch.no_grad():
        rendered = render_all(cgn, noise, labels, 1.0)
        assert torch.equal(rendered.target, cgn.generate("biggan_GT", noise, labels, 1.0))
        assert torch.equal(rendered.mask, cgn(Mechanism.SHAPE, noise, labels, 1.0))
        assert torch.equal(rendered.texture, cgn(Mechanism.TEXTURE, noise, labels, 1.0))
        assert torch.equal(rendered.background, cgn(Mechanism.BACKGROUND, noise, labels, 1.0))
        assert torch.equal(rendered.saliency, cgn.u2net(rendered.background))
    assert rendered.mask.min() >= MASK_EPSILON
    assert rendered.mask.max() <= 1 - MASK_EPSILON


def test_snapshots_do_not_disturb_training() -> None:
    plain, watched = (ReconstructionTrainer(CONFIG, biggans()) for _ in range(2))
    for _ in range(2):
        plain.update(next(plain.batches()))
        watched.render(torch.zeros(1, 32), torch.zeros(1, dtype=torch.long))
        watched.update(next(watched.batches()))
    assert all(torch.equal(a, b) for a, b in zip(states(plain.cgn).values(), states(watched.cgn).values(), strict=True))


def test_missing_vgg16_is_said_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise Unavailable(f"{name} is not at hand.")

    monkeypatch.setattr(weights, "locate", missing)
    with pytest.warns(UserWarning, match="without a perceptual loss"):
        trainer = ReconstructionTrainer(replace(CONFIG, perceptual="vgg16"), tinygans())
    assert trainer.perceptual == "none"
    assert not {"perceptual", "texture"} & set(trainer.update(next(trainer.batches())))


def test_defaults_are_cgns_own() -> None:
    config = ReconstructionConfig()
    assert config.learning_rates == {Mechanism.SHAPE: 8e-6, Mechanism.TEXTURE: 3e-5, Mechanism.BACKGROUND: 1e-5}
    assert (config.batch_size, config.accumulate, config.steps) == (1, 4000, 1_200_000)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"steps": 0}, "steps is 0"), ({"steps": 7}, "multiple of accumulate, 2"), ({"truncation": 0.0}, "truncation")],
)
def test_impossible_trainings_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(CONFIG, **wrong)


def test_bf16_trains_as_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = first_losses(replace(CONFIG, precision="bf16"))
    exact = first_losses(CONFIG)
    assert losses["reconstruction"] == pytest.approx(exact["reconstruction"], rel=0.1, abs=1.0)
