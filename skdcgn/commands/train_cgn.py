"""Train a CGN for an MNIST variant, score it and write its weights (see `skdcgn.cgn.adversarial`).

python -m skdcgn train-cgn --dataset double_colored --out cgn.safetensors
"""

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path

from skdcgn.configs.cgn import CGNTrainingConfig
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.fields import Checked, PositiveInt
from skdcgn.configs.names import Dataset
from skdcgn.runtime import Runtime, setup


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Train a CGN for an MNIST variant and write its weights."""

    out: Path
    """File to write, .safetensors."""
    dataset: Dataset = "double_colored"
    """What to train on; digits needs no download."""
    half: bool = False
    """Write fp16 instead of fp32."""
    training: CGNTrainingConfig = dataclasses.field(default_factory=CGNTrainingConfig)
    counterfactuals: PositiveInt = 20_000
    """Counterfactuals that a classifier learns from to score the CGN: the scores go into the file."""
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    runtime: Runtime = dataclasses.field(default_factory=Runtime)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classifier.check_batch(counterfactuals=self.counterfactuals)


def main(command: Config) -> None:
    """Train, say how it goes, score the averaged generator and write it."""
    from skdcgn.cgn.adversarial import CGNTrainer
    from skdcgn.cgn.teachers import MNISTTeacher
    from skdcgn.data.mnist import make_dataset
    from skdcgn.data.weights import save_state_dict
    from skdcgn.measure.cgn import measure_cgn

    config = command.training
    data = make_dataset(command.dataset, "train", config.seed)
    device = setup(command.runtime)
    trainer = CGNTrainer(config, data, device=device)
    start = time.monotonic()
    for step, losses in trainer.fit():
        if step % 250 == 0 or step == trainer.steps:
            terms = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            print(f"{step}/{trainer.steps} {time.monotonic() - start:.0f} s: {terms}", flush=True)
    trained = MNISTTeacher(trainer.result, "in training", "", device=device)
    scores = measure_cgn(trained, command.dataset, command.counterfactuals, command.classifier, config.seed, device)
    print(", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    metadata = {
        "command": shlex.join(["python", "-m", "skdcgn", *sys.argv[1:]]),
        "dataset": command.dataset,
        "training": json.dumps(dataclasses.asdict(config)),
        "perceptual": trainer.perceptual,
        "scores": json.dumps({name: round(value, 4) for name, value in scores.items()}),
        "scored_on": f"{command.counterfactuals} counterfactuals, {command.classifier.epochs} epochs",
    }
    save_state_dict(command.out, trainer.result.state_dict(), metadata, command.half)
