"""ImageNet at full size: teacher, student step, memory, and whether to store the teacher's pictures.

    python -m benchmarks.imagenet_step                                       one CPU thread: minutes, 4 GB
    python -m benchmarks.imagenet_step --runtime.device cuda --batch-size 32 --repeats 20 --mechanism texture
    python -m benchmarks.imagenet_step --size miniature                      seconds

The teacher is a CGN of the authors' sizes with random weights (time does not depend on them), the student the paper's,
with its discriminator and losses. Peak memory is the process's own on a CPU, PyTorch's on a GPU. The share of the peak
is of a large bf16 matrix product measured on the same device.

Fresh records cost the teacher's time t in every epoch, stored ones t and the time w to write once, and r to read each
time: for a training of E epochs storing pays where E > (t + w) / (t - r).
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Machine, alternate, describe
from skdcgn import cli
from skdcgn.cgn.imagenet import CGN_256, MINIATURE, PARTS_OF, ImageNetCGN
from skdcgn.cgn.teachers import ImageNetTeacher
from skdcgn.configs.tinygan import NATIVE_MNIST, PUBLISHED_IMAGENET, DistillConfig, LossConfig, TinyGANConfig
from skdcgn.files import atomic_path
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision
from skdcgn.tinygan.distillation import Distiller
from skdcgn.tinygan.networks import TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import Records, draw_records
from skdcgn.tinygan.teacher_sets import StoredBatches, TeacherSet, TeacherSetConfig

_EPOCHS, _RECORDS = 30, 1_000_000  # the paper's training of one mechanism


@dataclass(frozen=True)
class Config:
    """ImageNet at full size: time and memory."""

    mechanism: Literal["shape", "texture", "background"] = "shape"
    """The mechanism to render and to distill."""
    size: Literal["full", "miniature"] = "full"
    """The authors' sizes at 256x256, or the miniature's at 32x32."""
    batch_size: int = 8
    """Records a step (the paper's 32 where memory allows)."""
    precision: Precision = "bf16"
    """Precision of the student's step."""
    teacher_precision: Precision = "fp32"
    """Precision of the teacher."""
    repeats: int = 5
    """Timed rounds; a multiple of 5 has the fair share of steps with the adversarial term."""
    warmup: int = 1
    """Rounds before them."""
    stored: int = 100
    """Records that writing and reading are timed with."""
    seed: int = 0
    """Of weights and noise."""
    out: Path | None = None
    """A CSV file to write as well."""
    runtime: Machine = field(default_factory=Machine)


def main(config: Config) -> list[dict[str, object]]:
    """Measure, print the table, and return its rows."""
    device, mechanism = config.runtime.setup(), Mechanism(config.mechanism)
    teacher = random_teacher(config, mechanism, device)
    distiller = random_distiller(config, mechanism, device)
    random = stream(config.seed, "benchmark", device=device)
    labels = torch.arange(config.batch_size, device=device) % teacher.num_classes
    render = partial(draw_records, teacher, mechanism, labels, random)
    update = partial(distiller.update, (render(), None))
    with tempfile.TemporaryDirectory() as folder:
        write, read = storage(config, teacher, mechanism, Path(folder), device)
        calls = {"teacher": render, "student step": update, "read": read, "write": write}
        records = {"write": max(config.stored, config.batch_size)}
        flops = {name: _flops(calls[name]) for name in ("teacher", "student step")}
        seconds = {
            name: statistics.median(times)
            for name, times in alternate(calls, config.repeats, config.warmup, device).items()
        }
    peak = matrix_product(device)
    rows = [
        {
            "what": name,
            "images_per_second": records.get(name, config.batch_size) / time,
            "ms_per_image": 1000 * time / records.get(name, config.batch_size),
            "gflop_per_image": flops[name] / config.batch_size / 1e9 if name in flops else float("nan"),
            "share_of_peak": flops[name] / time / peak if name in flops else float("nan"),
        }
        for name, time in seconds.items()
    ]
    shared = {
        "mechanism": mechanism.value,
        "batch_size": config.batch_size,
        "peak_memory_gib": peak_memory(device) / 2**30,
        "matrix_product_tflops": peak / 1e12,
        **trade({row["what"]: row["ms_per_image"] / 1000 for row in rows}),
    }
    machine = describe(device)
    print("\n".join(f"{name:22} {value}" for name, value in {**machine, **shared}.items()))
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    if config.out is not None:
        with atomic_path(config.out) as path:
            pd.DataFrame([row | shared | machine for row in rows]).to_csv(path, index=False)
    return [row | shared for row in rows]


def trade(seconds: dict[str, float]) -> dict[str, float]:
    """Compare stored records with fresh ones.

    Args:
        seconds: of one record each: `teacher`, `student step`, `read`, `write`.

    Returns:
        `crossover_epochs` beyond which storing pays (infinite where reading is no faster than rendering), and the hours
        of the paper's training of one mechanism (30 epochs of a million records) either way.
    """
    t, s, r, w = (seconds[name] for name in ("teacher", "student step", "read", "write"))
    return {
        "crossover_epochs": (t + w) / (t - r) if t > r else float("inf"),
        "hours_fresh": _EPOCHS * _RECORDS * (s + t) / 3600,
        "hours_stored": _RECORDS * (_EPOCHS * (s + r) + t + w) / 3600,
    }


def random_teacher(config: Config, mechanism: Mechanism, device: torch.device) -> ImageNetTeacher:
    """Return a teacher with random weights that has this mechanism's parts alone."""
    architecture = CGN_256 if config.size == "full" else MINIATURE
    cgn = ImageNetCGN(architecture, stream(config.seed, "benchmark"), PARTS_OF[mechanism])
    frozen = cgn.eval().requires_grad_(False)
    return ImageNetTeacher(
        lambda _: frozen, architecture, "random weights", "", device=device, precision=config.teacher_precision
    )


def random_distiller(config: Config, mechanism: Mechanism, device: torch.device) -> Distiller:
    """Return the training of the paper's student (of the miniature's at its size) with its discriminator."""
    student: TinyGANConfig = PUBLISHED_IMAGENET if config.size == "full" else NATIVE_MNIST
    student = student.for_mechanism(mechanism)
    steps = 10 * (config.warmup + config.repeats)
    distill = DistillConfig(steps=steps, batch_size=config.batch_size, precision=config.precision)
    with seeded(config.seed, "benchmark"):
        networks = TinyGANGenerator(student), TinyGANDiscriminator(student, distill.discriminator_width)
    # Every step is handed the same batch.
    return Distiller(*networks, iter(()), epoch_steps=steps, config=distill, loss=LossConfig(), device=device)


class _Blank:
    """A teacher that renders nothing, so that writing alone is timed."""

    def __init__(self, teacher: ImageNetTeacher) -> None:
        self.sha256, self.resolution = "", teacher.resolution
        self.num_classes, self.noise_dim = teacher.num_classes, teacher.noise_dim

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(n, self.noise_dim)

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), mechanism.channels, self.resolution, self.resolution)


def storage(
    config: Config, teacher: ImageNetTeacher, mechanism: Mechanism, folder: Path, device: torch.device
) -> tuple[Callable[[], object], Callable[[], Records]]:
    """Return what writes one shard of `config.stored` records, and what reads a batch of stored ones."""
    content = TeacherSetConfig(mechanism, max(config.stored, config.batch_size))

    def write() -> None:
        (folder / "class-0000.safetensors").unlink(missing_ok=True)
        for _ in TeacherSet.write(folder, _Blank(teacher), content, (0,)):
            pass

    write()
    opened = TeacherSet(folder, (0,))
    return write, partial(next, StoredBatches(opened, config.batch_size, stream(config.seed, "read"), device))


def matrix_product(device: torch.device) -> float:
    """Return the operations a second of a large bf16 matrix product: what this device can do at best."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.rand(side, side, device=device, dtype=torch.bfloat16)
    seconds = alternate({"": lambda: matrix @ matrix}, repeats=5, warmup=2, device=device)[""]
    return 2 * side**3 / min(seconds)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: by PyTorch on a GPU, by this process on a CPU (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0


def _flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of a call, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, description=__doc__)))
