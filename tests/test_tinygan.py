"""The TinyGAN student against the published sizes and formats."""

import io
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skdcgn.cgn.mnist import CGN
from skdcgn.errors import InputError
from skdcgn.measure.cost import parameters
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import stream
from skdcgn.tinygan.networks import (
    NATIVE_MNIST,
    PUBLISHED_IMAGENET,
    PUBLISHED_MNIST,
    GeneratorBlock,
    TinyGANConfig,
    TinyGANDiscriminator,
    TinyGANGenerator,
    load_class_embedding,
    load_generator,
    save_generator,
)


def _meta(network: type[nn.Module], *arguments: object) -> nn.Module:
    with torch.device("meta"):
        return network(*arguments)


def test_parameter_counts_are_the_published_ones() -> None:
    assert parameters(_meta(TinyGANGenerator, PUBLISHED_MNIST)) == 2_101_955
    assert parameters(_meta(TinyGANGenerator, PUBLISHED_IMAGENET)) == 6_240_963
    assert parameters(_meta(TinyGANDiscriminator, PUBLISHED_MNIST)) == 3_300_321
    assert parameters(_meta(TinyGANDiscriminator, PUBLISHED_IMAGENET)) == 3_300_321


@pytest.mark.data
@pytest.mark.parametrize(
    ("manifest", "config"),
    [("skdcgn_mnist_generator", PUBLISHED_MNIST), ("skdcgn_imagenet_generator", PUBLISHED_IMAGENET)],
)
def test_weight_shapes_are_the_published_ones(data_dir: Path, manifest: str, config: TinyGANConfig) -> None:
    published = json.loads((data_dir / "manifests" / f"{manifest}.json").read_text())
    ours = _meta(TinyGANGenerator, config).state_dict()
    assert sorted(map(tuple, published.values())) == sorted(tuple(value.shape) for value in ours.values())


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_native_student_is_smaller_than_the_mechanism_it_distils(mechanism: Mechanism) -> None:
    student = TinyGANGenerator(NATIVE_MNIST.for_mechanism(mechanism))
    assert parameters(student) < parameters(CGN().network(mechanism)) / 2


def test_published_student_is_larger_than_the_mnist_mechanism() -> None:
    """The paper calls its students lightweight; on MNIST they are 9 to 11 times the size of their teachers."""
    ratios = [2_101_955 / parameters(CGN().network(mechanism)) for mechanism in Mechanism]
    assert 9 < min(ratios) < max(ratios) < 11


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize("label_input", ["none", "one_hot", "embedding"])
def test_images_have_the_configured_size_and_range(resolution: int, label_input: str) -> None:
    config = TinyGANConfig(resolution=resolution, width=4, blocks=3, label_input=label_input, channels=3)
    images = TinyGANGenerator(config)(torch.randn(5, 32, generator=stream(0, "z")), torch.arange(5))
    assert images.shape == (5, 3, resolution, resolution)
    assert images.abs().max() <= 1
    scores, activations = TinyGANDiscriminator(config, width=4)(images, torch.arange(5))
    assert scores.shape == (5,)
    assert [activation.shape[-1] for activation in activations] == [resolution // 2, resolution // 4, resolution // 8]


def test_label_and_noise_both_matter() -> None:
    generator = TinyGANGenerator(NATIVE_MNIST).eval()
    noise = torch.randn(1, 32, generator=stream(0, "z"))
    image = generator(noise, torch.tensor([3]))
    assert not torch.allclose(image, generator(noise, torch.tensor([4])), atol=1e-4)
    assert not torch.allclose(image, generator(-noise, torch.tensor([3])), atol=1e-4)


def test_shortcut_before_the_upsample_is_the_same_function() -> None:
    """The original upsamples, then convolves; 1x1 convolution and bilinear interpolation commute."""
    block = GeneratorBlock(8, 4, class_dim=3).eval()
    features, condition = torch.randn(2, 8, 5, 5, generator=stream(0, "x")), torch.ones(2, 3)
    original = block.shortcut(F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False))
    block.pointwise2.weight.data.zero_()
    block.pointwise2.bias.data.zero_()
    assert torch.allclose(block(features, condition), original, atol=1e-5)


def test_conditional_batch_norm_starts_as_plain_batch_norm() -> None:
    generator = TinyGANGenerator(NATIVE_MNIST)
    for block in generator.blocks:
        gamma, beta = block.norm1.affine.bias.chunk(2)
        assert torch.equal(gamma, torch.ones_like(gamma))
        assert torch.equal(beta, torch.zeros_like(beta))
        assert block.norm1.affine.weight.std() < 0.05


@pytest.mark.parametrize("prior", [NoisePrior(), NoisePrior(0.5)])
def test_save_and_load_gives_the_same_student(tmp_path: Path, prior: NoisePrior) -> None:
    generator = TinyGANGenerator(replace(NATIVE_MNIST, width=4), prior=prior).eval()
    save_generator(generator, tmp_path)
    loaded = load_generator(tmp_path)
    noise, labels = torch.randn(3, 32, generator=stream(0, "z")), torch.tensor([1, 2, 3])
    assert loaded.config == generator.config
    assert loaded.prior == prior
    assert torch.equal(loaded(noise, labels), generator(noise, labels))


def test_a_student_of_before_the_priors_has_the_normal_one(tmp_path: Path) -> None:
    save_generator(TinyGANGenerator(replace(NATIVE_MNIST, width=4), prior=NoisePrior(0.5)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("prior") == {"truncation": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_generator(tmp_path).prior == NoisePrior()


@pytest.mark.parametrize("damage", ["empty", "truncated", "other"])
def test_damaged_student_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    if damage != "empty":
        save_generator(TinyGANGenerator(replace(NATIVE_MNIST, width=4)), tmp_path)
        weights = tmp_path / "model.safetensors"
        if damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            config = json.loads((tmp_path / "config.json").read_text())
            (tmp_path / "config.json").write_text(json.dumps({**config, "width": 8}))
    with pytest.raises(InputError, match="does not hold a student"):
        load_generator(tmp_path)


def test_class_embedding_of_another_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "embedding.npy", np.zeros((3, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"\(1000, 128\)"):
        load_class_embedding(tmp_path / "embedding.npy", PUBLISHED_MNIST)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


class _Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"junk" * 100,
        pickle.dumps(_Payload()),
        npy(np.array([_Payload()]), allow_pickle=True),
        npy(np.zeros((3, 4), np.float32))[:-1],
        npy(np.array(["text"])),
    ],
)
def test_a_file_of_no_class_embedding_is_refused_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("embedding.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"^embedding\.npy is not a readable \.npy class embedding \(.+\): give"):
        load_class_embedding(Path("embedding.npy"), PUBLISHED_MNIST)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", ["", "3", "[]", '{"width": "x"}', '{"width": -1}', '{"prior": 3}', "\x00"])
def test_a_folder_of_no_student_is_refused(tmp_path: Path, content: str) -> None:
    save_generator(TinyGANGenerator(replace(NATIVE_MNIST, width=4)), tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="does not hold a student"):
        load_generator(tmp_path)


@pytest.mark.data
def test_biggan_class_embedding_initializes_the_published_student(data_dir: Path) -> None:
    embedding = load_class_embedding(data_dir / "biggan" / "tinygan_class_embeddings.npy", PUBLISHED_MNIST)
    generator = TinyGANGenerator(PUBLISHED_MNIST, embedding)
    assert torch.equal(generator.class_embedding.weight.detach(), embedding)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        TinyGANConfig(resolution=36)
    with pytest.raises(InputError, match="class-rows"):
        TinyGANConfig(class_rows=5)


def test_discriminator_is_spectrally_normalized() -> None:
    discriminator = TinyGANDiscriminator(NATIVE_MNIST, width=4)
    for _ in range(30):  # power iterations
        discriminator(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    for layer in discriminator.layers:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1)).max().item()
        assert math.isclose(largest, 1, rel_tol=0.05)
