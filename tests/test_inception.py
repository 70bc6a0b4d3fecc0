"""The FID's Inception network from our own path, and the measures of a source of counterfactuals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.errors import InputError
from skdcgn.measure import cost
from skdcgn.measure import features as image_features
from skdcgn.measure.features import FIDInception, draw_outputs, extractor, measure_source
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import stream


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like pytorch-fid's, with its keys and shapes, and random values."""
    with torch.device("meta"):
        shapes = FIDInception().state_dict()
    generator = stream(0, "inception")
    state = {}
    for key, value in shapes.items():
        name = key.removeprefix("network.").replace("classifier.", "fc.")
        if "num_batches_tracked" in key:
            state[name] = torch.tensor(0)
        else:
            noise = torch.rand(value.shape, generator=generator)
            state[name] = 0.5 + noise if "running_var" in key or "bn.weight" in key else 0.1 * (noise - 0.5)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_features_are_pytorch_fids(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_fid.inception

    assert 95e6 < random_inception.stat().st_size < 97e6  # the real file has 95.6 MB
    monkeypatch.setattr(
        pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: torch.load(random_inception)
    )
    theirs = pytorch_fid.inception.InceptionV3([3]).eval()
    ours = FIDInception.load(random_inception)
    images = torch.rand(2, 3, 64, 64, generator=stream(0, "images")) * 2 - 1
    with torch.no_grad():
        features = ours.features(images)
        torch.testing.assert_close(features, theirs((images + 1) / 2)[0][:, :, 0, 0])
    assert ours.logits(features).shape == (2, 1008)
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_a_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is not pytorch-fid's Inception network"):
        FIDInception.load(tmp_path / "other.pth")
    with pytest.raises(InputError, match="no weight file"):
        FIDInception.load(tmp_path / "nothing.pth")


def test_without_the_file_large_images_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(tmp_path))
    assert extractor(256) is None
    digits = extractor(32)
    assert digits is not None
    assert digits.name == "digits"
    assert digits.probabilities(digits.features(torch.zeros(2, 3, 32, 32))).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_file_at_hand_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(torch.nn.Module):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

        def logits(self, features: torch.Tensor) -> torch.Tensor:
            return features

    monkeypatch.setattr(FIDInception, "load", classmethod(lambda cls, path: Small()))
    found = extractor(32, path=tmp_path / "inception.pth")
    assert found.name == "inception"
    images = torch.rand(70, 3, 8, 8, generator=stream(0, "images"))
    np.testing.assert_allclose(found.features(images), images.mean(dim=(2, 3)).numpy(), rtol=1e-5)
    assert found.probabilities(found.features(images)).shape == (70, 3)


def test_inception_score_by_hand() -> None:
    certain = np.tile(np.eye(4), (10, 1))  # every image of one class, all four alike
    assert image_features.inception_score(certain) == pytest.approx(4)
    assert image_features.inception_score(np.full((40, 4), 0.25)) == pytest.approx(1)
    assert image_features.inception_score(np.tile([[1.0, 0.0]], (20, 1))) == pytest.approx(1)


def test_intra_class_variation_by_hand() -> None:
    features = np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])
    assert image_features.intra_class_variation(features, np.array([0, 0, 1, 1])) == pytest.approx((5 + 0) / 2)


def test_gpu_memory_is_not_measured_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cost.peak_megabytes(lambda: None) is None


def test_outputs_are_balanced_and_repeat(random_teacher: MNISTTeacher) -> None:
    images, labels = draw_outputs(random_teacher, random_teacher, 2, 0)
    assert list(images) == [*Mechanism, "counterfactual"]
    assert labels.bincount().tolist() == [2] * 10
    assert all(values.shape == (20, 3, 32, 32) and values.abs().max() <= 1 for values in images.values())
    again, _ = draw_outputs(random_teacher, random_teacher, 2, 0)
    assert torch.equal(images["counterfactual"], again["counterfactual"])


def test_a_source_is_measured_beside_its_teacher(random_teacher: MNISTTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_features.cost, "latency_ms", lambda *_, **__: 4.0)
    extract = extractor(32)
    real = torch.rand(70, 3, 32, 32, generator=stream(0, "real")) * 2 - 1
    measured = measure_source(random_teacher, random_teacher, extract, 7, real=real)
    for name in (*Mechanism, "counterfactual"):
        assert measured[f"frechet_{name}"] > 0  # other noise: chance alone makes a distance
        assert measured[f"variation_{name}"] >= 0
    assert measured["frechet_real"] > measured["frechet_counterfactual"]
    assert 1 <= measured["inception_score"] <= 10
    assert measured["parameters_shape"] == random_teacher.parameters(Mechanism.SHAPE)
    assert measured["megabytes_shape"] == pytest.approx(4e-6 * measured["parameters_shape"])
    assert measured["images_per_second_texture"] == pytest.approx(8000)
    assert measured["macs_texture"] > 0
    costs = measure_source(random_teacher, random_teacher, None, 7)
    assert not any(name.startswith(("frechet", "variation", "inception")) for name in costs)
