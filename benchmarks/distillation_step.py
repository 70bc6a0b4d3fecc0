"""Time of one distillation step: the suite's against the published order of work.

    python -m benchmarks.distillation_step                            the paper's MNIST student, batch 64: minutes
    python -m benchmarks.distillation_step --runtime.threads 0        all cores: only where nothing else runs
    python -m benchmarks.distillation_step --runtime.device cuda --repeats 100 --warmup 10

All trainers start from the same weights and take their steps in turn on the same batch, in one process. A ratio is
published / suite within one round; the table has the median over rounds and its 95 % bootstrap interval.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import tyro
from torch.nn import functional as F

from benchmarks.published_step import PublishedDiscriminator, PublishedGenerator, PublishedTraining
from benchmarks.timing import Machine, alternate, compare, report
from skdcgn import cli
from skdcgn.configs.tinygan import PUBLISHED_MNIST, DistillConfig, LossConfig, TinyGANConfig
from skdcgn.errors import InputError
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision
from skdcgn.tinygan.distillation import Distiller
from skdcgn.tinygan.networks import TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import Records


@dataclass(frozen=True)
class Config:
    """Time of one distillation step, published against suite."""

    student: TinyGANConfig = PUBLISHED_MNIST
    """Architecture of the student."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    batch_size: int = 64
    """Records a step."""
    repeats: int = 15
    """Timed rounds; a multiple of 5 has the fair share of steps with the adversarial term."""
    warmup: int = 2
    """Rounds before them."""
    seed: int = 0
    """Of the weights, the batch and the bootstrap."""
    out: Path | None = None
    """A CSV file to write as well."""
    runtime: Machine = field(default_factory=Machine)


def main(config: Config) -> list[dict[str, object]]:
    """Measure, print the table and return its rows."""
    if config.student.label_input == "embedding":
        raise InputError(
            "the published step knows no label embedding at the input: give --student.label-input one_hot or none."
        )
    device = config.runtime.setup()
    with seeded(config.seed, "benchmark"):
        generator = TinyGANGenerator(config.student)
        discriminator = TinyGANDiscriminator(config.student, config.discriminator_width)
    batch = _batch(config, device)
    trainers = {
        "published fp32": _published(config, generator, discriminator, batch),
        "suite fp32": _suite("fp32", config, generator, discriminator, batch),
        "suite bf16": _suite("bf16", config, generator, discriminator, batch),
    }
    seconds = alternate(trainers, config.repeats, config.warmup, device)
    rows = [{"step": name, **row} for name, row in compare(seconds, "published fp32", config.seed).items()]
    report(rows, device, config.out)
    return rows


def _batch(config: Config, device: torch.device) -> Records:
    random = stream(config.seed, "benchmark batch")
    student, size = config.student, config.batch_size
    noise = torch.randn(size, student.noise_dim, generator=random)
    labels = torch.randint(student.num_classes, (size,), generator=random)
    images = torch.rand(size, student.channels, student.resolution, student.resolution, generator=random) * 2 - 1
    return Records(noise.to(device), labels.to(device), images.to(device))


def _published(
    config: Config, generator: TinyGANGenerator, discriminator: TinyGANDiscriminator, batch: Records
) -> partial[dict[str, float]]:
    published_generator = PublishedGenerator(config.student)
    published_generator.load_state_dict(generator.state_dict())
    published_discriminator = PublishedDiscriminator(config.student, config.discriminator_width)
    published_discriminator.load_state_dict(discriminator.state_dict())
    device = batch.noise.device
    training = PublishedTraining(published_generator.to(device), published_discriminator.to(device))
    return partial(training.update, batch.images, generator_inputs(batch, config.student), batch.labels)


def generator_inputs(batch: Records, student: TinyGANConfig) -> torch.Tensor:
    """Return noise and label as the published files hold them, as one vector: (B, input_dim)."""
    if student.label_input == "none":
        return batch.noise
    return torch.cat([batch.noise, F.one_hot(batch.labels, student.num_classes).to(batch.noise)], dim=1)


def _suite(
    precision: Precision,
    config: Config,
    generator: TinyGANGenerator,
    discriminator: TinyGANDiscriminator,
    batch: Records,
) -> partial[dict[str, float]]:
    own_generator = TinyGANGenerator(config.student)
    own_generator.load_state_dict(generator.state_dict())
    own_discriminator = TinyGANDiscriminator(config.student, config.discriminator_width)
    own_discriminator.load_state_dict(discriminator.state_dict())
    steps = config.warmup + config.repeats
    distill = DistillConfig(steps=steps, batch_size=config.batch_size, precision=precision)
    distiller = Distiller(
        own_generator,
        own_discriminator,
        batches=iter(()),  # every step is handed the same batch
        epoch_steps=steps,
        config=distill,
        loss=LossConfig(),
        device=batch.noise.device,
    )
    return partial(distiller.update, (batch, None))


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, description=__doc__)))
