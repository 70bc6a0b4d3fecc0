"""Teacher records per second, MNIST: rendered on the fly, and read from a stored teacher set.

    python -m benchmarks.teacher_sampling                             under a minute
    python -m benchmarks.teacher_sampling --batch-size 256 --out sampling.csv

A record is noise, label and image. The teacher has random weights: time does not depend on them. Ratio is fresh /
stored within one round of a batch each.
"""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import tyro

from benchmarks.timing import Machine, alternate, compare, report
from skdcgn import cli
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.records import FreshBatches
from skdcgn.tinygan.teacher_sets import StoredBatches, TeacherSet, TeacherSetConfig


@dataclass(frozen=True)
class Config:
    """Teacher records per second."""

    batch_size: int = 64
    """Records a batch."""
    per_class: int = 1000
    """Records of each class in the stored set (the paper's 1000)."""
    repeats: int = 60
    """Timed rounds."""
    warmup: int = 5
    """Rounds before them."""
    seed: int = 0
    """Of the teacher's weights, the noise and the bootstrap."""
    out: Path | None = None
    """A CSV file to write as well."""
    runtime: Machine = field(default_factory=Machine)


def main(config: Config) -> list[dict[str, object]]:
    """Measure, print the table and return its rows."""
    device = config.runtime.setup()
    teacher, writer = _teacher(config.seed, device), _teacher(config.seed, torch.device("cpu"))
    rows = []
    for mechanism in Mechanism:
        random = partial(stream, config.seed, "benchmark", mechanism)
        with tempfile.TemporaryDirectory() as folder:
            for _ in TeacherSet.write(Path(folder), writer, TeacherSetConfig(mechanism, config.per_class, config.seed)):
                pass
            sources = {
                "fresh": FreshBatches(teacher, mechanism, config.batch_size, random(device=device)),
                "stored": StoredBatches(TeacherSet(Path(folder)), config.batch_size, random(), device),
            }
            calls = {name: partial(next, batches) for name, batches in sources.items()}
            seconds = alternate(calls, config.repeats, config.warmup, device)
        for name, row in compare(seconds, "fresh", config.seed).items():
            rate = config.batch_size / (row["ms"] / 1000)
            rows.append({"mechanism": mechanism.value, "records": name, "records_per_second": rate, **row})
    report(rows, device, config.out)
    return rows


def _teacher(seed: int, device: torch.device) -> MNISTTeacher:
    with seeded(seed, "benchmark"):
        return MNISTTeacher(CGN(), "random weights", sha256="", stand_in=True, device=device)


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, description=__doc__)))
