"""Counterfactual data sets: their definition, and how they are written to a folder."""

import itertools
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from skdcgn import cli
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.commands.counterfactuals import Config, main
from skdcgn.configs import counterfactuals as configs
from skdcgn.counterfactuals import datasets
from skdcgn.counterfactuals.datasets import (
    CounterfactualConfig,
    CounterfactualData,
    CounterfactualSet,
    disk_space,
    draw,
    write,
)
from skdcgn.data.weights import save_state_dict
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism


class Painter:
    """A source that anyone can check: a mask out of noise, a texture of the label's gray, a black background."""

    name, sha256, stand_in = "painter", "1" * 64, True
    resolution, num_classes, noise_dim = 8, 10, 64

    def __init__(self) -> None:
        self.rendered = dict.fromkeys(Mechanism, 0)

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, self.noise_dim, generator=generator)

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        self.rendered[mechanism] += len(labels)
        if mechanism is Mechanism.SHAPE:
            return noise.view(-1, 1, 8, 8)
        gray = labels / 10 if mechanism is Mechanism.TEXTURE else torch.full(labels.shape, -1.0)
        return gray[:, None, None, None].expand(-1, 3, 8, 8)

    def parameters(self, mechanism: Mechanism) -> int:
        return 0


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 12 images, shards of 24."""
    monkeypatch.setattr(configs, "CHUNK", 12)
    monkeypatch.setattr(configs, "SHARD_CHUNKS", 2)
    monkeypatch.setattr(datasets, "SHARD_CHUNKS", 2)


def same(a: CounterfactualData, b: CounterfactualData) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_a_set_is_made_of() -> None:
    data = draw(Painter(), CounterfactualConfig(n=25, per_mask=4))
    assert data.pixels.shape == (25, 3, 8, 8)
    assert data.pixels.dtype == torch.uint8
    for labels in (data.shape, data.texture, data.background):
        assert labels.shape == (25,)
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < 10


def test_images_of_one_mask_differ_in_texture_alone() -> None:
    source = Painter()
    data = draw(source, CounterfactualConfig(n=24, per_mask=4))
    assert source.rendered == {Mechanism.SHAPE: 6, Mechanism.TEXTURE: 24, Mechanism.BACKGROUND: 24}
    gray = (data.pixels[:, 0].float() / 127.5 - 1 + 1) / (data.texture[:, None, None] / 10 + 1)  # m, from Eq. 1
    masks = gray.view(6, 4, 8, 8)
    torch.testing.assert_close(masks, masks[:, :1].expand_as(masks), atol=0.01, rtol=0)
    assert all((a - b).abs().max() > 0.1 for a, b in itertools.pairwise(masks[:, 0]))
    assert (data.shape.view(6, 4) == data.shape[::4, None]).all()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), per_mask=st.integers(1, 15))
def test_a_smaller_set_begins_a_larger_one(n: int, per_mask: int) -> None:
    whole = draw(Painter(), CounterfactualConfig(n, per_mask))
    assert len(whole.pixels) == n
    larger = draw(Painter(), CounterfactualConfig(n + 7, per_mask))
    assert same(whole, CounterfactualData(*(field[:n] for field in larger)))


def test_labels_are_independent_or_all_the_shapes_own() -> None:
    permuted = draw(Painter(), CounterfactualConfig(n=3000))
    for a, b in itertools.combinations((permuted.shape, permuted.texture, permuted.background), 2):
        assert 0.07 < (a == b).float().mean() < 0.13
        assert len(torch.stack([a, b]).unique(dim=1).T) == 100  # every pair occurs
    plain = draw(Painter(), CounterfactualConfig(n=3000, permute=False))
    assert torch.equal(plain.shape, plain.texture)
    assert torch.equal(plain.shape, plain.background)
    assert torch.equal(plain.shape, permuted.shape)


def test_the_seed_decides_everything() -> None:
    before = torch.get_rng_state()
    first, again, other = (draw(Painter(), CounterfactualConfig(n=24, seed=seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first.pixels, other.pixels)
    assert not torch.equal(first.texture, other.texture)
    assert torch.equal(torch.get_rng_state(), before)


def test_interventions_are_drawn_for_each_image_of_a_mask() -> None:
    data = draw(Painter(), CounterfactualConfig(n=12, per_mask=12, intervention="noise", permute=False))
    assert len(data.pixels.unique(dim=0)) == 12
    still = draw(Painter(), CounterfactualConfig(n=12, per_mask=12, permute=False))
    assert len(still.pixels.unique(dim=0)) == 1
    assert torch.equal(data.shape, still.shape)


def test_strength_of_an_intervention() -> None:
    plain, half = (
        draw(Painter(), CounterfactualConfig(n=12, permute=False, intervention="transparency", strength=strength))
        for strength in (1.0, 0.5)
    )
    # The background is black: half the mask is half the brightness.
    torch.testing.assert_close(half.pixels.float(), plain.pixels.float() / 2, atol=1.1, rtol=0)


def test_shifts_can_be_left_out(random_teacher: MNISTTeacher) -> None:
    shifted, fixed = (draw(random_teacher, CounterfactualConfig(n=4, shuffle=shuffle)) for shuffle in (True, False))
    assert torch.equal(shifted.shape, fixed.shape)
    assert not torch.equal(shifted.pixels, fixed.pixels)


def test_resolution_is_that_of_the_source_or_the_one_asked_for() -> None:
    config = CounterfactualConfig(n=6, permute=False)
    small, same_size, large = (draw(Painter(), config, resolution=side).pixels for side in (4, None, 16))
    assert [images.shape[-1] for images in (small, same_size, large)] == [4, 8, 16]
    assert torch.equal(large[:, :, ::2, ::2], same_size)
    area = same_size.float().view(6, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(small.float(), area, atol=1.1, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"n": 0}, "n is 0"), ({"per_mask": 0}, "per_mask is 0"), ({"intervention": "blur"}, "'blur'.*transparency")],
)
def test_impossible_sets_are_told(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CounterfactualConfig(**wrong)


CONFIG = CounterfactualConfig(n=30, per_mask=4)


@pytest.mark.parametrize("png", [True, False])
def test_a_folder_holds_the_set_with_all_its_labels(tmp_path: Path, png: bool) -> None:
    folder = tmp_path / "new" / "set"
    assert list(write(folder, Painter(), CONFIG, png)) == [(0, 30), (24, 30), (30, 30)]
    index, data = pd.read_csv(folder / "index.csv"), draw(Painter(), CONFIG)
    shards = {name: load_file(folder / name)["pixels"] for name in index["shard"].unique()}
    stored = torch.stack([shards[name][row] for name, row in zip(index["shard"], index["row"], strict=True)])
    assert torch.equal(stored, data.pixels)
    assert len(list(folder.glob("*/*.png"))) == (30 if png else 0)
    if png:
        pictures = np.stack([np.asarray(Image.open(folder / file)) for file in index["file"]])
        assert torch.equal(torch.from_numpy(pictures).permute(0, 3, 1, 2), data.pixels)
    for mechanism, labels in zip(Mechanism, data[1:], strict=True):
        assert index[f"label_{mechanism}"].tolist() == labels.tolist()
    assert set(index["source"]) == {"painter"}
    assert set(index["seed"]) == {0}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "index.parquet"), index)
    description = json.loads((folder / "set.json").read_text())
    assert description["source_sha256"] == "1" * 64
    assert description["per_mask"] == 4
    assert not [path for path in folder.rglob("*.part")]


def test_a_set_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    list(write(tmp_path, Painter(), CONFIG))
    stored, data = CounterfactualSet(tmp_path), draw(Painter(), CONFIG)
    assert stored.config == CONFIG
    assert torch.equal(torch.stack([stored.image(index) for index in range(len(stored))]), data.pixels)
    assert torch.equal(stored.labels, torch.stack([data.shape, data.texture, data.background], dim=1))


def test_an_interrupted_set_is_completed(tmp_path: Path) -> None:
    writing = write(tmp_path, Painter(), CONFIG, png=True)
    assert next(islice(writing, 1, None)) == (24, 30)
    writing.close()
    assert not (tmp_path / "index.csv").exists()
    with pytest.raises(InputError, match=r"lacks 1 of 2 shards \(such as 0001"):
        CounterfactualSet(tmp_path)
    source = Painter()
    assert list(write(tmp_path, source, CONFIG, png=True)) == [(24, 30), (30, 30)]
    assert source.rendered[Mechanism.TEXTURE] == 12  # the last chunk only
    assert len(pd.read_csv(tmp_path / "index.csv")) == len(list(tmp_path.glob("*/*.png"))) == 30


def test_pictures_can_follow_later(tmp_path: Path) -> None:
    list(write(tmp_path, Painter(), CONFIG))
    source = Painter()
    list(write(tmp_path, source, CONFIG, png=True))
    assert not any(source.rendered.values())
    assert len(list(tmp_path.glob("*/*.png"))) == 30


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    list(write(tmp_path, Painter(), CONFIG))
    shard = tmp_path / "0001.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    if damage == "truncated":
        shard.write_bytes(content[:50])
    with pytest.raises(InputError, match=r"0001\.safetensors is missing or damaged"):
        CounterfactualSet(tmp_path)
    with pytest.raises(InputError, match="no counterfactual data set"):
        CounterfactualSet(tmp_path / "nowhere")


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    list(write(tmp_path / "set", Painter(), CONFIG))
    with pytest.raises(InputError, match="another counterfactual data set"):
        next(write(tmp_path / "set", Painter(), CounterfactualConfig(n=31, per_mask=4)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for folder in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(InputError, match="something else"):
            next(write(folder, Painter(), CONFIG))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(InputError, match=r"needs another \d+MB.*smaller --n"):
        next(write(tmp_path / "set", Painter(), CounterfactualConfig(n=1_000_000)))
    assert not (tmp_path / "set").exists()


def test_disk_space_is_about_what_a_set_takes(tmp_path: Path) -> None:
    list(write(tmp_path, Painter(), CONFIG))
    taken = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert disk_space(30, 8, png=False) <= taken < disk_space(30, 8, png=False) + 2000
    shards, both = (disk_space(1000, 256, png) for png in (False, True))
    assert both - shards == 1000 * 3 * 256**2
    assert disk_space(1000, 32, png=True) - disk_space(1000, 32, png=False) == 4_096_000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_state_dict(tmp_path / "cgn.safetensors", CGN().state_dict())
    flags = ["--n", "15", "--per-mask", "5", "--seed", "2", "--intervention", "transparency", "--no-permute"]
    out = tmp_path / "out"
    command = tyro.cli(Config, args=["--source", str(tmp_path / "cgn.safetensors"), "--out", str(out), *flags])
    assert command.data == CounterfactualConfig(15, 5, False, "transparency", seed=2)
    main(command)
    printed = capsys.readouterr().out
    assert "15 images (32x32) of cgn" in printed
    assert "about 108kB" in printed
    assert len(list(out.glob("*/*.png"))) == len(pd.read_csv(out / "index.csv")) == 15


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--source", "cgn:mnist"], "double_colored, colored, wildlife"),
        (["--source", "nowhere.pth"], "no source 'nowhere.pth'"),
        (["--source", "nowhere.pth", "--resolution", "0"], "resolution is 0"),
        (["--source", "nowhere.pth", "--n", "-1"], "n is -1"),
        (["--source", "nowhere.pth", "--device", "cuda:99"], "no device 'cuda:99'"),
    ],
)
def test_bad_commands_end_with_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.entry(lambda: main(tyro.cli(Config, args=[*flags, "--out", str(tmp_path / "out")])))
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
