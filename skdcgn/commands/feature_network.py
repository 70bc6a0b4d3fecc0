"""Train the digit classifier behind the Fréchet distances on MNIST (see `skdcgn.measure.features`).

    python -m skdcgn feature-network --out skdcgn/assets/mnist_features.safetensors

It learns from real MNIST digits in random colors, so that its features follow the shape.
"""

import dataclasses
import json
from pathlib import Path

from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.fields import Checked, Device, Seed
from skdcgn.runtime import Runtime, setup


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The digit-feature network."""

    out: Path = Path("skdcgn/assets/mnist_features.safetensors")
    """File to write."""
    seed: Seed = 0
    """Of the colors, the initial weights and the order of the images."""
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    device: Device = "auto"
    """Device to train on: auto (CUDA where there is one), cpu, cuda, ..."""


def main(config: Config) -> float:
    """Train the digit-feature network, write it, and return its accuracy on MNIST-test in random colors."""
    from skdcgn.classifiers.invariant import ClassifierTrainer, evaluate
    from skdcgn.data.mnist import make_dataset
    from skdcgn.data.weights import save_state_dict

    device = setup(Runtime(device=config.device))
    training = make_dataset("double_colored", "train", config.seed, biased=False)
    trainer = ClassifierTrainer(training.pixels, training.labels, config.classifier, config.seed, device)
    for epoch, losses in trainer.fit():
        print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    model = trainer.model
    state = {name: value.clone() for name, value in model.half().state_dict().items()}
    test = make_dataset("double_colored", "test", config.seed)
    accuracy = evaluate(model.float(), test.pixels, test.labels).accuracy  # of what the file holds
    metadata = {
        "description": "InvariantCNN (fp16) trained on MNIST digits, strokes and backgrounds in random colors",
        "command": f"python -m skdcgn feature-network --seed {config.seed}",
        "classifier": json.dumps(dataclasses.asdict(config.classifier)),
        "test_accuracy": f"{accuracy:.4f}",
    }
    save_state_dict(config.out, state, metadata)
    print(f"{config.out}: test accuracy {accuracy:.4f}")
    return accuracy
