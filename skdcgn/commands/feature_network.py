"""Training and evaluating the invariant classifier (Sec. 4.5, Table 1), and the digit features made with it.

    python -m skdcgn feature-network --out skdcgn/assets/mnist_features.safetensors

trains the project's own feature network: the classifier on real MNIST digits in random colours, so that its features
follow the shape. The Fréchet distances of the MNIST experiments are taken on these features (`load_feature_network`).
"""

import dataclasses
import json
from pathlib import Path

import safetensors.torch

from skdcgn.classifiers.features import FEATURE_NETWORK
from skdcgn.classifiers.invariant import ClassifierConfig, evaluate, fit, new_classifier
from skdcgn.data.mnist import NUM_CLASSES, make_dataset
from skdcgn.files import atomic_path
from skdcgn.runtime import Runtime, setup


@dataclasses.dataclass(frozen=True)
class Config:
    """The digit-feature network."""

    out: Path = Path("skdcgn/assets") / FEATURE_NETWORK
    """File to write."""
    seed: int = 0
    """Of the colours, the initial weights and the order of the images."""
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    device: str = "auto"
    """Device to train on: auto (CUDA where there is one), cpu, cuda, ..."""


def main(config: Config) -> float:
    """Train the digit-feature network, write it, and return its accuracy on MNIST-test in random colours."""
    device = setup(Runtime(device=config.device))
    training = make_dataset("double_colored", "train", config.seed, biased=False)
    model = new_classifier(NUM_CLASSES, config.seed).to(device)
    for epoch, losses in fit(model, training.pixels, training.labels, config.classifier, config.seed):
        print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    state = {name: value.cpu().contiguous() for name, value in model.half().state_dict().items()}
    test = make_dataset("double_colored", "test", config.seed)
    accuracy = evaluate(model.float(), test.pixels, test.labels).accuracy  # of what the file holds
    metadata = {
        "description": "InvariantCNN (fp16) trained on MNIST digits, strokes and backgrounds in random colours",
        "command": f"python -m skdcgn feature-network --seed {config.seed}",
        "classifier": json.dumps(dataclasses.asdict(config.classifier)),
        "test_accuracy": f"{accuracy:.4f}",
    }
    with atomic_path(config.out) as temporary:
        safetensors.torch.save_file(state, temporary, metadata)
    print(f"{config.out}: test accuracy {accuracy:.4f}")
    return accuracy
