"""Sources of counterfactuals by name: checkpoints, and what runs have trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from skdcgn.cgn.adversarial import save_cgn
from skdcgn.cgn.mnist import CGN
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import seeded
from skdcgn.recipes.sources import finished_group, load_source
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANGenerator

SMALL = TinyGANConfig(resolution=8, width=2, blocks=1)


@dataclass(frozen=True)
class Config:
    mechanism: str = "all"
    seeds: tuple[int, ...] = (0,)
    steps: int = 1
    runtime: Runtime = field(default_factory=Runtime)


def student(mechanism: Mechanism, seed: int) -> TinyGANGenerator:
    with seeded(seed, "student", mechanism):
        return TinyGANGenerator(SMALL.for_mechanism(mechanism))


@contextmanager
def group(store: run_store.Store, config: Config, sha256: str = "a") -> Iterator[run_module.Run]:
    tags = {"teacher_sha256": sha256, "stand_in": True, "dataset": "digits"}
    with store.start("mnist_kd", config, "group", {"teacher": sha256, "level": "group"}, tags) as run:
        yield run


def add_students(store: run_store.Store, parent: run_module.Run, config: Config, sha256: str = "a") -> None:
    """Add the students of a group whose run is open, those of each of its seeds."""
    for seed in config.seeds:
        for mechanism in Mechanism:
            child = replace(config, mechanism=mechanism.value, seeds=(seed,))
            tags = {"teacher_sha256": sha256, "mechanism": mechanism.value, "seed": seed}
            with store.start("mnist_kd", child, mechanism.value, {"teacher": sha256}, tags, parent) as run:
                if not run.finished:
                    run.log_student(student(mechanism, seed))


def same_mask(a: Source, b: Source) -> bool:
    noise, labels = torch.ones(2, 32), torch.tensor([1, 2])
    return torch.equal(*(each.render(Mechanism.SHAPE, noise, labels) for each in (a, b)))


def students_of(seed: int) -> SKDCGN:
    return SKDCGN({mechanism: student(mechanism, seed) for mechanism in Mechanism})


def test_students_of_a_run(store: run_store.Store) -> None:
    with group(store, Config(seeds=(2, 1)), "b") as other:
        add_students(store, other, Config(seeds=(2, 1)), "b")
    with group(store, Config(seeds=(3,))) as first:
        add_students(store, first, Config(seeds=(3,)))
    loaded = load_source(f"runs:/{first.run_id}", store)
    assert loaded.sha256 == students_of(3).sha256
    assert loaded.name == f"SKDCGN (run {first.run_id[:8]})"
    assert loaded.stand_in
    assert same_mask(loaded, students_of(3))
    assert load_source(f"runs:/{other.run_id}", store).sha256 == students_of(1).sha256  # the lowest seed


def test_students_that_an_earlier_run_trained(store: run_store.Store) -> None:
    with group(store, Config(seeds=(0, 1))) as first:
        add_students(store, first, Config(seeds=(0, 1)))
    with group(store, Config(seeds=(5,), steps=2)) as different:  # other settings: not to be mixed up
        add_students(store, different, Config(seeds=(5,), steps=2))
    with group(store, Config(seeds=(1,))) as later:
        add_students(store, later, Config(seeds=(1,)))
    assert later.run_id != first.run_id
    assert load_source(f"runs:/{later.run_id}", store).sha256 == students_of(1).sha256


def test_own_students_count_though_the_code_changed_in_between(
    store: run_store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with group(store, Config()) as run:
        monkeypatch.setattr(run_identity, "code_version", lambda _: "edited")
        add_students(store, run, Config())
    assert load_source(f"runs:/{run.run_id}", store).sha256 == students_of(0).sha256


def test_group_by_its_config(store: run_store.Store) -> None:
    with group(store, Config()) as run:
        pass
    assert finished_group(store, "mnist_kd", Config(runtime=Runtime(device="cpu"))) == run.run_id
    with pytest.raises(InputError, match="no finished run of mnist_kd"):
        finished_group(store, "mnist_kd", Config(steps=9))


def test_cgn_of_a_run(store: run_store.Store, tmp_path: Path) -> None:
    cgn = CGN()
    save_cgn(tmp_path / "cgn.safetensors", cgn)
    with store.start("train_cgn_mnist", Config(), "cgn", tags={"dataset": "digits"}) as run:
        run.log_file(tmp_path / "cgn.safetensors")
    loaded, from_file = load_source(f"runs:/{run.run_id}", store), load_source(str(tmp_path / "cgn.safetensors"))
    assert loaded.name == f"our CGN on digits (run {run.run_id[:8]})"
    assert loaded.stand_in
    assert not from_file.stand_in
    assert loaded.sha256 == from_file.sha256
    assert same_mask(loaded, from_file)


def test_baseline_of_a_run(store: run_store.Store) -> None:
    with store.start("baseline_mnist", Config(), "seed 0") as run:
        for mechanism in Mechanism:
            run.log_student(student(mechanism, 7), f"student_{mechanism}")
    loaded = load_source(f"runs:/{run.run_id}", store)
    assert loaded.sha256 == students_of(7).sha256
    assert loaded.name.startswith("baseline")


@pytest.mark.data
@pytest.mark.parametrize("variant", ["double_colored", "colored", "wildlife"])
def test_authors_teachers(data_dir: Path, variant: str) -> None:
    teacher = load_source(f"cgn:{variant}")
    assert variant in teacher.name
    assert not teacher.stand_in


def test_what_is_no_source_is_told(store: run_store.Store, tmp_path: Path) -> None:
    with group(store, Config()) as parent:
        add_students(store, parent, Config())
    child = next(run for run in store.search("mnist_kd") if "mlflow.parentRunId" in run.data.tags)
    with group(store, Config(steps=3)) as incomplete:
        pass
    with pytest.raises(RuntimeError), group(store, Config(steps=4)) as failed:
        raise RuntimeError("out of luck")
    (tmp_path / "notes.txt").write_text("nothing")
    for spec, words in {
        "cgn:imagenet": "double_colored, colored, wildlife",
        "runs:/0123": "no run 0123 of mnist_kd, train_cgn_mnist, baseline_mnist",
        "runs:/' or 1": "no run",
        f"runs:/{child.info.run_id}": f"runs:/{parent.run_id}",
        f"runs:/{incomplete.run_id}": "no shape and no texture and no background student",
        f"runs:/{failed.run_id}": "FAILED, not finished",
        str(tmp_path / "missing.pth"): "no source",
        str(tmp_path / "notes.txt"): "notes.txt",
    }.items():
        with pytest.raises(InputError, match=words):
            load_source(spec, store)
    with pytest.raises(InputError, match="run store"):
        load_source("runs:/0123")
