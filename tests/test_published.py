"""Checkpoints of TinyGAN's and SKDCGN's authors: strict loading, and the same images as their own networks'."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.errors import InputError
from skdcgn.measure.cost import parameters
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANDiscriminator
from skdcgn.tinygan.published import load_published_generator


def random_values(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Values that no activation or normalization blows up or wipes out."""
    generator = stream(0, "checkpoint")
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
            state[key] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
            if key.endswith(("weight_u", "weight_v")):
                state[key] = F.normalize(state[key], dim=0)
    return state


def generator_shapes(width: int = 4, blocks: int = 3, noise: int = 6, classes: int = 5, side: int = 4, dim: int = 7):
    """Names and shapes of a smaller generator of theirs."""
    widest = width * 2 ** (blocks - 1)
    shapes = {
        "embeding.weight": [classes, dim],
        "fc.weight": [widest * side**2, noise],
        "fc.bias": [widest * side**2],
        "bn.num_batches_tracked": [],
        "colorize.weight": [3, width, 3, 3],
        "colorize.bias": [3],
    } | {f"bn.{key}": [width] for key in ("weight", "bias", "running_mean", "running_var")}
    for block in range(blocks):
        into, out = widest >> max(0, block - 1), widest >> block
        convolutions = {
            "dw_conv1": [into, 1, 3, 3],
            "dw_conv2": [out, 1, 3, 3],
            "pw_conv1": [out, into, 1, 1],
            "pw_conv2": [out, out, 1, 1],
            "c_sc": [out, into, 1, 1],
        }
        for name, shape in convolutions.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name, channels in (("cbn0", into), ("cbn1", out)):
            prefix = f"blocks.{block}.{name}"
            shapes |= {f"{prefix}.bn.running_mean": [channels], f"{prefix}.bn.running_var": [channels]}
            shapes |= {f"{prefix}.bn.num_batches_tracked": [], f"{prefix}.embed.bias": [2 * channels]}
            shapes[f"{prefix}.embed.weight"] = [2 * channels, dim]
    return shapes


def their_images(state: dict[str, Tensor], noise: Tensor, labels: Tensor) -> Tensor:
    """What their generator computes in evaluation mode, in the order in which it does."""

    def convolve(name: str, x: Tensor, padding: int = 0) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = len(weight) if weight.shape[1] == 1 and x.shape[1] > 1 else 1
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=padding, groups=groups)

    def normalize(name: str, x: Tensor) -> Tensor:
        plain = F.batch_norm(x, state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"])
        affine = F.linear(condition, state[f"{name}.embed.weight"], state[f"{name}.embed.bias"])
        gamma, beta = affine[:, :, None, None].chunk(2, dim=1)
        return gamma * plain + beta

    def upsample(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    condition = state["embeding.weight"][labels]
    widest = state["blocks.0.c_sc.weight"].shape[1]
    x = F.linear(noise, state["fc.weight"], state["fc.bias"])
    x = x.view(len(noise), widest, *[math.isqrt(x.shape[1] // widest)] * 2)
    for block in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        name = f"blocks.{block}"
        h = upsample(F.relu(normalize(f"{name}.cbn0", x)))
        h = convolve(f"{name}.pw_conv1", convolve(f"{name}.dw_conv1", h, 1))
        h = F.relu(normalize(f"{name}.cbn1", h))
        h = convolve(f"{name}.pw_conv2", convolve(f"{name}.dw_conv2", h, 1))
        x = h + convolve(f"{name}.c_sc", upsample(x))
    x = F.relu(F.batch_norm(x, state["bn.running_mean"], state["bn.running_var"], state["bn.weight"], state["bn.bias"]))
    return torch.tanh(convolve("colorize", x, 1))


class TheirDiscriminator(nn.Module):
    """Their discriminator, with PyTorch's older spectral norm."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        normed = nn.utils.spectral_norm
        widths = [3, *(width << layer for layer in range(layers))]
        modules = []
        for into, out in itertools.pairwise(widths):
            modules += [normed(nn.Conv2d(into, out, 4, stride=2, padding=1)), nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*modules)
        self.fc_src = normed(nn.Linear(widths[-1], 1))
        self.embeding = normed(nn.Embedding(classes, widths[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        pooled = self.layers(images).sum(dim=(2, 3))
        return self.fc_src(pooled).squeeze(1) + (pooled * self.embeding(labels)).sum(dim=1)


def ours(state: dict[str, Tensor], width: int, layers: int, classes: int) -> TinyGANDiscriminator:
    """Our discriminator with the weights of theirs, strictly: the same values under other names."""
    config = TinyGANConfig(resolution=2**layers, blocks=layers, class_rows=classes, num_classes=classes)
    discriminator = TinyGANDiscriminator(config, width)
    renamed = {}
    for key, value in state.items():
        for theirs, name in {
            "embeding": "class_embedding",
            "fc_src": "score",
            "weight_orig": "parametrizations.weight.original",
            "weight_u": "parametrizations.weight.0._u",
            "weight_v": "parametrizations.weight.0._v",
        }.items():
            key = key.replace(theirs, name)
        # Activations take the odd places in their list of layers.
        key = re.sub(r"^layers\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}.", key)
        renamed[key] = value
    discriminator.load_state_dict(renamed)
    return discriminator.eval()


def test_generator_draws_what_theirs_does(tmp_path: Path) -> None:
    state = random_values(generator_shapes())
    torch.save(state, tmp_path / "generator_3.pt")
    torch.save({"G": state, "D": {}, "g_optimizer": {"state": {}}}, tmp_path / "model_3.tar")
    noise, labels = torch.randn(5, 6, generator=stream(0, "noise")), torch.tensor([0, 4, 2, 2, 1])
    expected = their_images(state, noise, labels)
    assert expected.std() > 0.1
    for name in ("generator_3.pt", "model_3.tar"):
        generator = load_published_generator(tmp_path / name)
        assert not generator.training
        with torch.no_grad():
            torch.testing.assert_close(generator(noise, labels), expected, rtol=1e-4, atol=1e-5)
    config = load_published_generator(tmp_path / "model_3.tar", num_classes=3).config
    assert (config.resolution, config.width, config.blocks, config.noise_dim) == (32, 4, 3, 6)
    assert (config.class_rows, config.num_classes, config.label_input) == (5, 3, "none")


def test_discriminator_scores_as_theirs_does() -> None:
    with seeded(0, "their discriminator"):
        theirs = TheirDiscriminator(width=4, layers=3, classes=5)
        images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 0])
        theirs(images, labels)  # moves the power iteration
    theirs.eval()
    discriminator = ours(theirs.state_dict(), width=4, layers=3, classes=5)
    with torch.no_grad():
        scores, activations = discriminator(images, labels)
        torch.testing.assert_close(scores, theirs(images, labels))
    assert [tuple(activation.shape[1:]) for activation in activations] == [(4, 8, 8), (8, 4, 4), (16, 2, 2)]


@pytest.mark.data
@pytest.mark.parametrize(
    ("manifest", "resolution", "noise", "size"),
    [("skdcgn_mnist_generator", 64, 42, 2_101_955), ("skdcgn_imagenet_generator", 256, 128, 6_240_963)],
)
def test_full_size_generators_load(
    data_dir: Path, tmp_path: Path, manifest: str, resolution: int, noise: int, size: int
) -> None:
    state = random_values(json.loads((data_dir / "manifests" / f"{manifest}.json").read_text()))
    torch.save(state, tmp_path / "generator_15.pt")
    generator = load_published_generator(tmp_path / "generator_15.pt")
    config = generator.config
    assert (config.resolution, config.width, config.blocks, config.noise_dim) == (resolution, 32, 5, noise)
    assert parameters(generator) == size
    u, labels = torch.randn(2, noise, generator=stream(0, "noise")), torch.tensor([3, 999])
    with torch.no_grad():
        torch.testing.assert_close(generator(u, labels), their_images(state, u, labels), rtol=1e-3, atol=1e-4)


@pytest.mark.data
def test_full_size_discriminator_loads(data_dir: Path) -> None:
    shapes = json.loads((data_dir / "manifests" / "skdcgn_discriminator.json").read_text())
    discriminator = ours(random_values(shapes), width=32, layers=5, classes=1000)
    assert parameters(discriminator) == 3_300_321
    with torch.no_grad():
        scores, activations = discriminator(torch.zeros(2, 3, 64, 64), torch.tensor([0, 999]))
    assert scores.shape == (2,)
    assert len(activations) == 5


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_text("<html>")
    torch.save({"G": [1, 2]}, tmp_path / "list.tar")
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pt")
    state = random_values(generator_shapes())
    torch.save({key: value for key, value in state.items() if "pw_conv2" not in key}, tmp_path / "partial.pt")
    torch.save(state | {"more": torch.zeros(1)}, tmp_path / "more.pt")
    for name, words in {
        "missing.tar": "no weight file",
        "page.tar": "cannot be read",
        "list.tar": "something else than a dictionary",
        "other.pt": "no TinyGAN generator",
        "partial.pt": "do not fit",
        "more.pt": "do not fit",
    }.items():
        with pytest.raises(InputError, match=words):
            load_published_generator(tmp_path / name)


@pytest.mark.parametrize("key", ["norm.weight", "class_embedding.weight", "fc.weight", "to_image.weight"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 0), (1, 2), (3, 3, 3)])
def test_weights_that_no_generator_has_are_refused(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    published = {"norm": "bn", "class_embedding": "embeding", "to_image": "colorize"}
    name = ".".join(published.get(part, part) for part in key.split("."))
    state = random_values(generator_shapes())
    assert name in state
    torch.save(state | {name: torch.zeros(shape)}, tmp_path / "generator.pt")
    with pytest.raises(InputError, match=r"no TinyGAN generator|do not fit"):
        load_published_generator(tmp_path / "generator.pt")
