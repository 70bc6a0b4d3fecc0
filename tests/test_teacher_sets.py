"""The stored teacher set: written by several processes, resumed, checked, and read in batches."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from skdcgn.cgn.teachers import MINIATURE_FILE, MNISTTeacher, miniature
from skdcgn.cli import entry
from skdcgn.commands import teacher_sets as teacher_sets_command
from skdcgn.commands.teacher_sets import Config
from skdcgn.counterfactuals.datasets import CounterfactualSet
from skdcgn.data import shards
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream
from skdcgn.tinygan.records import FreshBatches
from skdcgn.tinygan.teacher_sets import StoredBatches, TeacherSet, TeacherSetConfig, draw_shard, set_folder, shard_bytes


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_stored_noise_regenerates_its_image(tmp_path: Path, random_teacher: MNISTTeacher, mechanism: Mechanism) -> None:
    """In the published pipeline not one of 10,000 images met the noise it had been made from."""
    config = TeacherSetConfig(mechanism, per_class=3)
    list(TeacherSet.write(tmp_path, random_teacher, config))
    stored = TeacherSet(tmp_path)
    labels = stored.records(torch.arange(len(stored))).labels
    assert torch.equal(labels.bincount(), torch.full((10,), 3))
    index = torch.tensor([0, 7, 29, 12])
    records = stored.records(index)
    again = mechanism.to_image(random_teacher.render(mechanism, records.noise, records.labels), mechanism.channels)
    assert (records.images - again).abs().max() <= 1 / 255 + 1e-4  # a uint8 keeps it to half a step of 2/255


def test_set_is_resumable_and_a_lost_shard_comes_back_identical(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    config = TeacherSetConfig(Mechanism.TEXTURE, per_class=2)
    folder = tmp_path / "set"
    list(islice(TeacherSet.write(folder, random_teacher, config), 4))  # interrupted after four classes
    with pytest.raises(InputError, match="lacks 7 of 10 shards"):
        TeacherSet(folder)
    assert len(TeacherSet(folder, classes=(0, 2))) == 4
    list(TeacherSet.write(folder, random_teacher, config))
    whole = TeacherSet(folder).records(torch.arange(20))
    (folder / "class-0003.safetensors").unlink()
    with pytest.raises(InputError, match=r"class-0003\.safetensors is missing or damaged"):
        TeacherSet(folder)
    list(TeacherSet.write(folder, random_teacher, config))
    again = TeacherSet(folder).records(torch.arange(20))
    for first, second in zip(whole, again, strict=True):
        assert torch.equal(first, second)
    shard = draw_shard(random_teacher, config, 3)
    assert shard.images.dtype == torch.uint8
    assert torch.equal(to_float(shard.images), again.images[6:8])


def test_damaged_shard_is_named(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))
    shard = tmp_path / "class-0001.safetensors"
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="class-0001"):
        TeacherSet(tmp_path)


def test_folder_of_another_set_is_not_overwritten(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=1)))
    with pytest.raises(InputError, match="another teacher set"):
        next(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))


def test_splits_and_seeds_share_no_noise(random_teacher: MNISTTeacher) -> None:
    configs = [TeacherSetConfig(Mechanism.SHAPE, 5, seed, split) for seed in (0, 1) for split in ("train", "heldout")]
    rows = {tuple(row) for config in configs for row in draw_shard(random_teacher, config, 2).noise.tolist()}
    assert len(rows) == 20
    assert len({set_folder(Path("sets"), random_teacher, config) for config in configs}) == 4


def test_stored_batches_visit_every_record_once_an_epoch(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))
    batches = StoredBatches(TeacherSet(tmp_path), 5, stream(0, "batches"))
    epochs = [torch.cat([next(batches).noise for _ in range(4)]) for _ in range(2)]
    assert len({tuple(row) for row in epochs[0].tolist()}) == 20
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("count", [10, 15, 20, 50])
def test_sample_of_the_training_set_has_all_classes(tmp_path: Path, random_teacher: MNISTTeacher, count: int) -> None:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))
    labels = StoredBatches(TeacherSet(tmp_path), 5, stream(0, "batches")).sample(count).labels
    assert len(labels) == min(count, 20)
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("stored", [True, False])
def test_batches_resume_where_they_were(tmp_path: Path, random_teacher: MNISTTeacher, stored: bool) -> None:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))

    def batches() -> StoredBatches | FreshBatches:
        if stored:
            return StoredBatches(TeacherSet(tmp_path), 6, stream(0, "batches"))
        return FreshBatches(random_teacher, Mechanism.SHAPE, 6, stream(0, "batches"))

    first = batches()
    for _ in range(4):
        next(first)
    second = batches()
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        for left, right in zip(next(first), next(second), strict=True):
            assert torch.equal(left, right)


def test_too_small_a_set_is_refused(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=1)))
    with pytest.raises(InputError, match="smaller than one batch"):
        StoredBatches(TeacherSet(tmp_path), 64, stream(0, "batches"))


def test_a_set_of_some_classes_grows_into_one_of_all(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    config = TeacherSetConfig(Mechanism.SHAPE, per_class=2)
    assert list(TeacherSet.write(tmp_path, random_teacher, config, (3, 5)))[-1] == (2, 2)
    few = TeacherSet(tmp_path, (3, 5))
    assert few.records(torch.arange(4)).labels.tolist() == [3, 3, 5, 5]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("class-*")}
    written = list(TeacherSet.write(tmp_path, random_teacher, config))
    assert (written[0], written[-1], len(written)) == ((2, 10), (10, 10), 9)
    assert len(TeacherSet(tmp_path)) == 20
    assert all((tmp_path / name).stat().st_mtime_ns == written for name, written in before.items())


def test_size_is_told_before_and_a_small_disk_is_refused(
    tmp_path: Path, random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TeacherSetConfig(Mechanism.TEXTURE, per_class=50)
    list(TeacherSet.write(tmp_path, random_teacher, config, (0,)))
    size = (tmp_path / "class-0000.safetensors").stat().st_size
    assert size == pytest.approx(shard_bytes(random_teacher, config), rel=0.01)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5 * size}))
    with pytest.raises(InputError, match=r"needs another 1\.\d+MB, but that disk has \d+kB left"):
        list(TeacherSet.write(tmp_path, random_teacher, config))
    assert [path.name for path in tmp_path.glob("class-*")] == ["class-0000.safetensors"]
    assert list(TeacherSet.write(tmp_path, random_teacher, config, range(5)))[-1] == (5, 5)


def test_the_paper_s_million_takes_459_gigabytes() -> None:
    class Real:
        resolution, noise_dim = 256, 128

    sizes = [1000 * shard_bytes(Real, TeacherSetConfig(mechanism)) for mechanism in Mechanism]
    assert sum(sizes) / 1e9 == pytest.approx(460, abs=2)


def test_verify_finds_what_changed(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    config = TeacherSetConfig(Mechanism.SHAPE, per_class=2)
    folder = set_folder(tmp_path, random_teacher, config)
    list(TeacherSet.write(folder, random_teacher, config))
    teacher_sets_command.main(Config(tmp_path, verify=True))
    shard = folder / "class-0004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # one bit of one pixel
    shard.write_bytes(content)
    assert [name for name, intact in shards.verify(folder) if not intact] == [shard.name]
    with pytest.raises(InputError, match=r"1 shards are damaged or missing.*class-0004"):
        teacher_sets_command.main(Config(tmp_path, verify=True))
    shard.unlink()
    list(TeacherSet.write(folder, random_teacher, config))
    assert all(intact for _, intact in shards.verify(folder))
    with pytest.raises(InputError, match="no set below"):
        teacher_sets_command.main(Config(tmp_path / "empty", verify=True))


class SlowTeacher:
    """The random miniature, a third of a second for each chunk."""

    def __init__(self) -> None:
        self._teacher = miniature(stream(0, "worker"))
        for name in ("sha256", "num_classes", "noise_dim", "resolution", "sample_noise"):
            setattr(self, name, getattr(self._teacher, name))

    def render(self, *arguments) -> torch.Tensor:
        time.sleep(0.3)
        return self._teacher.render(*arguments)


CONFIG = TeacherSetConfig(Mechanism.TEXTURE, 120)


def work(folder: Path, done: Connection) -> None:
    for written, _ in TeacherSet.write(folder, SlowTeacher(), CONFIG):
        done.send(written)


def test_a_killed_worker_leaves_a_set_that_the_other_completes(tmp_path: Path) -> None:
    """Two workers share the work without talking to each other; SIGKILL of one costs the shard it was at."""
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(2)]
    workers = [fork.Process(target=work, args=(tmp_path, write)) for _, write in pipes]
    for worker in workers:
        worker.start()
    for _ in range(3):  # the start, and two shards of its own
        assert pipes[0][0].poll(60)
        pipes[0][0].recv()
    time.sleep(0.2)  # into the third
    workers[0].kill()
    workers[0].join(60)
    assert workers[0].exitcode == -signal.SIGKILL
    workers[1].join(300)
    assert workers[1].exitcode == 0

    assert all(intact for _, intact in shards.verify(tmp_path))
    stored = TeacherSet(tmp_path)
    records = stored.records(torch.arange(len(stored)))
    assert len({tuple(row) for row in records.noise.tolist()}) == len(stored) == 1200  # none twice
    teacher = miniature(stream(0, "worker"))
    for label in range(10):
        again = draw_shard(teacher, CONFIG, label)
        own = slice(120 * label, 120 * (label + 1))
        assert torch.equal(again.noise, records.noise[own])
        assert torch.equal(to_float(again.images), records.images[own])


def test_two_workers_do_not_do_the_same_work(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    """While another process holds a shard's lock, a worker does the others first, and then waits for that one."""
    drawn = []

    class Noting(SlowTeacher):
        def render(self, mechanism, noise, labels) -> torch.Tensor:
            drawn.append(labels[0].item())
            return self._teacher.render(mechanism, noise, labels)

    config = TeacherSetConfig(Mechanism.SHAPE, 1)
    lock = shards._lock(tmp_path, "class-0002.safetensors")
    lock.acquire()
    writing = TeacherSet.write(tmp_path, Noting(), config, range(4))
    assert [written for written, _ in islice(writing, 4)] == [0, 1, 2, 3]
    assert drawn == [0, 1, 3]
    lock.release()
    assert next(writing) == (4, 4)
    assert drawn == [0, 1, 3, 2]


def test_command_writes_what_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not MINIATURE_FILE.exists():
        pytest.skip("needs the fitted miniature")
    config = Config(tmp_path, "miniature", mechanism="shape", classes="0-2", per_class=3)
    teacher_sets_command.main(replace(config, dry_run=True))
    assert "3 classes x 3 records, 10.4kB" in capsys.readouterr().out
    assert not list(tmp_path.rglob("class-*"))
    teacher_sets_command.main(config)
    (folder,) = (path.parent for path in tmp_path.rglob("set.json"))
    assert len(json.loads((folder / "set.json").read_text())["shards"]) == 3
    assert len(TeacherSet(folder, (0, 1, 2))) == 9


def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    for config, words in (
        (Config(tmp_path), "python -m skdcgn weights"),
        (Config(tmp_path, checkpoint=tmp_path / "no.pth"), "no ImageNet CGN at"),
    ):
        with pytest.raises(SystemExit) as exit_:
            entry(lambda config=config: teacher_sets_command.main(config))
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err


# --- damaged sets


@pytest.fixture
def written(tmp_path: Path, random_teacher: MNISTTeacher) -> Path:
    list(TeacherSet.write(tmp_path, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))
    return tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Put the shard of another class in a shard's place, with its time of writing."""
    other = path.with_name("class-0002.safetensors")
    path.unlink()
    shutil.copy2(other, path)


@pytest.mark.parametrize("damage", [flip, exchange, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_is_refused_and_drawn_again(
    written: Path, random_teacher: MNISTTeacher, damage: Callable[[Path], object]
) -> None:
    whole = TeacherSet(written).records(torch.arange(20))
    shard = written / "class-0004.safetensors"
    damage(shard)
    sentence = rf"^shard {shard} is missing or damaged: run the command that wrote the set again, and it will be drawn"
    with pytest.raises(InputError, match=sentence):
        TeacherSet(written)
    list(TeacherSet.write(written, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2)))
    again = TeacherSet(written).records(torch.arange(20))
    assert all(torch.equal(first, second) for first, second in zip(whole, again, strict=True))


def test_a_shard_is_compared_with_its_checksum_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    sha256 = shards.sha256
    monkeypatch.setattr(shards, "sha256", lambda path: compared.append(path.name) or sha256(path))
    TeacherSet(written)
    assert compared == []  # they were when they were written
    shard = written / "class-0003.safetensors"
    os.utime(shard)
    for _ in range(2):
        TeacherSet(written)
    assert compared == [shard.name]


def test_a_whole_set_is_read_where_nothing_can_be_written(
    written: Path, random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    shutil.rmtree(written / ".locks")
    for name in ("write_bytes", "write_text", "mkdir"):
        monkeypatch.setattr(Path, name, refuse)
    config = TeacherSetConfig(Mechanism.SHAPE, per_class=2)
    assert list(TeacherSet.write(written, random_teacher, config)) == [(10, 10)]
    assert len(TeacherSet(written)) == 20


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"shards": 3}', "{}", "\x00", '{"shards": {"class-0000.safetensors": "abc"}}', "[" * 100_000]
    + [f'{{"shards": {{"{name}": "{"0" * 64}"}}}}' for name in ("../secret.safetensors", "/etc/passwd", "..", "a/b")],
)
def test_a_damaged_index_is_told_and_its_names_lead_nowhere(
    written: Path, random_teacher: MNISTTeacher, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = written / "set.json"
    index.write_text(content)
    monkeypatch.setattr(shards, "sha256", lambda path: pytest.fail(f"{path} is read"))
    for use in (
        lambda: TeacherSet(written),
        lambda: list(TeacherSet.write(written, random_teacher, TeacherSetConfig(Mechanism.SHAPE, per_class=2))),
        lambda: list(shards.verify(written)),
    ):
        with pytest.raises(
            InputError, match=rf"^{index} is damaged: restore .* or remove {written} and run the command"
        ):
            use()


@pytest.mark.parametrize("field", [{"per_class": 3}, {"num_classes": None}, {"per_class": "two"}, {"per_class": 0}])
def test_an_index_that_does_not_fit_is_told(written: Path, field: dict[str, object]) -> None:
    index = written / "set.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | field))
    with pytest.raises(
        InputError, match=rf"(describes no teacher set|is not what set.json .* describes).*remove {written}"
    ):
        TeacherSet(written)


def test_a_set_of_another_kind_is_told(written: Path) -> None:
    with pytest.raises(InputError, match=r"set\.json describes no counterfactual data set: name another folder"):
        CounterfactualSet(written)
