"""Size and speed of the MNIST students beside the teacher's mechanism that they distill.

    python -m benchmarks.inference                                    a few minutes
    python -m benchmarks.inference --repeats 200 --out inference.csv

Parameters, multiply-accumulates of one image, and latency of a batch, in fp32 and eval mode. Teacher and students
render the same input in turn; the ratio is teacher / student within one round, so that above 1 the student is
faster. Weights are random: time does not depend on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tyro
from torch import Tensor

from benchmarks.timing import Machine, alternate, compare, report
from skdcgn import cli
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.configs.tinygan import NATIVE_MNIST, PUBLISHED_MNIST
from skdcgn.counterfactuals.students import render
from skdcgn.data.labels import balanced_labels
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.networks import TinyGANGenerator

STUDENTS = {"native student": NATIVE_MNIST, "published student": PUBLISHED_MNIST}


@dataclass(frozen=True)
class Config:
    """Size and latency of students and teacher."""

    batch_sizes: tuple[int, ...] = (1, 64)
    """Images a call."""
    repeats: int = 60
    """Timed rounds."""
    warmup: int = 5
    """Rounds before them."""
    seed: int = 0
    """Of the weights, the noise and the bootstrap."""
    out: Path | None = None
    """A CSV file to write as well."""
    runtime: Machine = field(default_factory=Machine)


def main(config: Config) -> list[dict[str, object]]:
    """Measure, print the table and return its rows."""
    device = config.runtime.setup()
    with seeded(config.seed, "benchmark"):
        teacher = MNISTTeacher(CGN(), "random weights", sha256="", stand_in=True, device=device)
    rows = []
    for mechanism in Mechanism:
        with seeded(config.seed, "benchmark", mechanism):
            students = {name: TinyGANGenerator(student.for_mechanism(mechanism)) for name, student in STUDENTS.items()}
        sources: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"teacher": partial(teacher.render, mechanism)}
        parameters = {"teacher": teacher.parameters(mechanism)}
        for name, student in students.items():
            sources[name] = partial(render, student.to(device).eval(), mechanism)
            parameters[name] = cost.parameters(student)
        random = stream(config.seed, "benchmark", mechanism)
        noise = teacher.sample_noise(max(config.batch_sizes), random).to(device)
        labels = balanced_labels(len(noise), teacher.num_classes)[: len(noise)].to(device)
        macs = {name: cost.macs(partial(source, noise[:1], labels[:1])) for name, source in sources.items()}
        for size in config.batch_sizes:
            calls = {name: partial(source, noise[:size], labels[:size]) for name, source in sources.items()}
            seconds = alternate(calls, config.repeats, config.warmup, device)
            rows += [
                {
                    "mechanism": mechanism.value,
                    "source": name,
                    "parameters": parameters[name],
                    "mega_macs": macs[name] / 1e6,
                    "batch": size,
                    **row,
                }
                for name, row in compare(seconds, "teacher", config.seed).items()
            ]
    report(rows, device, config.out)
    return rows


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, description=__doc__)))
