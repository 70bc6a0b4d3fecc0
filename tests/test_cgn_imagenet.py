"""The ImageNet CGN and its U²-Net: formats, ranges, parity with the packaged BigGAN, strict and partial loading."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_pretrained_biggan import BigGAN
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from skdcgn.cgn.imagenet import (
    CGN_256,
    GENERATORS,
    MINIATURE,
    PARTS,
    PARTS_OF,
    ImageNetCGN,
    initialize,
)
from skdcgn.cgn.u2net import RSU, SMALL_WIDTHS, U2Net
from skdcgn.errors import InputError
from skdcgn.mechanisms import MASK_EPSILON, Mechanism, NoisePrior
from skdcgn.randomness import stream

TRUNCATION = 0.5


def inputs(n: int = 3) -> tuple[Tensor, Tensor, float]:
    """Noise, labels and truncation of a small batch for the miniature."""
    noise = NoisePrior(TRUNCATION).sample(n, MINIATURE.noise_dim, stream(0, "noise"))
    return noise, torch.arange(n) % MINIATURE.num_classes, TRUNCATION


def shapes(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in state.items()}


def small_u2net() -> U2Net:
    network = U2Net(SMALL_WIDTHS)
    initialize(network, stream(0, "u2net"))
    return network.eval()


@pytest.fixture(scope="module")
def cgn() -> ImageNetCGN:
    """A miniature CGN whose normalization tables and attention are not trivial."""
    cgn = ImageNetCGN(MINIATURE, stream(0, "cgn")).eval()
    generator = stream(0, "statistics")
    for name, tensor in cgn.state_dict().items():
        if name.endswith("running_means"):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_vars"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("gamma"):
            tensor.fill_(0.5)
    return cgn


@pytest.fixture(scope="module")
def checkpoint(cgn: ImageNetCGN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "cgn.pth"
    torch.save(cgn.state_dict(), path)
    return path


# U²-Net


def test_rsu_follows_its_figure() -> None:
    """RSU-4, and its dilated twin, written out by hand."""

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)

    def cat(deep: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([up(deep, skip), skip], dim=1)

    images = torch.randn(2, 3, 13, 10, generator=stream(0, "images"))
    for dilated, dilations in ((False, (1, 1, 1, 2, 1, 1, 1)), (True, (1, 2, 4, 8, 4, 2, 1))):
        block = RSU(4, 3, 2, 6, dilated=dilated).eval()
        initialize(block, stream(0, "rsu"))
        convolutions = [getattr(block, f"rebnconv{name}") for name in ("1", "2", "3", "4", "3d", "2d", "1d")]
        assert tuple(c.conv_s1.dilation[0] for c in convolutions) == dilations
        one, two, three, four, three_up, two_up, one_up = convolutions

        def down(x: Tensor, dilated: bool = dilated) -> Tensor:
            return x if dilated else F.max_pool2d(x, 2, ceil_mode=True)

        entry = block.rebnconvin(images)
        x1 = one(entry)
        x2 = two(down(x1))
        x3 = three(down(x2))
        x = three_up(cat(four(x3), x3))
        x = two_up(cat(x, x2))
        x = one_up(cat(x, x1)) + entry
        torch.testing.assert_close(block(images), x)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (32, 32), (33, 65)])
def test_u2net_takes_any_size(size: tuple[int, int]) -> None:
    network = small_u2net()
    images = torch.rand(2, 3, *size, generator=stream(0, "images")) * 2 - 1
    logits = network.logits(images)
    mask = network(images)
    assert logits.shape == (2, 7, *size)
    assert mask.shape == (2, 1, *size)
    assert mask.isfinite().all()
    assert mask.min() >= 0
    assert mask.max() <= 1
    torch.testing.assert_close(mask, logits[:, :1].sigmoid())


def test_u2net_trains_every_weight() -> None:
    network = small_u2net().train()
    images = torch.rand(2, 3, 32, 32, generator=stream(0, "images")) * 2 - 1
    logits = network.logits(images)
    F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_u2net_sizes() -> None:
    assert len(small_u2net().state_dict()) == 798
    assert sum(parameter.numel() for parameter in small_u2net().parameters()) == 48_484
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in U2Net().parameters()) == 44_009_869


@pytest.mark.data
def test_formats_are_those_of_the_authors(data_dir: Path) -> None:
    """Names and shapes of all weights equal the real checkpoints'."""
    whole = ImageNetCGN(CGN_256)
    for file, network in (("u2net", whole.u2net), ("biggan_deep_256", whole.f_text), ("cgn_imagenet", whole)):
        manifest = json.loads((data_dir / "manifests" / f"{file}.json").read_text())
        assert shapes(network.state_dict()) == manifest
    assert CGN_256.resolution == 256


# The generators


def test_mechanisms_render(cgn: ImageNetCGN) -> None:
    assert MINIATURE.resolution == 32
    with torch.no_grad():
        outputs = {mechanism: cgn(mechanism, *inputs()) for mechanism in Mechanism}
        target = cgn.generate("biggan_GT", *inputs())
    for mechanism, output in outputs.items():
        assert output.shape == (3, mechanism.channels, 32, 32)
        assert output.isfinite().all()
        assert output.std() > 0
    mask = outputs[Mechanism.SHAPE]
    assert mask.min() >= MASK_EPSILON
    assert mask.max() <= 1 - MASK_EPSILON
    for image in (outputs[Mechanism.TEXTURE], outputs[Mechanism.BACKGROUND], target):
        assert image.shape == (3, 3, 32, 32)
        assert image.abs().max() <= 1
    assert not torch.equal(outputs[Mechanism.TEXTURE], outputs[Mechanism.BACKGROUND])


def test_generators_equal_the_packaged_biggan(cgn: ImageNetCGN) -> None:
    noise, labels, truncation = inputs()
    for part in GENERATORS:
        reference = BigGAN(MINIATURE.biggan_config(part))
        reference.load_state_dict(cgn.get_submodule(part).state_dict())
        one_hot = F.one_hot(labels, MINIATURE.num_classes).float()
        with torch.no_grad():
            expected = reference.eval()(noise, one_hot, truncation)
            assert torch.equal(cgn.generate(part, noise, labels, truncation), expected)
            assert not torch.equal(cgn.generate(part, noise, labels, 1.0), expected), "truncation has no effect"


def test_mask_is_u2net_of_the_premask(cgn: ImageNetCGN) -> None:
    with torch.no_grad():
        premask = cgn.generate("f_shape", *inputs())
        expected = cgn.u2net(premask).clamp(1e-4, 1 - 1e-4)
        torch.testing.assert_close(cgn(Mechanism.SHAPE, *inputs()), expected)


def test_starting_weights_come_from_the_generator() -> None:
    before = torch.get_rng_state()
    parts = ("f_text", "f_bg", "u2net")
    first, again, other = (ImageNetCGN(MINIATURE, stream(seed, "cgn"), parts).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before), "the global generator was touched"
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert not torch.equal(first["f_text.embeddings.weight"], other["f_text.embeddings.weight"])
    assert not torch.equal(first["f_text.embeddings.weight"], first["f_bg.embeddings.weight"])


def test_initialise_reaches_every_tensor() -> None:
    """BigGAN leaves its last normalization uninitialized; nothing of what was in memory may stay."""
    cgn = ImageNetCGN(MINIATURE).to_empty(device="cpu")
    for tensor in cgn.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    initialize(cgn, stream(0, "cgn"))
    assert all(tensor.isfinite().all() for tensor in cgn.state_dict().values())
    final = cgn.f_text.generator.bn
    assert torch.equal(final.weight, torch.ones_like(final.weight))
    assert torch.equal(final.bias, torch.zeros_like(final.bias))


def test_spectral_norms_start_near_the_truth() -> None:
    convolution = ImageNetCGN(MINIATURE, stream(0, "cgn"), parts=["f_text"]).f_text.generator.conv_to_rgb
    matrix = convolution.weight_orig.detach().flatten(1)
    estimate = convolution.weight_u @ matrix @ convolution.weight_v
    assert estimate == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=0.1)


def test_training_leaves_the_frozen_networks_alone() -> None:
    cgn = ImageNetCGN(MINIATURE, stream(0, "cgn")).train()
    assert [name for name, network in cgn.named_children() if network.training] == ["f_shape", "f_text", "f_bg"]
    assert all(
        parameter.requires_grad is name.startswith(("f_shape", "f_text", "f_bg"))
        for name, parameter in cgn.named_parameters()
    )
    cgn(Mechanism.SHAPE, *inputs(2)).mean().backward()
    assert all(parameter.grad is not None for parameter in cgn.f_shape.parameters())


# Noise


def test_noise_is_truncated_and_seeded() -> None:
    noise = NoisePrior(0.5).sample(2000, 16, stream(0, "noise"))
    assert noise.shape == (2000, 16)
    assert noise.dtype == torch.float32
    assert noise.abs().max() <= 1
    assert noise.abs().max() > 0.95
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    # The standard deviation of a standard normal cut off at ±2 is 0.8796.
    assert noise.std().item() == pytest.approx(0.8796 / 2, rel=0.02)
    assert torch.equal(noise, NoisePrior(0.5).sample(2000, 16, stream(0, "noise")))
    assert not torch.equal(noise, NoisePrior(0.5).sample(2000, 16, stream(1, "noise")))


@pytest.mark.parametrize("truncation", [0.0, 1.5, float("nan")])
def test_truncation_out_of_range(cgn: ImageNetCGN, truncation: float) -> None:
    with pytest.raises(InputError, match="truncation"):
        NoisePrior(truncation).sample(1, 4, stream(0, "noise"))
    with pytest.raises(InputError, match="truncation"):
        cgn(Mechanism.TEXTURE, *inputs()[:2], truncation)


# Weight files


def save_as(state: dict[str, Tensor], path: Path, form: str) -> None:
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize(("form", "prefix"), [("zip", ""), ("zip", "module."), ("legacy", ""), ("safetensors", "")])
def test_load_whole(cgn: ImageNetCGN, tmp_path: Path, form: str, prefix: str) -> None:
    path = tmp_path / ("cgn.safetensors" if form == "safetensors" else "cgn.pth")
    save_as({prefix + key: tensor for key, tensor in cgn.state_dict().items()}, path, form)
    loaded = ImageNetCGN.load(path, MINIATURE)
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in cgn.state_dict().items())
    with torch.no_grad():
        for mechanism in Mechanism:
            torch.testing.assert_close(loaded(mechanism, *inputs()), cgn(mechanism, *inputs()))
        torch.testing.assert_close(loaded.generate("biggan_GT", *inputs()), cgn.generate("biggan_GT", *inputs()))


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_load_one_mechanism(cgn: ImageNetCGN, checkpoint: Path, tmp_path: Path, mechanism: Mechanism) -> None:
    own = {key: t for key, t in cgn.state_dict().items() if key.split(".")[0] in PARTS_OF[mechanism]}
    torch.save(own, tmp_path / "own.pth")
    for path in (checkpoint, tmp_path / "own.pth"):
        network = ImageNetCGN.load(path, MINIATURE, PARTS_OF[mechanism])
        assert network.state_dict().keys() == own.keys()
        assert not network.training
        assert torch.equal(network(mechanism, *inputs()), cgn(mechanism, *inputs()).detach())


def test_loaded_weights_train(checkpoint: Path) -> None:
    """Weights mapped from a file can be changed, and the file stays as it was."""
    content = checkpoint.read_bytes()
    cgn = ImageNetCGN.load(checkpoint, MINIATURE).train()
    optimizer = torch.optim.SGD(cgn.f_text.parameters(), lr=0.1)
    before = cgn.f_text.embeddings.weight.detach().clone()
    cgn(Mechanism.TEXTURE, *inputs()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, cgn.f_text.embeddings.weight)
    assert checkpoint.read_bytes() == content


def test_half_precision_becomes_single(cgn: ImageNetCGN, tmp_path: Path) -> None:
    half = {key: t.half() if t.is_floating_point() else t for key, t in cgn.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    state = ImageNetCGN.load(tmp_path / "half.safetensors", MINIATURE).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


def test_load_one_network(cgn: ImageNetCGN, checkpoint: Path, tmp_path: Path) -> None:
    """From a file of its own, as BigGAN-deep-256 and U²-Net have, or from a whole CGN's."""
    torch.save(cgn.biggan_GT.state_dict(), tmp_path / "biggan.bin")
    torch.save(cgn.u2net.state_dict(), tmp_path / "u2net.pth")
    expected = cgn.generate("biggan_GT", *inputs())
    mask = cgn.u2net(expected)
    for biggan, u2net in ((tmp_path / "biggan.bin", tmp_path / "u2net.pth"), (checkpoint, checkpoint)):
        assert torch.equal(
            ImageNetCGN.load(biggan, MINIATURE, ["biggan_GT"]).generate("biggan_GT", *inputs()), expected
        )
        assert torch.equal(ImageNetCGN.load(u2net, MINIATURE, ["u2net"]).u2net(expected), mask)


def test_weights_that_do_not_fit(cgn: ImageNetCGN, tmp_path: Path) -> None:
    path = tmp_path / "cgn.pth"
    state = cgn.state_dict()

    torch.save({key: tensor for key, tensor in state.items() if not key.endswith("weight_v")}, path)
    with pytest.raises(InputError, match=r"Missing key.*biggan_GT\.generator\.gen_z\.weight"):
        ImageNetCGN.load(path, MINIATURE)

    torch.save(state | {"f_text.extra": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"Unexpected key.*f_text\.extra"):
        ImageNetCGN.load(path, MINIATURE, PARTS_OF[Mechanism.TEXTURE])
    ImageNetCGN.load(path, MINIATURE, PARTS_OF[Mechanism.BACKGROUND])

    torch.save(state | {"f_bg.embeddings.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"size mismatch for f_bg\.embeddings\.weight"):
        ImageNetCGN.load(path, MINIATURE, PARTS_OF[Mechanism.BACKGROUND])

    with pytest.raises(InputError, match="do not fit"):
        ImageNetCGN.load(path, CGN_256, PARTS_OF[Mechanism.TEXTURE])


def test_files_that_hold_no_weights(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="no weight file"):
        ImageNetCGN.load(tmp_path / "absent.pth", parts=PARTS_OF[Mechanism.SHAPE])
    page = b"<!DOCTYPE html><html>Google Drive - Quota exceeded</html>"
    for name, content in {
        "page.pth": page,
        "page.safetensors": page,
        "cut.pth": checkpoint.read_bytes()[:5000],
        "empty.pth": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read") as raised:
            ImageNetCGN.load(tmp_path / name, parts=PARTS_OF[Mechanism.SHAPE])
        assert "\n" not in str(raised.value)
    for content in ([torch.zeros(1)], {"step": 3}, {3: torch.zeros(1)}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"something else than a dictionary of tensors|do not fit"):
            ImageNetCGN.load(tmp_path / "other.pth", parts=PARTS_OF[Mechanism.SHAPE])


# Full size


def write_full_checkpoint(manifest: dict[str, list[int]], folder: Path) -> Path:
    """Write a file in the format and size of `cgn.pth` with random weights that keep activations finite.

    The tensors lie in a file on the way, so that the kernel can evict them: memory stays bounded.
    """
    generator = stream(0, "full checkpoint")
    total = sum(int(np.prod(shape)) for shape in manifest.values())
    buffer = np.memmap(folder / "buffer", dtype=np.float32, mode="w+", shape=total)
    state, start = {}, 0
    for key, shape in manifest.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        stop = start + int(np.prod(shape))
        tensor = torch.from_numpy(buffer[start:stop]).view(shape)
        start = stop
        state[key] = tensor
        if key.endswith(("running_vars", "running_var", "bn.weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith(("weight_u", "weight_v")):
            # One step of the power iteration each: a random pair would divide the weights by almost nothing.
            matrix = state[key[:-2] + "_orig"].flatten(1)
            source = matrix.sum(1) if key.endswith("weight_u") else matrix.T @ state[key[:-2] + "_u"]
            tensor.copy_(F.normalize(source, dim=0))
        else:
            tensor.normal_(0, 0.05, generator=generator)
    torch.save(state, folder / "cgn.pth")
    (folder / "buffer").unlink()
    return folder / "cgn.pth"


RENDER = """
import json, sys, time
import torch
from pathlib import Path
from skdcgn.cgn.imagenet import PARTS_OF, ImageNetCGN
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import stream

torch.set_num_threads(1)
def peak():
    # Not getrusage: its peak would include that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
path, name = Path(sys.argv[1]), sys.argv[2]
before, start = peak(), time.perf_counter()
if name == "whole":
    cgn = ImageNetCGN.load(path)
else:
    cgn = ImageNetCGN.load(path, parts=PARTS_OF[Mechanism(name)]).requires_grad_(False)
report = {"load_s": time.perf_counter() - start, "load_mib": peak() - before}
if name != "whole":
    start = time.perf_counter()
    with torch.inference_mode():
        output = cgn(Mechanism(name), NoisePrior(0.5).sample(1, 128, stream(0, "u")), torch.tensor([7]), 0.5)
    report |= {
        "render_s": time.perf_counter() - start,
        "peak_mib": peak(),
        "start_mib": before,
        "shape": list(output.shape),
        "finite": bool(output.isfinite().all()),
        "low": output.min().item(),
        "high": output.max().item(),
        "std": output.std().item(),
    }
print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from /proc")
def test_full_checkpoint_renders(data_dir: Path, tmp_path: Path) -> None:
    """A file with the names, shapes and size of the real `cgn.pth` loads strictly; each mechanism renders alone."""
    manifest = json.loads((data_dir / "manifests" / "cgn_imagenet.json").read_text())
    assert len(manifest) == 3206
    assert set(PARTS) == {key.split(".")[0] for key in manifest}
    path = write_full_checkpoint(manifest, tmp_path)
    assert path.stat().st_size > 1.1e9

    def run(name: str) -> dict[str, Any]:
        # A process of its own, so that its peak memory is this mechanism's.
        command = [sys.executable, "-c", RENDER, str(path), name]
        root = Path(__file__).parents[1]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)
        print(name, report)  # shown by pytest -rP
        return report

    run("whole")
    for mechanism in Mechanism:
        report = run(mechanism)
        assert report["shape"] == [1, mechanism.channels, 256, 256]
        assert report["finite"]
        assert report["std"] > 0
        low, high = (MASK_EPSILON, 1 - MASK_EPSILON) if mechanism is Mechanism.SHAPE else (-1, 1)
        assert low - 1e-6 <= report["low"] <= report["high"] <= high + 1e-6
        # 0.9 to 1.1 GiB: its weights, the same divided by their spectral norms, activations, and PyTorch itself.
        assert report["peak_mib"] - report["start_mib"] < 1300, "one mechanism brought the others' weights along"
    path.unlink()
