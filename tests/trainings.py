"""Short trainings that have to come to the same on any number of processes; torchrun starts this file.

    torchrun --nproc_per_node 2 tests/trainings.py FOLDER NAME...

Each process writes what a training came to as FOLDER/NAME-RANK.pt, see `finish`. It goes on from the checkpoint
FOLDER/NAME.pt where there is one, and writes one there after half of the steps otherwise.

Most of them compute in double precision. In single precision rounding decides where a training goes: Adam makes whole
steps of gradients that are nothing but rounding errors, such as those of a bias before a batch norm, and one process
with another convolution kernel ends as far from itself as two processes do.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skdcgn import distributed
from skdcgn.cgn.adversarial import CGNTrainer, CGNTrainingConfig
from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.cgn.mnist import CGN
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.data.mnist import make_dataset
from skdcgn.errors import InputError
from skdcgn.files import load_checkpoint, save_checkpoint
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.distillation import DistillConfig, Distiller
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches
from skdcgn.training import Trainer

STEPS = 50
TINY = TinyGANConfig(width=4)
DISTILL = DistillConfig(steps=STEPS, batch_size=8, schedule="cosine", ema=0.9, precision="fp32")
CGN_TRAINING = CGNTrainingConfig(
    steps=STEPS, batch_size=4, texture_every=2, texture_warmup=10, perceptual="random", ema=0.9, precision="fp32"
)
"""With `flat_start`, `color` would have ties to sort, which rounding decides even in double precision."""


def distillation(mechanism: Mechanism, **loss: Any) -> Distiller:
    """Distill a CGN with random weights."""
    with seeded(0, "teacher"):
        teacher = MNISTTeacher(CGN(), "random CGN", "0" * 64)
    objective, architecture = LossConfig(**loss), TINY.for_mechanism(mechanism)
    with seeded(distributed.rank(), "student"):  # as if the processes had not started alike: process 0's weights count
        student = TinyGANGenerator(architecture)
        critic = TinyGANDiscriminator(architecture, width=4) if objective.needs_discriminator else None

    def batches(name: str) -> FreshBatches:
        return FreshBatches(teacher, mechanism, DISTILL.batch_size, stream(0, name))

    real = batches("real") if objective.real else None
    return Distiller(student, critic, batches("train"), 10, DISTILL, objective, real=real)


def cgn(networks: Callable[[], TinyGANCGN] | None = None, **changes: Any) -> CGNTrainer:
    """Train a CGN on digits: its own networks, or others."""
    with seeded(0, "networks"):
        start = networks and networks()
    return CGNTrainer(replace(CGN_TRAINING, **changes), make_dataset("digits", "train", 0, limit=200), start)


TRAININGS: dict[str, Callable[[], Trainer]] = {
    "shape_single": lambda: distillation(Mechanism.SHAPE),
    "shape": lambda: distillation(Mechanism.SHAPE),
    "texture": lambda: distillation(
        Mechanism.TEXTURE, kl=0.5, kl_on="activations", cross_entropy=0.1, real=0.2, n_critic=2
    ),
    "background": lambda: distillation(Mechanism.BACKGROUND, feature=0, lambda_1=1, lambda_2=0, kl=0.5),
    "cgn": lambda: cgn(intervention="noise", color=0.0),
    "cgn_conv": lambda: cgn(discriminator="conv", paired_labels=False, flat_start=False, intervention="rotation"),
    "baseline": lambda: cgn(lambda: TinyGANCGN(TINY)),
}
"""Those named `..._single` compute in single precision."""


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Compute in the precision of a training of this name, even where the code asks for `float()`."""
    single = torch.float32, Tensor.float
    if not name.endswith("_single"):
        torch.set_default_dtype(torch.float64)
        Tensor.float = Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(single[0])
        Tensor.float = single[1]


def finish(trainer: Trainer) -> dict[str, Any]:
    """Train to the end; return the losses of each step from there on, and all that a checkpoint holds."""
    losses = {step: terms for step, terms in trainer.fit()}
    return {"losses": losses, "state": trainer.state_dict()}


def run(name: str, checkpoint: Path) -> dict[str, Any]:
    """Run a training, as the module says, and return what it came to."""
    with precision(name):
        trainer = TRAININGS[name]()
        if checkpoint.exists():
            trainer.load_state_dict(load_checkpoint(checkpoint))
            return finish(trainer)
        for step, _ in trainer.fit():
            if step == STEPS // 2:
                break
        if distributed.leads():
            save_checkpoint(checkpoint, trainer.state_dict())
        return finish(trainer)


def agreement() -> dict[str, Any]:
    """Return what this process and the other one say to each other."""
    try:
        distributed.share(7)
        refused = ""
    except InputError as error:
        refused = str(error)
    whole = torch.arange(6.0).reshape(6, 1)
    own = whole[distributed.share(6)].requires_grad_()
    draws = stream(0, "draws")
    drawn = distributed.as_whole(lambda records: records * torch.rand(records.shape, generator=draws), own)
    drawn.sum().backward()
    return {
        "rank": distributed.rank(),
        "heard": distributed.broadcast(f"from {distributed.rank()}"),
        "signal": distributed.any_of(15 if distributed.rank() else None),
        "refused": refused,
        "gathered": distributed.gather(own),
        "mean": distributed.mean(own),
        "drawn": drawn.detach(),
        "gradient": own.grad,
    }


def main(folder: Path, names: list[str]) -> None:
    """Run trainings of these names."""
    torch.set_num_threads(1)
    with distributed.group(torch.device("cpu")):
        torch.save(agreement(), folder / f"agreement-{distributed.rank()}.pt")
        for name in names:
            torch.save(run(name, folder / f"{name}.pt"), folder / f"{name}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
