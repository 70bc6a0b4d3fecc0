"""Train a CGN for an MNIST variant: a teacher of our own (paper Sec. 2 and 4.1).

    python experiments/train_cgn_mnist.py --dataset digits          scikit-learn's digits: no network, no data
    python experiments/train_cgn_mnist.py --dataset double_colored  the real MNIST

The run keeps the generator as `cgn.safetensors`.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from skdcgn import cli, runtime, tracking
from skdcgn.cgn_training import CGNTrainer, CGNTrainingConfig, save_cgn
from skdcgn.counterfactuals import sample_counterfactuals
from skdcgn.data import Dataset, make_dataset
from skdcgn.errors import InputError
from skdcgn.images import grid
from skdcgn.mechanisms import Mechanism
from skdcgn.models.cgn_mnist import CGN
from skdcgn.profiles import MNIST, Profile
from skdcgn.runtime import Runtime
from skdcgn.teachers import MNISTTeacher, balanced_labels, mnist_teacher
from skdcgn.training import evaluation_steps, train

DESCRIPTION = """Adversarial training of a CGN for an MNIST variant: a teacher of our own.
The sample sheet shows, from top to bottom, masks, textures, backgrounds, images, and images with permuted labels."""


@dataclass(frozen=True)
class Config:
    """Training of an MNIST CGN."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    training: CGNTrainingConfig
    dataset: Dataset = "double_colored"
    """What to train on."""
    evaluations: int = 5
    """Sample sheets during training."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {name: Config(name, scale.cgn) for name, scale in MNIST.items()}


def main(config: Config) -> str:
    """Train the CGN unless that was done before; return the id of its run."""
    device = runtime.setup(config.runtime)
    store = tracking.open_store()
    tags = {
        "profile": config.profile,
        "dataset": config.dataset,
        "seed": config.training.seed,
        "source": "cgn",
        "paper": "Sec. 4.1",
    }
    with store.start("train_cgn_mnist", config, f"CGN on {config.dataset}", tags=tags, description=DESCRIPTION) as run:
        if run.finished:
            print(f"CGN on {config.dataset}: finished before (run {run.run_id}), skipped")
            return run.run_id
        data = make_dataset(config.dataset, "train", config.training.seed)
        trainer = CGNTrainer(config.training, data, device=device)
        run.set_tags({"perceptual": trainer.perceptual})

        def evaluate(step: int) -> None:
            run.log_image("samples", sample_sheet(trainer.ema), step)

        steps = evaluation_steps(trainer.steps, config.evaluations)
        train(trainer, run, config.runtime, evaluate, steps, f"CGN on {config.dataset}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cgn.safetensors"
            save_cgn(path, trainer.ema, {"dataset": config.dataset, "run": run.run_id})
            run.log_file(path)
    return run.run_id


def sample_sheet(cgn: CGN) -> np.ndarray:
    """Draw two samples of each class: mask, texture, background, image, image with permuted labels."""
    teacher = MNISTTeacher(cgn, "in training", "")
    labels = balanced_labels(2, teacher.num_classes).to(next(cgn.parameters()).device)
    generator = runtime.stream(0, "sample sheet", device=labels.device)
    plain = sample_counterfactuals(teacher, labels, generator, permute=False)
    permuted = sample_counterfactuals(teacher, labels, generator)
    mask = Mechanism.SHAPE.to_image(plain.mask, 3)
    return grid([mask, plain.texture, plain.background, plain.images, permuted.images], scale=2)


def load_teacher(
    dataset: Dataset, profile: Profile, path: Path | None, runtime_config: Runtime, store: tracking.Store
) -> MNISTTeacher:
    """Return the teacher of an MNIST experiment.

    Args:
        dataset: whose CGN: the authors' one for an MNIST variant; for digits one of our own, trained now unless it
            was before. That one is a stand-in for the paper's.
        profile: scale of that training.
        path: another checkpoint than the authors'.
        runtime_config: where to run.
        store: where the training is tracked.

    Raises:
        InputError: the weights are not at hand, or a checkpoint is given for digits.
    """
    device = runtime.setup(runtime_config)
    if dataset != "digits":
        return mnist_teacher(dataset, path, device)
    if path is not None:
        raise InputError("--dataset digits trains its own teacher: leave --teacher out, or choose another --dataset.")
    run_id = main(replace(DEFAULTS[profile], dataset="digits", runtime=runtime_config))
    with store.artifact(run_id, "cgn.safetensors") as trained:
        return mnist_teacher(dataset, trained, device, name="our CGN on digits", stand_in=True)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
