"""The miniature: its fit, its statistics of truncation, its compact file, and the one that comes with the package."""

import json
from pathlib import Path

import pytest
import torch
from pytorch_pretrained_biggan.model import BigGANBatchNorm
from safetensors import safe_open
from torch.nn import functional as F

from skdcgn.cgn.imagenet import GENERATORS, MINIATURE, PARTS, ImageNetCGN
from skdcgn.cgn.miniature import (
    FitConfig,
    Regression,
    batch_statistics,
    measure_statistics,
    saliency_loss,
    save_miniature,
    target,
)
from skdcgn.cgn.teachers import MINIATURE_FILE, MINIATURE_TRUNCATION, MNISTTeacher, load_miniature, mnist_teacher
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import stream
from skdcgn.recipes.cgns import score_miniature

TINY = FitConfig(6, 6, 6, 6, batch_size=8)


@pytest.fixture
def cgn() -> ImageNetCGN:
    return ImageNetCGN(MINIATURE, stream(0, "miniature"))


def test_normalisation_uses_the_batch_only_where_asked(cgn: ImageNetCGN) -> None:
    noise, labels = NoisePrior(1.0).sample(8, 32, stream(0, "noise")), torch.arange(8)
    images, halves = {}, {}
    with torch.no_grad():
        cgn.eval()
        for where in ("before", "inside", "after"):
            context = batch_statistics(cgn.f_text) if where == "inside" else torch.no_grad()
            with context:
                images[where] = cgn.generate("f_text", noise, labels, 1.0)
                halves[where] = cgn.generate("f_text", noise[:4], labels[:4], 1.0)
    assert torch.equal(images["before"], images["after"])
    torch.testing.assert_close(halves["before"], images["before"][:4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(images["before"], images["inside"], atol=0.01)
    assert not torch.allclose(halves["inside"], images["inside"][:4], atol=0.01)


def test_tables_hold_what_the_network_has(cgn: ImageNetCGN) -> None:
    network = cgn.f_text
    with torch.no_grad():  # a network whose statistics are far from the starting table's
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0, 1, generator=stream(0, "bias"))
    measure_statistics(network, stream(0, "statistics"), images=200)
    assert not network.training
    noise, labels = NoisePrior(0.6).sample(200, 32, stream(1, "noise")), torch.arange(200) % 10
    with torch.no_grad():
        by_table = cgn.generate("f_text", noise, labels, 0.6)
        with batch_statistics(network):
            by_batch = cgn.generate("f_text", noise, labels, 0.6)
    assert (by_table - by_batch).abs().mean() < 0.05 * by_batch.std()
    norm = next(module for module in network.modules() if isinstance(module, BigGANBatchNorm))
    rows = norm.running_vars[[0, 25, 50]].mean(dim=1)
    assert rows[0] < rows[1] < rows[2]  # less noise, less variance: truncation does something
    between = (norm.running_means[10] + norm.running_means[15]) / 2
    torch.testing.assert_close((norm.running_means[12] + norm.running_means[13]) / 2, between)


def test_targets_are_the_teacher_s(random_teacher: MNISTTeacher) -> None:
    noise, labels = random_teacher.sample_noise(3, stream(0, "noise")), torch.arange(3)
    mask, texture, background = (random_teacher.render(m, noise, labels) for m in Mechanism)
    assert torch.equal(target(random_teacher, "f_text", noise, labels), texture)
    assert torch.equal(target(random_teacher, "f_bg", noise, labels), background)
    assert torch.equal(target(random_teacher, "f_shape", noise, labels), (2 * mask - 1).expand(-1, 3, -1, -1))
    composed = target(random_teacher, "biggan_GT", noise, labels)
    torch.testing.assert_close(composed, mask * texture + (1 - mask) * background)


@pytest.mark.parametrize("part", ["f_text", "u2net"])
def test_a_fit_goes_on_exactly_where_it_stopped(random_teacher: MNISTTeacher, part: str) -> None:
    fits = [
        Regression(ImageNetCGN(MINIATURE, stream(0, "miniature")).eval(), part, random_teacher, TINY, seed=0)
        for _ in range(2)
    ]
    whole = [losses for _, losses in fits[0].fit()]
    first = fits[1].fit()
    losses = [next(first)[1] for _ in range(3)]
    state = {key: value for key, value in fits[1].state_dict().items()}
    state["network"] = {key: tensor.clone() for key, tensor in state["network"].items()}
    first.close()
    resumed = Regression(ImageNetCGN(MINIATURE, stream(0, "miniature")).eval(), part, random_teacher, TINY, seed=0)
    resumed.load_state_dict(state)
    assert losses + [terms for _, terms in resumed.fit()] == whole
    weights = [fit.network.state_dict() for fit in (fits[0], resumed)]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_a_fit_learns(random_teacher: MNISTTeacher) -> None:
    config = FitConfig(texture_steps=40, batch_size=16)
    fit = Regression(ImageNetCGN(MINIATURE, stream(0, "miniature")), "f_text", random_teacher, config, seed=0)
    losses = [terms["l1"] for _, terms in fit.fit()]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_saliency_learns_from_every_kind_of_picture(cgn: ImageNetCGN, random_teacher: MNISTTeacher) -> None:
    seen = []
    cgn.u2net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = cgn.u2net.logits
    cgn.u2net.logits = lambda images: (seen.append(images), logits(images))[1]
    terms = saliency_loss(cgn.eval(), random_teacher, 16)(stream(0, "batch"))
    assert set(terms) == {"fused", "sides"}
    assert seen[0].shape == (16, 3, 32, 32)
    assert F.l1_loss(terms["fused"], torch.tensor(0.7)) < 0.5


@pytest.mark.parametrize("batch_size", [4, 12, 0])
def test_batches_are_eighths(batch_size: int) -> None:
    with pytest.raises(InputError, match=f"batch_size is {batch_size}"):
        FitConfig(batch_size=batch_size)


def test_the_file_is_compact_and_gives_the_network_back(cgn: ImageNetCGN, tmp_path: Path) -> None:
    for part in GENERATORS:
        measure_statistics(cgn.get_submodule(part), stream(0, part), images=20)
    path = tmp_path / "miniature.safetensors"
    save_miniature(path, cgn, {"seed": "0"})
    assert path.stat().st_size < 6.4e6
    loaded = load_miniature(path)
    assert not loaded.training
    state = loaded.state_dict()
    for key, tensor in cgn.state_dict().items():
        torch.testing.assert_close(state[key], tensor, rtol=2e-3, atol=2e-3)
    noise, labels = NoisePrior(1.0).sample(4, 32, stream(0, "noise")), torch.arange(4)
    with torch.no_grad():
        for mechanism in Mechanism:
            expected = cgn.eval()(mechanism, noise, labels, 1.0)
            torch.testing.assert_close(loaded(mechanism, noise, labels, 1.0), expected, rtol=0, atol=0.02)


def test_a_file_of_something_else(tmp_path: Path, cgn: ImageNetCGN) -> None:
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(InputError, match="cannot be read"):
        load_miniature(tmp_path / "page.safetensors")
    torch.save({}, tmp_path / "no.pth")
    with pytest.raises(InputError, match="do not fit"):
        load_miniature(tmp_path / "no.pth")


# The one that comes with the package


def test_the_package_has_a_fitted_miniature() -> None:
    with safe_open(MINIATURE_FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata["command"].startswith("python experiments/fit_miniature.py")
    assert metadata["seed"] == "0"
    measured = json.loads(metadata["scores_on_unseen_noise"])
    assert measured["shape_iou"] > 0.75
    assert MINIATURE_FILE.stat().st_size <= 6.4e6
    assert sum(path.stat().st_size for path in MINIATURE_FILE.parent.iterdir()) <= 8e6
    assert {key.split(".")[0] for key in load_miniature(MINIATURE_FILE).state_dict()} == set(PARTS)


@pytest.mark.data
def test_its_pictures_are_the_wildlife_teacher_s(data_dir: Path) -> None:
    with safe_open(MINIATURE_FILE, "pt") as file:
        noted = json.loads(file.metadata()["scores_on_unseen_noise"])
    again = score_miniature(load_miniature(MINIATURE_FILE), mnist_teacher("wildlife"), MINIATURE_TRUNCATION, 20, seed=1)
    for name, value in noted.items():
        assert again[name] == pytest.approx(value, abs=0.03), name
    assert again["shape_iou"] > 0.75
    assert again["saliency_iou"] > 0.85
    assert max(again["f_text_l1"], again["f_bg_l1"]) < 0.05
