"""Sources of counterfactuals by name: checkpoints, and what runs have kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from skdcgn.cgn.mnist import CGN
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.weights import save_state_dict
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism, NoisePrior, Source
from skdcgn.randomness import seeded
from skdcgn.recipes.sources import load_source
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANGenerator, save_generator

SMALL = TinyGANConfig(resolution=8, width=2, blocks=1)


@dataclass
class FakeStore:
    """Runs that are folders of files: the part of a run store that sources are loaded from."""

    root: Path
    runs: dict[str, SimpleNamespace] = field(default_factory=dict)

    def add(self, run_id: str, status: str = "FINISHED", **tags: str) -> Path:
        """Add a run, and return the folder of what it keeps."""
        self.runs[run_id] = SimpleNamespace(run_id=run_id, experiment="some_study", status=status, tags=tags)
        (self.root / run_id).mkdir()
        return self.root / run_id

    def record(self, run_id: str) -> SimpleNamespace:
        if run_id not in self.runs:
            raise InputError(f"the store has no run {run_id}: correct the id.")
        return self.runs[run_id]

    def files(self, run_id: str) -> list[str]:
        return sorted(path.name for path in (self.root / run_id).iterdir())

    @contextmanager
    def artifact(self, run_id: str, path: str) -> Iterator[Path]:
        yield self.root / run_id / path


@pytest.fixture
def fake(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path)


def students(seed: int, prior: NoisePrior) -> dict[Mechanism, TinyGANGenerator]:
    with seeded(seed, "students"):
        return {m: TinyGANGenerator(SMALL.for_mechanism(m), prior=prior) for m in Mechanism}


def same_mask(a: Source, b: Source) -> bool:
    noise, labels = torch.ones(2, 32), torch.tensor([1, 2])
    return torch.equal(*(each.render(Mechanism.SHAPE, noise, labels) for each in (a, b)))


@pytest.mark.parametrize("prior", [NoisePrior(), NoisePrior(0.5)])
def test_students_of_a_run_come_with_their_prior(fake: FakeStore, prior: NoisePrior) -> None:
    kept = fake.add("0123456789ab", stand_in="true")
    for mechanism, student in students(3, prior).items():
        save_generator(student, kept / mechanism.value)
    (kept / "counterfactuals.safetensors").touch()
    loaded = load_source("runs:/0123456789ab", fake)
    expected = SKDCGN(students(3, prior))
    assert loaded.sha256 == expected.sha256 != SKDCGN(students(4, prior)).sha256
    assert loaded.prior == prior
    assert loaded.name == "students (run 01234567 of some_study)"
    assert loaded.stand_in
    assert same_mask(loaded, expected)


def test_cgn_of_a_run(fake: FakeStore) -> None:
    path = fake.add("a1", dataset="digits") / "cgn.safetensors"
    save_state_dict(path, CGN().state_dict())
    loaded, from_file = load_source("runs:/a1", fake), load_source(str(path))
    assert loaded.name == "our CGN on digits (run a1 of some_study)"
    assert loaded.stand_in
    assert not from_file.stand_in
    assert loaded.sha256 == from_file.sha256
    assert same_mask(loaded, from_file)


@pytest.mark.data
@pytest.mark.parametrize("variant", ["double_colored", "colored", "wildlife"])
def test_authors_teachers(data_dir: Path, variant: str) -> None:
    teacher = load_source(f"cgn:{variant}")
    assert variant in teacher.name
    assert not teacher.stand_in


def test_what_is_no_source_is_told(fake: FakeStore, tmp_path: Path) -> None:
    save_generator(students(0, NoisePrior())[Mechanism.SHAPE], fake.add("a2") / "shape")
    fake.add("a3", status="FAILED")
    (tmp_path / "notes.txt").write_text("nothing")
    for spec, words in {
        "cgn:imagenet": "double_colored, colored, wildlife",
        "runs:/0123": "no run 0123",
        "runs:/a2": "neither cgn.safetensors nor a texture student",
        "runs:/a3": "FAILED, not finished",
        str(tmp_path / "missing.pth"): "no source",
        str(tmp_path / "notes.txt"): "notes.txt",
    }.items():
        with pytest.raises(InputError, match=words):
            load_source(spec, fake)
    with pytest.raises(InputError, match="run store"):
        load_source("runs:/0123")
