"""How close images are by their features: Fréchet distance, Inception score, variation within classes.

The features are those of the FID's Inception network, or, for 32x32 digits, of the project's own digit classifier:
the invariant one, trained on real MNIST digits in random colors (`python -m skdcgn feature-network`), so that its
features follow the shape. `measure_source` measures a whole source of counterfactuals.
"""

import warnings
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import LinAlgWarning
from scipy.spatial.distance import pdist
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.classifiers.networks import InvariantCNN
from skdcgn.data import registry, weights
from skdcgn.data.labels import balanced_labels
from skdcgn.errors import InputError
from skdcgn.images import fit_resolution
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism, Source, compose
from skdcgn.randomness import stream

FEATURE_NETWORK = "mnist_features.safetensors"

LOGITS = 1008
SIDE = 299
"""Side to which images are enlarged for the network."""

_CHUNK = 32  # images at a time
_DIGIT_SIDE = 32  # up to this side, images are the miniature's digits, about which Inception has nothing to say


def frechet_distance(teacher_features: np.ndarray, student_features: np.ndarray) -> float:
    """Fréchet distance of two sets of features (N, D), by pytorch-fid's formula."""
    from pytorch_fid.fid_score import calculate_frechet_distance  # slow to import

    moments = []
    for features in (teacher_features, student_features):
        moments += [features.mean(axis=0), np.cov(features, rowvar=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, about an argument that pytorch-fid gives
        warnings.simplefilter("ignore", LinAlgWarning)  # few samples have singular covariances: pytorch-fid sees to it
        return float(calculate_frechet_distance(*moments))


def inception_score(probabilities: np.ndarray, splits: int = 10) -> float:
    """Inception score (Salimans et al., 2016): exp of the mean KL(p(y|x) || p(y)), the mean over splits of the images.

    From 1 to the number of classes; high where each image is of a certain class and all classes occur. The images must
    be in random order, or their classes in turns: a split stands for all of them.

    Args:
        probabilities: p(y|x), (N, K), of a classifier; scores of different classifiers are not to be compared.
        splits: parts of equal size that the score is taken of.
    """
    scores = []
    for part in np.array_split(probabilities.astype(np.float64), splits):
        marginal = part.mean(axis=0, keepdims=True)
        divergence = part * (np.log(part + 1e-12) - np.log(marginal + 1e-12))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))


def intra_class_variation(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance of the features (N, D) of two images of one class, the mean over classes.

    Against the teacher's own it tells how many variants of a class a student makes: 0 where they are all alike.

    Args:
        features: (N, D).
        labels: (N,), at least two of each class that occurs.
    """
    return float(np.mean([pdist(features[labels == label]).mean() for label in np.unique(labels)]))


def load_feature_network() -> InvariantCNN:
    """Load the digit-feature network that comes with the package, frozen and in eval mode.

    Its `features` map images (B, 3, 32, 32) in [-1, 1] to (B, 64).

    Raises:
        InputError: the package lacks the file, or has a damaged one.
    """
    with resources.as_file(resources.files("skdcgn") / "assets" / FEATURE_NETWORK) as file:
        advice = "install the package whole, or make the file with `python -m skdcgn feature-network`"
        if not file.is_file():
            raise InputError(f"The package lacks assets/{FEATURE_NETWORK}: {advice}.")
        state = weights.load_state_dict(file)
        return weights.fill(InvariantCNN(), state, f"{file} is damaged ({advice})").requires_grad_(False)


@torch.no_grad()
def digit_features(images: Tensor) -> np.ndarray:
    """Features (B, 64) of RGB images (B, 3, 32, 32) by the project's own digit classifier.

    It stands in for Inception, which has nothing to say about 32x32 digits: Fréchet distances on MNIST are
    comparable with each other only.
    """
    network = load_feature_network().to(images.device)
    return torch.cat([network.features(chunk) for chunk in images.split(500)]).cpu().numpy()


@torch.no_grad()
def digit_probabilities(features: np.ndarray) -> np.ndarray:
    """Class probabilities (B, 10) that go with `digit_features`."""
    return load_feature_network().linear(torch.from_numpy(features)).softmax(dim=1).numpy()


class FIDInception(nn.Module):
    """The Inception network of the FID, with its features and its logits: pytorch-fid's, from a file that is at hand.

    It is the TensorFlow Inception of December 2015 with that port's three patched kinds of blocks, strictly loaded from
    the file that `skdcgn.data.weights` calls `fid_inception`. pytorch-fid itself would download the file into a cache
    of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2  # slow
        from torchvision.models import inception_v3

        network = inception_v3(weights=None, num_classes=LOGITS, aux_logits=False, init_weights=False)
        network.Mixed_5b = FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = FIDInceptionA(288, pool_features=64)
        for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            setattr(network, name, FIDInceptionC(768, channels_7x7=channels))
        network.Mixed_7b = FIDInceptionE_1(1280)
        network.Mixed_7c = FIDInceptionE_2(2048)
        self.classifier = network.fc
        network.fc = nn.Identity()
        self.network = network

    @classmethod
    def load(cls, path: Path) -> "FIDInception":
        """Read the network from pytorch-fid's file, strictly, frozen and in evaluation mode.

        Raises:
            InputError: the file is missing, damaged, or of another network.
        """
        state = weights.load_state_dict(path)
        with torch.device("meta"):
            inception = cls()
        renamed = {
            key.replace("fc.", "classifier.", 1) if key.startswith("fc.") else f"network.{key}": value
            for key, value in state.items()
        }
        return weights.fill(inception, renamed, f"{path} is not pytorch-fid's Inception network").requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, 2048) of images (B, 3, H, W) in [-1, 1]."""
        return self.network(F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, 1008) that go with `features`, for the Inception score."""
        return self.classifier(features)


class Extractor(NamedTuple):
    """What images are measured with."""

    name: str
    """inception, or digits: distances of the two are not to be compared."""
    features: Callable[[Tensor], np.ndarray]
    """Maps images (B, 3, H, W) in [-1, 1] to (B, D)."""
    probabilities: Callable[[np.ndarray], np.ndarray] | None
    """Maps features to class probabilities (B, K), for the Inception score."""
    reason: str
    """One line that says why it is this one."""


def extractor(resolution: int, device: torch.device | str = "cpu", path: Path | None = None) -> Extractor | None:
    """Return the network that Fréchet distances of images of this side are taken with, or None.

    Images of 32x32 are the miniature's digits: the project's own digit classifier measures them (see
    `digit_features`). For larger ones it is Inception, where its file is at hand: nothing is downloaded.

    Args:
        resolution: side of the images.
        device: where to run.
        path: pytorch-fid's file, in place of the places where it is looked for; then Inception is taken at any side.

    Raises:
        InputError: the file is damaged or of another network.
    """
    if path is None and resolution <= _DIGIT_SIDE:
        reason = "features: the project's own digit classifier, since Inception has nothing to say about 32x32 digits"
        return Extractor("digits", digit_features, digit_probabilities, reason)
    if path is None and weights.status(registry.REGISTRY["fid_inception"])[0] == "missing":
        return None
    located = weights.locate("fid_inception", download=False) if path is None else path
    network = FIDInception.load(located).to(device)

    @torch.no_grad()
    def features(images: Tensor) -> np.ndarray:
        chunks = images.to(device).split(_CHUNK)
        return torch.cat([network.features(chunk) for chunk in chunks]).cpu().numpy()

    @torch.no_grad()
    def probabilities(values: np.ndarray) -> np.ndarray:
        return network.logits(torch.from_numpy(values).to(device)).softmax(dim=1).cpu().numpy()

    return Extractor("inception", features, probabilities, f"features: pytorch-fid's Inception, {located}")


def draw_outputs(source: Source, teacher: Source, per_class: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draw every mechanism's outputs for all classes alike, and counterfactuals composed of them (Eq. 1).

    Args:
        source: a CGN, or what stands in for it.
        teacher: the CGN, whose noise a source gets: students have learned to answer to that.
        per_class: images of each class.
        seed: of the noise, which differs between mechanisms, and of the labels that counterfactuals are composed by.

    Returns:
        RGB images (N, 3, H, W) in [-1, 1] by the names of the mechanisms and `counterfactual`, last, and their labels
        (N,), for counterfactuals that of the shape. On the CPU.
    """
    labels = balanced_labels(per_class, source.num_classes)
    outputs, drawn = {}, {}
    for mechanism in Mechanism:
        noise = teacher.sample_noise(len(labels), stream(seed, "outputs", mechanism))
        outputs[mechanism] = source.render(mechanism, noise, labels).cpu()
        drawn[mechanism.value] = mechanism.to_image(outputs[mechanism], 3)
    order = [torch.randperm(len(labels), generator=stream(seed, "outputs", "order", m)) for m in Mechanism]
    order[0] = torch.arange(len(labels))
    drawn["counterfactual"] = compose(*(outputs[m][index] for m, index in zip(Mechanism, order, strict=True)))
    return drawn, labels


def measure_source(
    source: Source,
    teacher: Source,
    extract: Extractor | None,
    per_class: int,
    seed: int = 0,
    real: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Measure a source of counterfactuals: fidelity, diversity, size and speed.

    Args:
        source: the teacher itself, or what stands in for it.
        teacher: whose outputs are the reference. Another seed draws them, so that the teacher measured against itself
            shows the distance that chance alone makes.
        extract: measures images; without it the metrics that need it are left out.
        per_class: images of each class.
        seed: of the noise.
        real: real images (M, 3, H, W) in [-1, 1], to compare the counterfactuals with.
        device: where the source is.

    Returns:
        For each mechanism, and `counterfactual`: `frechet_<name>` (to the teacher's), `variation_<name>` (mean distance
        of two images of one class, in feature space). For counterfactuals: `inception_score`, and `frechet_real` where
        there are real images. For each mechanism: `parameters_<name>`, `macs_<name>` (one image), `megabytes_<name>`
        (float32 weights), `images_per_second_<name>` (batches of 32), and `peak_megabytes_<name>` of such a batch on a
        GPU.
    """
    measured: dict[str, float] = {}
    if extract is not None:
        reference, _ = draw_outputs(teacher, teacher, per_class, seed + 1)
        images, labels = draw_outputs(source, teacher, per_class, seed)
        for name, values in images.items():
            features = extract.features(fit_resolution(values, teacher.resolution))
            measured[f"frechet_{name}"] = frechet_distance(extract.features(reference[name]), features)
            measured[f"variation_{name}"] = intra_class_variation(features, labels.numpy())
        if extract.probabilities is not None:  # `features` are the counterfactuals', the last ones drawn
            measured["inception_score"] = inception_score(extract.probabilities(features))
        if real is not None:
            measured["frechet_real"] = frechet_distance(extract.features(real), features)
    for mechanism in Mechanism:
        measured |= {f"{name}_{mechanism}": value for name, value in _cost(source, mechanism, device).items()}
    return measured


def _cost(source: Source, mechanism: Mechanism, device: torch.device | str) -> dict[str, float]:
    noise = source.sample_noise(_CHUNK, stream(0, "cost", mechanism)).to(device)
    labels = torch.arange(_CHUNK, device=device) % source.num_classes
    render = partial(source.render, mechanism, noise, labels)
    parameters = source.parameters(mechanism)
    peak = cost.peak_megabytes(render)
    return {
        "parameters": parameters,
        "macs": cost.macs(lambda: source.render(mechanism, noise[:1], labels[:1])),
        "megabytes": 4e-6 * parameters,
        "images_per_second": 1000 * _CHUNK / cost.latency_ms(render, repeats=3),
        **({} if peak is None else {"peak_megabytes": peak}),
    }
