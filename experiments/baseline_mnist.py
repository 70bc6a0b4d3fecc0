"""The paper's baseline on MNIST: a CGN whose mechanisms are TinyGANs, trained without a teacher (Sec. 4.2).

    python experiments/baseline_mnist.py                                 on double-colored MNIST, minutes
    python experiments/baseline_mnist.py --dataset digits --seeds 0      no network, no data

It has the students' architecture and the CGN's training: what it lacks beside SKDCGN is the distillation. The paper
shows its baseline on ImageNet only (Figs. 8-10, `baseline_cgn_tinygan.py`).
"""

from dataclasses import dataclass, field, replace

import pandas as pd
import torch

from experiments.train_cgn_mnist import sample_tensors, train_and_measure
from skdcgn import cli, runtime
from skdcgn.cgn.adversarial import CGNTrainer, CGNTrainingConfig
from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.data.mnist import Dataset, make_dataset
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded
from skdcgn.recipes.profiles import MNIST, Profile
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANConfig

DESCRIPTION = """The baseline on MNIST: a CGN with TinyGAN generators, trained adversarially, without distillation.
`final/valid_accuracy` and `final/test_accuracy`: of a classifier that learnt from its counterfactuals alone, where
colours or textures tell nothing. Feeds the robustness table."""


@dataclass(frozen=True)
class Config:
    """Training of a CGN with TinyGAN generators."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    training: CGNTrainingConfig
    """Its `seed` is overwritten by each of `seeds`."""
    counterfactuals: int
    """Counterfactuals that the classifier learns from which judges the CGN."""
    classifier: ClassifierConfig
    """Training of that classifier."""
    seeds: tuple[int, ...]
    """One baseline for each seed."""
    student: TinyGANConfig = NATIVE_MNIST
    """Architecture of the three generators; they draw the data's own 32x32 pixels."""
    dataset: Dataset = "double_colored"
    """What to train on."""
    evaluations: int = 5
    """Sample sheets during training."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {
    name: Config(name, scale.cgn, scale.cgn_images, scale.classifier, scale.baseline_seeds)
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every baseline that is not there yet; return `run_id` and the final metrics of each, by seed."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    overrides = run_identity.overrides(config, DEFAULTS[config.profile], ("dataset", "seeds"))
    tags = {"profile": config.profile, "dataset": config.dataset, "overrides": overrides}
    tags |= {"source": "baseline", "paper": "Sec. 4.2"}
    rows = []
    name = f"{config.dataset} {config.profile}"
    with store.start("baseline_mnist", config, name, {"level": "group"}, tags, description=DESCRIPTION) as group:
        for seed in config.seeds:
            child = replace(config, seeds=(seed,), training=replace(config.training, seed=seed))
            child_tags = {**tags, "seed": seed}
            with store.start("baseline_mnist", child, f"seed {seed}", None, child_tags, group, DESCRIPTION) as run:
                if run.finished:
                    print(f"baseline, seed {seed}: finished before (run {run.run_id}), skipped")
                else:
                    train_baseline(run, child, device)
            rows.append({"seed": seed, "run_id": run.run_id, **run.final})
    table = pd.DataFrame(rows).set_index("seed")
    print(table[["valid_accuracy", "test_accuracy", "stroke_iou"]].to_string(float_format="{:.3f}".format))
    return table


def train_baseline(run: run_module.Run, config: Config, device: torch.device) -> None:
    """Train one baseline as a run, which keeps its generators as `student_<mechanism>`."""
    with seeded(config.training.seed, "baseline"):
        cgn = TinyGANCGN(config.student)
    data = make_dataset(config.dataset, "train", config.training.seed)
    trainer = CGNTrainer(config.training, data, cgn, device)
    trained = train_and_measure(run, trainer, config, device)
    for mechanism in Mechanism:
        run.log_student(trainer.result.network(mechanism), f"student_{mechanism}")
    run.log_tensors("samples", sample_tensors(trained))


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
