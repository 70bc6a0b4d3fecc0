"""Damaged and malicious files wherever files are read, and a teacher that returns NaN."""

import hashlib
import io
import json
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client
from harness import Row, judge, references
from walks import Walk, tree

from experiments import mnist_kd
from skdcgn import cli
from skdcgn.cgn.teachers import MNISTTeacher, mnist_teacher
from skdcgn.configs.tinygan import PUBLISHED_MNIST
from skdcgn.counterfactuals.datasets import CounterfactualSet
from skdcgn.data import weights
from skdcgn.errors import InputError
from skdcgn.files import load_checkpoint
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.recipes.sweep import stage_of
from skdcgn.runs.engine.execute import Driver
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.store import Store
from skdcgn.tinygan.networks import load_class_embedding, load_generator
from skdcgn.tinygan.published import load_published_generator
from skdcgn.tinygan.teacher_sets import TeacherSet, TeacherSetConfig

pytestmark = pytest.mark.faults
kind = pytest.mark.parametrize
WIDTH = 4


def truncate(content: bytes, chance: random.Random) -> bytes:
    """Return what is left of a file that was cut off."""
    return content[: chance.randrange(1, len(content))]


def empty(content: bytes, chance: random.Random) -> bytes:
    """Return nothing."""
    return b""


def flip(content: bytes, chance: random.Random) -> bytes:
    """Return a file of which one bit is wrong."""
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


DAMAGES = (truncate, empty, flip)


@kind("row", ["checkpoint truncated, empty or with a flipped bit: walks"], indirect=True)
def test_checkpoints(store: Store, row: Row, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt walks again and again, damage what they left, and let them end."""
    expected = references(1, WIDTH)
    monkeypatch.setattr(Walk, "pause", 0.0)
    step = Walk.training_step
    ends = {"in": chance.randrange(5, 12)}

    def interrupted(walk: Walk, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if ends["in"] == 0:
            raise RuntimeError("interrupted")
        ends["in"] -= 1
        return step(walk, batch)

    monkeypatch.setattr(Walk, "training_step", interrupted)
    plan = tree(WIDTH)
    while True:
        try:
            carry_out(plan, store)
            break
        except RuntimeError:
            ends["in"] = chance.randrange(5, 12)
        for checkpoint in (store.folder / "checkpoints").glob("*.pt"):
            checkpoint.write_bytes(DAMAGES[row.injected % 3](checkpoint.read_bytes(), chance))
            row.injected += 1
    judge(row, store, expected)


@kind("row", ["shard of a teacher set truncated, empty or with a flipped bit"], indirect=True)
def test_shards(tmp_path: Path, random_teacher: MNISTTeacher, row: Row, chance: random.Random) -> None:
    """A damaged shard is refused by its name, and drawn again."""
    config = TeacherSetConfig(Mechanism.SHAPE, per_class=2)
    list(TeacherSet.write(tmp_path, random_teacher, config))
    for damage in DAMAGES * 2:
        shard = chance.choice(sorted(tmp_path.glob("*.safetensors")))
        content = shard.read_bytes()
        shard.write_bytes(damage(content, chance))
        row.injected += 1
        with pytest.raises(InputError, match=re.escape(str(shard))):
            TeacherSet(tmp_path)
        list(TeacherSet.write(tmp_path, random_teacher, config))
        row.differ += shard.read_bytes() != content
    row.check()


@kind("row", ["teacher that returns NaN: students beside walks"], indirect=True)
def test_teacher_that_returns_nan(
    client: Client, store: Store, row: Row, random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its students fail in one sentence, what needs them is not run, and the others go on."""
    monkeypatch.setattr(Walk, "pause", 0.0)
    render = random_teacher.render
    monkeypatch.setattr(random_teacher, "render", lambda *given: render(*given) * torch.nan)
    monkeypatch.setattr(MNISTTeacherConfig, "load", lambda *_: random_teacher)
    config = cli.parse(mnist_kd.DEFAULTS, args=["--profile=smoke", "--runtime.device=cpu"])
    stages = [stage_of(plan, store, "") for plan in (mnist_kd.plan(config), tree(WIDTH))]
    outcome = Driver(client, store, 1).execute(stages)
    failed = store.runs("mnist_kd", "FAILED")
    row.injected = len(failed)
    assert len(failed) == len(outcome.failed) == 3
    for run in failed:
        assert "random CGN returns NaN or infinite values for the" in run.tags["error"]
    assert len(outcome.not_run) == 1
    assert not store.runs("mnist_kd", "FINISHED")
    for run in failed:
        store.client.delete_run(run.run_id)
    judge(row, store, references(1, WIDTH))


# --- malicious files


class Malicious:
    """Leaves a canary where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def pickled(canary: Path) -> bytes:
    return pickle.dumps({"state": Malicious(canary)})


def saved(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": Malicious(canary)}, buffer)
    return buffer.getvalue()


def array(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Malicious(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def checksummed(canary: Path) -> bytes:
    """Return a checkpoint whose checksum is right."""
    return hashlib.sha256(saved(canary)).digest() + saved(canary)


def escaping(canary: Path) -> bytes:
    """Return a zip file with a member that leads out of wherever it is unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for depth in range(12):
            file.writestr("../" * depth + "tmp/canary", b"")
        file.writestr(str(canary), b"")
    return buffer.getvalue()


def script(canary: Path) -> bytes:
    return f"!!python/object/apply:os.mkdir [{str(canary)!r}]".encode()


def weight_file(suffix: str) -> Callable[[Path, bytes], object]:
    """Return what reads weights from a file with a suffix."""

    def read(folder: Path, content: bytes) -> object:
        (folder / f"file{suffix}").write_bytes(content)
        return weights.load_state_dict(folder / f"file{suffix}")

    return read


def teacher(folder: Path, content: bytes) -> object:
    (folder / "teacher.pth").write_bytes(content)
    return mnist_teacher("double_colored", folder / "teacher.pth", torch.device("cpu"))


def published(folder: Path, content: bytes) -> object:
    (folder / "generator.pt").write_bytes(content)
    return load_published_generator(folder / "generator.pt")


def embedding(folder: Path, content: bytes) -> object:
    (folder / "embedding.npy").write_bytes(content)
    return load_class_embedding(folder / "embedding.npy", PUBLISHED_MNIST)


def student(folder: Path, content: bytes) -> object:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return load_generator(folder)


def options(folder: Path, content: bytes) -> object:
    (folder / "config.yaml").write_bytes(content)
    return cli.read_overrides(folder / "config.yaml")


def shard_named(name: str) -> Callable[[Path, bytes], object]:
    """Return what reads a teacher set whose index names a shard, with the right checksum."""

    def read(folder: Path, content: bytes) -> object:
        inner = folder / "set"
        inner.mkdir()
        (inner / name).write_bytes(content)
        index = {"num_classes": 1, "per_class": 1, "shards": {name: hashlib.sha256(content).hexdigest()}}
        (inner / "set.json").write_text(json.dumps(index))
        return TeacherSet(inner)

    return read


def counterfactuals(folder: Path, content: bytes) -> object:
    (folder / "shard-0000.safetensors").write_bytes(content)
    index = {"shards": {"shard-0000.safetensors": hashlib.sha256(content).hexdigest()}}
    (folder / "set.json").write_text(json.dumps(index))
    return CounterfactualSet(folder)


def archive(folder: Path, content: bytes) -> object:
    from skdcgn.runs.archive.bundle import open_archive

    (folder / "runs.zip").write_bytes(content)
    with open_archive(folder / "runs.zip") as opened:
        return opened


READERS = {
    "weights .pth": weight_file(".pth"),
    "weights .tar": weight_file(".tar"),
    "weights .safetensors": weight_file(".safetensors"),
    "teacher": teacher,
    "published student": published,
    "class embedding": embedding,
    "student of a run": student,
    "config file": options,
    "teacher set": shard_named("class-0000.safetensors"),
    "teacher set that leads outside": shard_named("../class-0000.safetensors"),
    "counterfactuals": counterfactuals,
    "archive of runs": archive,
}


@kind("make", [pickled, saved, array, checksummed, escaping, script])
@kind("reader", READERS)
@kind("row", ["malicious file in each place that is read"], indirect=True)
def test_malicious_files(
    tmp_path: Path, row: Row, reader: str, make: Callable[[Path], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused in one sentence, nothing in it is run, and nothing is written outside."""
    if reader == "archive of runs":
        pytest.importorskip("skdcgn.runs.archive", reason="there are no archives of runs yet")
    folder = tmp_path / "files"
    folder.mkdir()
    canary = tmp_path / "canary"
    row.injected += 1
    with pytest.raises(InputError) as refused:
        READERS[reader](folder, make(canary))
    assert "\n" not in str(refused.value)
    row.half += {path.name for path in tmp_path.iterdir()} != {"files"} or Path("/tmp/canary").exists()
    row.check()


@kind("make", [pickled, saved, checksummed])
@kind("row", ["malicious file in each place that is read"], indirect=True)
def test_malicious_checkpoints(
    tmp_path: Path, store: Store, row: Row, make: Callable[[Path], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint with code in it is taken for a damaged one: the run starts anew."""
    monkeypatch.setattr(Walk, "pause", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Walk, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carry_out(tree(WIDTH), store)
    (run,) = store.runs("walks")
    checkpoint = store.folder / "checkpoints" / f"{run.run_id}.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(make(tmp_path / "canary"))
    row.injected += 1
    assert load_checkpoint(checkpoint) is None
    checkpoint.write_bytes(make(tmp_path / "canary"))
    carry_out(tree(WIDTH), store)
    assert not (tmp_path / "canary").exists()
    judge(row, store, references(1, WIDTH))
    assert [each.run_id for each in store.runs("walks", "FINISHED")].count(run.run_id) == 1


def test_the_canary_is_one(tmp_path: Path) -> None:
    """What the malicious files hold does what it should, where it is not refused."""
    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()
