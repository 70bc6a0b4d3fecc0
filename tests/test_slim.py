"""The slim student: its sizes, its layers against plain ones, its files, and how scripts choose it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from experiments import mnist_kd
from experiments.presets import STUDENTS, families
from skdcgn import cli
from skdcgn.cgn.mnist import CGN
from skdcgn.configs.slim import SLIM_MNIST, SlimConfig
from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.errors import InputError
from skdcgn.measure.cost import parameters
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import stream
from skdcgn.tinygan import layers
from skdcgn.tinygan.layers import UpsampledConv2d
from skdcgn.tinygan.networks import (
    TinyGANDiscriminator,
    TinyGANGenerator,
    build_student,
    load_class_embedding,
    load_generator,
    save_generator,
)
from skdcgn.tinygan.slim import SlimGenerator


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize("start", [4, 8])
def test_images_have_the_configured_size_and_range(resolution: int, start: int) -> None:
    config = SlimConfig(resolution=resolution, width=8, start=start)
    images = SlimGenerator(config)(torch.randn(5, 32, generator=stream(0, "z")), torch.arange(5))
    assert images.shape == (5, 3, resolution, resolution)
    assert images.abs().max() <= 1
    tinygan = replace(NATIVE_MNIST, resolution=resolution, blocks={16: 2, 32: 3, 64: 4}[resolution])
    critics = [TinyGANDiscriminator(each, width=4) for each in (config, tinygan)]
    assert len({parameters(critic) for critic in critics}) == 1  # the same discriminator for both families
    assert critics[0](images, torch.arange(5))[0].shape == (5,)


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_it_is_smaller_than_the_mechanism_that_it_distills(mechanism: Mechanism) -> None:
    student = build_student(SLIM_MNIST.for_mechanism(mechanism))
    assert isinstance(student, SlimGenerator)
    assert parameters(student) < parameters(CGN().network(mechanism)) / 2.5


def test_label_and_noise_both_matter() -> None:
    generator = SlimGenerator(SLIM_MNIST).eval()
    noise = torch.randn(1, 32, generator=stream(0, "z"))
    image = generator(noise, torch.tensor([3]))
    assert not torch.allclose(image, generator(noise, torch.tensor([4])), atol=1e-4)
    assert not torch.allclose(image, generator(-noise, torch.tensor([3])), atol=1e-4)


@pytest.mark.parametrize("few", [0, 10**9], ids=["folded", "plain"])
def test_upsampled_convolution_with_bias_is_an_upsampling_and_a_convolution(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(layers, "_FEW", few)
    layer = UpsampledConv2d(6, 5, bias=True)
    features = torch.randn(2, 6, 7, 9, generator=stream(0, "x"))
    plain = F.conv2d(F.interpolate(features, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(features), plain, atol=1e-5)


@pytest.mark.parametrize(("resolution", "start"), [(32, 32), (32, 5), (32, 64), (24, 4)])
def test_sizes_that_do_not_double_into_each_other(resolution: int, start: int) -> None:
    with pytest.raises(InputError, match=f"starts from {start}x{start} cannot draw {resolution}x{resolution}"):
        SlimConfig(resolution=resolution, start=start)


def test_save_and_load_gives_the_same_student(tmp_path: Path) -> None:
    generator = SlimGenerator(replace(SLIM_MNIST, width=4), NoisePrior(0.5)).eval()
    save_generator(generator, tmp_path)
    loaded = load_generator(tmp_path)
    assert isinstance(loaded, SlimGenerator)
    assert (loaded.config, loaded.prior) == (generator.config, NoisePrior(0.5))
    noise, labels = torch.randn(4, 32, generator=stream(0, "z")), torch.arange(4)
    assert torch.equal(loaded(noise, labels), generator(noise, labels))


def test_a_file_that_names_no_family_is_a_tinygan(tmp_path: Path) -> None:
    save_generator(TinyGANGenerator(NATIVE_MNIST), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"family": "tinygan",', ""))
    assert isinstance(load_generator(tmp_path), TinyGANGenerator)
    config.write_text(config.read_text().replace("{", '{"family": "huge",', 1))
    with pytest.raises(InputError, match="does not hold a student"):
        load_generator(tmp_path)


def test_it_has_no_class_embedding_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave it out for a slim one"):
        load_class_embedding(tmp_path / "any.npy", SLIM_MNIST)


def test_scripts_take_its_fields_and_its_recipe() -> None:
    slim = families(STUDENTS)["slim"]
    config = cli.parse(slim, args=["--profile", "smoke", "--student.start", "4"])
    assert config == replace(slim["smoke"], student=replace(SLIM_MNIST, start=4))
    runs = mnist_kd.plan(replace(config, dataset="digits")).cases
    assert {case.tags["student"] for case in runs} == {"slim"}
    assert {case.tags["overrides"] for case in runs} == {"student=slim, student.start=4"}
    default = mnist_kd.plan(replace(STUDENTS["smoke"], dataset="digits")).cases
    assert {case.tags["overrides"] for case in default} == {"none"}
    assert not {case.name for case in runs} & {case.name for case in default}
