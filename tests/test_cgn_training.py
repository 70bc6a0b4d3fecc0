"""The adversarial CGN trainer: objective, interventions, resume, and the exact rewrite of the upsampling."""

import copy
import dataclasses
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from skdcgn.cgn import losses as cgn_losses
from skdcgn.cgn.adversarial import PUBLISHED, CGNTrainer, CGNTrainingConfig
from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.cgn.losses import StyleFeatures
from skdcgn.cgn.mnist import CGN, UpsampledConv2d
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.commands import train_cgn
from skdcgn.data import weights
from skdcgn.data.mnist import TensorSet, make_dataset
from skdcgn.errors import InputError, Unavailable
from skdcgn.files import load_checkpoint, save_checkpoint
from skdcgn.mechanisms import Mechanism, compose
from skdcgn.randomness import seeded
from skdcgn.tinygan.networks import TinyGANConfig

TINY = CGNTrainingConfig(steps=6, batch_size=4, texture_every=2, texture_warmup=2, perceptual="random")
GENERATOR_WEIGHTS = {name: name for name in ("adversarial", "binary", "frame", "style")} | {"color": "colour"}
"""The name of each weight in the config, and of its loss."""


@pytest.fixture(scope="module")
def digits() -> TensorSet:
    return make_dataset("digits", "train", seed=0, limit=200)


def batch(data: TensorSet, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return data.images(slice(size)), data.labels[:size]


def states_equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(states_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(states_equal, first, second))
    return first == second


@pytest.mark.parametrize(("inputs", "outputs", "side"), [(64, 32, 8), (32, 1, 16), (3, 5, 7)])
def test_upsampled_convolution_is_exact(inputs: int, outputs: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = UpsampledConv2d(inputs, outputs).double()
    x = torch.randn(2, inputs, side, side + 1, generator=generator, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, padding=1)
    torch.testing.assert_close(layer(x), expected)
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), layer.weight, cotangent),
        torch.autograd.grad(expected, layer.weight, cotangent),
    )


def test_bounds_survive_low_precision() -> None:
    cgn, labels = CGN(), torch.arange(10)
    noise = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = cgn(Mechanism.SHAPE, noise, labels)
    assert mask.dtype == torch.float32
    assert mask.min() > 0
    assert mask.max() < 1


def after_two_updates(config: CGNTrainingConfig, data: TensorSet) -> tuple[torch.Tensor, dict[str, float]]:
    """The shape net's first weights and the losses. Adam's first step hardly depends on a gradient's size."""
    trainer = CGNTrainer(config, data)
    trainer.update(batch(data))
    losses = trainer.update(batch(data))
    return trainer.cgn.f_shape[0].weight.detach(), losses


@pytest.mark.parametrize("name", GENERATOR_WEIGHTS)
def test_each_weight_changes_the_gradient(name: str, digits: TensorSet) -> None:
    weights_as_is, losses = after_two_updates(TINY, digits)
    assert losses[GENERATOR_WEIGHTS[name]] > 0
    for factor in (0.0, 2.0):
        changed = dataclasses.replace(TINY, **{name: factor * getattr(TINY, name)})
        changed_weights, changed_losses = after_two_updates(changed, digits)
        assert not torch.equal(changed_weights, weights_as_is)
        assert (GENERATOR_WEIGHTS[name] in changed_losses) == (factor > 0)


def test_losses_scale_with_their_weights(digits: TensorSet) -> None:
    terms = CGNTrainer(TINY, digits).update(batch(digits))
    doubled = CGNTrainer(dataclasses.replace(TINY, binary=2 * TINY.binary), digits).update(batch(digits))
    assert doubled["binary"] == pytest.approx(2 * terms["binary"])
    assert terms.keys() == {*GENERATOR_WEIGHTS.values(), "discriminator_real", "discriminator_generated"}


@pytest.mark.parametrize("variant", [{}, {"discriminator": "conv", "paired_labels": False, "intervention": "noise"}])
def test_resumed_training_is_bit_identical(variant: dict, digits: TensorSet, tmp_path) -> None:
    config = dataclasses.replace(TINY, **variant)
    unbroken = CGNTrainer(config, digits)
    log = list(unbroken.fit())

    broken = CGNTrainer(config, digits)
    first = [next(fit) for fit in [broken.fit()] for _ in range(3)]
    save_checkpoint(tmp_path / "checkpoint.pt", broken.state_dict())
    torch.manual_seed(1)  # nothing may hang on the global state
    resumed = CGNTrainer(config, digits)
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert first + list(resumed.fit()) == log
    assert states_equal(resumed.state_dict(), unbroken.state_dict())


def test_global_random_state_is_left_alone(digits: TensorSet) -> None:
    before = torch.get_rng_state()
    CGNTrainer(TINY, digits).update(batch(digits))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("intervention", ["noise", "rotation", "transparency"])
def test_intervention_reaches_the_composite(intervention: str, digits: TensorSet) -> None:
    plain = CGNTrainer(TINY, digits)
    modified = CGNTrainer(dataclasses.replace(TINY, intervention=intervention), digits)
    labels = digits.labels[:4]
    mask, image = plain._generate(labels)
    same_mask, other_image = modified._generate(labels)
    assert torch.equal(mask, same_mask)
    assert not torch.allclose(image, other_image, atol=0.05)
    plain.update(batch(digits))
    modified.update(batch(digits))
    assert not torch.equal(plain.cgn.f_shape[0].weight, modified.cgn.f_shape[0].weight)


def test_transparency_mixes_the_background_in(digits: TensorSet) -> None:
    """Half-transparent masks are the mean of plain composition and background (Eq. 1)."""
    labels = digits.labels[:4]
    config = dataclasses.replace(TINY, intervention="transparency")
    images = {
        strength: CGNTrainer(dataclasses.replace(config, intervention_strength=strength), digits)._generate(labels)[1]
        for strength in (0.0, 0.5, 1.0)
    }
    torch.testing.assert_close(images[0.5], compose(torch.tensor(0.5), images[1.0], images[0.0]), atol=1e-3, rtol=0)


def test_textures_come_from_the_bank_between_their_steps(digits: TensorSet) -> None:
    trainer = CGNTrainer(dataclasses.replace(TINY, texture_every=3, texture_warmup=1), digits)
    changed = []
    for _ in range(5):
        before = copy.deepcopy(trainer.cgn.f_text1.state_dict())
        trainer.update(batch(digits))
        changed.append(not states_equal(before, trainer.cgn.f_text1.state_dict()))
    assert changed == [True, False, False, True, False]


def test_starts_from_a_given_cgn_without_touching_it(digits: TensorSet) -> None:
    cgn = CGN()
    original = copy.deepcopy(cgn.state_dict())
    trainer = CGNTrainer(TINY, digits, cgn)
    assert states_equal(trainer.result.state_dict(), original)
    trainer.update(batch(digits))
    assert states_equal(cgn.state_dict(), original)
    assert not states_equal(trainer.cgn.state_dict(), original)
    assert not states_equal(trainer.result.state_dict(), original)


def test_learning_rate_falls_after_a_fraction_of_the_steps(digits: TensorSet) -> None:
    for decay_from, factors in ((0.5, [1, 1, 1, 2 / 3, 1 / 3, 0]), (1.0, [1] * 6)):
        trainer = CGNTrainer(dataclasses.replace(TINY, decay_from=decay_from), digits)
        rates = [trainer._optimizer.param_groups[0]["lr"] for _ in trainer.fit()]  # of the next step
        assert rates == pytest.approx([TINY.lr * factor for factor in factors])
    assert PUBLISHED.decay_from == 1


def test_missing_vgg16_is_said(digits: TensorSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        raise Unavailable(f"{name} is not at hand.")

    monkeypatch.setattr(weights, "locate", nowhere)
    with pytest.warns(UserWarning, match="without a perceptual loss: vgg16 is not at hand"):
        trainer = CGNTrainer(dataclasses.replace(TINY, perceptual="vgg16"), digits)
    assert trainer.perceptual == "none"
    assert "style" not in trainer.update(batch(digits))


def test_weights_of_another_network_than_vgg16_are_told(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    with pytest.raises(InputError, match=r"vgg16\.pth holds no weights of VGG16"):
        StyleFeatures.vgg16(tmp_path / "vgg16.pth")


def test_vgg16_is_read_from_torchvisions_file(digits: TensorSet, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from torchvision.models import vgg

    layers = vgg.make_layers(vgg.cfgs["D"])
    torch.save({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}, tmp_path / "vgg16.pth")
    monkeypatch.setattr(weights, "locate", lambda name: tmp_path / "vgg16.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = CGNTrainer(dataclasses.replace(TINY, perceptual="vgg16"), digits)
    assert trainer.perceptual == "vgg16"
    blocks = trainer._style(digits.images(slice(2)))
    assert [tuple(block.shape[1:]) for block in blocks] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert trainer.update(batch(digits))["style"] > 0


def test_mask_losses_by_hand() -> None:
    assert PUBLISHED.binary * math.log(2) == pytest.approx(0.3)  # the authors' weight is for an entropy in bits
    framed = torch.ones(2, 1, 6, 6)
    framed[:, :, 1:-1, 1:-1] = 0
    assert cgn_losses.mask_on_frame(framed, width=1) == 1
    assert cgn_losses.mask_on_frame(framed, width=2) == pytest.approx(20 / 32)
    assert cgn_losses.mask_on_frame(1 - framed, width=1) == 0


def test_color_distance_sees_amounts_and_not_places() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    assert cgn_losses.color_distance(images, images.roll(3, dims=3)) == 0
    assert cgn_losses.color_distance(images, images + 0.25) == pytest.approx(0.25)
    inverted = images.clone()
    inverted[:] = images.amax(dim=(2, 3), keepdim=True)
    assert cgn_losses.color_distance(images, inverted) > 0.3


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 1}, {"ema": 1.0}, {"texture_every": 0}, {"decay_from": 2.0}]
)
def test_bad_configs_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        CGNTrainingConfig(**wrong)


def test_data_that_do_not_fit_are_refused(digits: TensorSet) -> None:
    with pytest.raises(InputError, match="labels below 5"):
        CGNTrainer(TINY, digits, CGN(num_classes=5))
    with pytest.raises(InputError, match="data set of none"):
        CGNTrainer(TINY, TensorSet(digits.pixels[:0], digits.labels[:0], digits.strokes[:0]))


def test_command_writes_a_teacher(tmp_path) -> None:
    path = tmp_path / "cgn.safetensors"
    config = dataclasses.replace(TINY, perceptual="none")
    classifier = ClassifierConfig(epochs=1)
    train_cgn.main(train_cgn.Config(path, "digits", training=config, counterfactuals=100, classifier=classifier))
    CGN().load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["dataset"] == "digits"
    assert metadata["perceptual"] == "none"
    assert '"steps": 6' in metadata["training"]
    scores = json.loads(metadata["scores"])
    assert {"train_accuracy", "valid_accuracy", "test_accuracy", "stroke_iou", "stroke_iou_of_real"} == set(scores)
    assert scores["stroke_iou_of_real"] > 0.5
    assert "100 counterfactuals" in metadata["scored_on"]


def test_trains_a_cgn_whose_mechanisms_are_tinygans(digits: TensorSet) -> None:
    with seeded(0, "baseline"):
        baseline = TinyGANCGN(TinyGANConfig(width=4))
    trainer = CGNTrainer(dataclasses.replace(TINY, steps=2), digits, baseline)
    before = [parameter.clone() for parameter in trainer.cgn.parameters()]
    assert len(list(trainer.fit())) == 2
    assert all(
        not torch.equal(a, b) for a, b in zip(before, trainer.cgn.parameters(), strict=True) if b.grad is not None
    )
    assert all(network.grad is not None for network in trainer.cgn.network(Mechanism.SHAPE).fc.parameters())
    labels = torch.arange(10)
    mask = trainer.result(Mechanism.SHAPE, torch.zeros(10, 32), labels)
    assert mask.shape == (10, 1, 32, 32)
    assert mask.min() >= 1e-4
    assert mask.max() <= 1 - 1e-4
    assert trainer.result(Mechanism.TEXTURE, torch.zeros(10, 32), labels).shape == (10, 3, 32, 32)


def test_smoke_training_learns_the_colors(digits: TensorSet) -> None:
    """Seconds suffice for the composite's colors to follow the label."""
    trainer = CGNTrainer(CGNTrainingConfig(steps=40), digits)
    losses = [terms for _, terms in trainer.fit()]
    assert all(math.isfinite(value) for terms in losses for value in terms.values())
    color = [terms["colour"] for terms in losses]
    assert sum(color[-10:]) < 0.8 * sum(color[:10])
    assert trainer.step == 40
