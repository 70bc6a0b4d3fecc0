"""The invariant ensemble: its heads, its losses, its training, and the measures of what its heads look at."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.classifiers import ensemble_measures, networks
from skdcgn.classifiers.ensemble import (
    Batch,
    Batches,
    EnsembleConfig,
    EnsembleTrainer,
    draw_counterfactuals,
    ensemble_losses,
)
from skdcgn.classifiers.ensemble_measures import (
    category_decisions,
    imagenet_accuracy,
    in9_accuracy,
    measure_cue_conflict,
    measure_in9,
)
from skdcgn.classifiers.networks import HEADS, InvariantEnsemble
from skdcgn.data.imagenet import CueConflict, ImageSet, image_folder
from skdcgn.errors import InputError
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism, NoisePrior
from skdcgn.randomness import seeded, stream

BRIEF = EnsembleConfig(
    backbone="small",
    pretrained=False,
    resolution=32,
    epochs=2,
    batch_size=8,
    learning_rate=0.05,
    random_crops=False,
    counterfactuals=40,
    precision="fp32",
    workers=0,
)
CPU = torch.device("cpu")


class MeanColor(nn.Module):
    """A backbone whose features are the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def _small(seed: int = 0, num_classes: int = 10) -> InvariantEnsemble:
    with seeded(seed, "test"):
        return networks.invariant_ensemble("small", num_classes)


def _colors(folder: Path, labels: Tensor, classes: int = 3) -> ImageSet:
    """Plain red, green and blue pictures."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, label in enumerate(labels.tolist()):
        paths.append(folder / f"{index}.png")
        color = tuple(220 if channel == label else 20 for channel in range(3))
        Image.new("RGB", (32, 32), color).save(paths[-1])
    return ImageSet(tuple(paths), labels, tuple(map(str, range(classes))))


def _decides_by_color(scales: dict[str, float]) -> InvariantEnsemble:
    """An ensemble whose heads choose the brightest channel, or the darkest where the scale is negative."""
    model = InvariantEnsemble(MeanColor(), 3, 6)
    for name, head in model.heads.items():
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.weight[:3] = scales[name] * torch.eye(3)
            head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -50.0, -60.0, -70.0]))  # the last three are never chosen
    return model.eval()


def test_heads_are_averaged() -> None:
    model = _small().eval()
    images = torch.rand(2, 3, 32, 32, generator=stream(0, "images")) * 2 - 1
    logits = model(images)
    assert tuple(logits) == HEADS
    parts = torch.stack([logits[mechanism.value] for mechanism in Mechanism])
    torch.testing.assert_close(logits["ensemble"], parts.mean(dim=0))
    torch.testing.assert_close(logits["shape_texture"], parts[:2].mean(dim=0))
    assert logits["shape"].shape == (2, 10)
    assert not torch.equal(logits["shape"], logits["texture"])


def test_input_is_normalised_like_torchvisions() -> None:
    model = InvariantEnsemble(MeanColor(), 3, 2)
    features = []
    model.backbone.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    model(torch.full((1, 3, 4, 4), -1.0))  # black
    expected = -torch.tensor(networks.IMAGENET_MEAN) / torch.tensor(networks.IMAGENET_STD)
    torch.testing.assert_close(features[0][0], expected)


def test_resnet50_takes_torchvisions_weights(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    model = networks.invariant_ensemble("resnet50", 1000, tmp_path / "resnet50.pth")
    assert torch.equal(model.backbone.layer4[2].conv3.weight, network.layer4[2].conv3.weight)
    # Facts: 25,557,032 parameters, of which its own last layer has 2048 * 1000 + 1000.
    assert cost.parameters(model.backbone) == 25_557_032 - 2_049_000
    assert cost.parameters(model.heads) == 3 * 2_049_000
    with pytest.raises(InputError, match="holds no weights of the backbone small"):
        networks.invariant_ensemble("small", 10, tmp_path / "resnet50.pth")


def test_losses_by_hand() -> None:
    model = _small().eval()
    generator = stream(0, "batch")
    images = torch.randint(256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels, mechanism_labels = torch.tensor([1, 2]), torch.randint(10, (4, 3), generator=generator)
    batch = Batch(images[:2], labels, images[2:], mechanism_labels)
    losses = ensemble_losses(model, batch)
    assert set(losses) == {"real", *Mechanism}
    real, counterfactual = model(images[:2].float() / 127.5 - 1), model(images[2:].float() / 127.5 - 1)
    torch.testing.assert_close(losses["real"], F.cross_entropy(real["ensemble"], labels))
    texture = F.cross_entropy(counterfactual["texture"], mechanism_labels[:, 1])
    torch.testing.assert_close(losses["texture"], texture)
    assert set(ensemble_losses(model, batch._replace(counterfactuals=images[:0], mechanism_labels=labels[:0]))) == {
        "real"
    }


@pytest.mark.parametrize("mechanism", Mechanism)
def test_each_head_learns_its_own_label(mechanism: Mechanism) -> None:
    model = _small()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1]), images, torch.zeros(2, 3, dtype=torch.long))
    ensemble_losses(model, batch)[mechanism.value].backward()
    touched = {name for name, head in model.heads.items() if head.weight.grad is not None and head.weight.grad.any()}
    assert touched == {mechanism.value}


def test_counterfactuals_are_drawn_once_and_kept(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    drawn = draw_counterfactuals(tmp_path, random_teacher, BRIEF)
    assert len(drawn) == 40
    assert drawn.labels.shape == (40, 3)
    assert (drawn.labels[:, 0] != drawn.labels[:, 1]).any()
    assert drawn.image(3).shape == (3, 32, 32)
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "index.csv").stat().st_mtime_ns
    again = draw_counterfactuals(tmp_path, random_teacher, BRIEF)
    assert torch.equal(again.image(7), drawn.image(7))
    assert (folder / "index.csv").stat().st_mtime_ns == stamp
    draw_counterfactuals(tmp_path, random_teacher, replace(BRIEF, counterfactuals=20))
    assert len(list(tmp_path.iterdir())) == 2


def test_noise_comes_from_the_sources_prior(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    seen = []

    class Student(MNISTTeacher):
        def __init__(self) -> None:
            self.__dict__.update(random_teacher.__dict__)
            self.prior = NoisePrior(0.25)

        def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
            seen.append(noise)
            return super().render(mechanism, noise, labels)

    draw_counterfactuals(tmp_path, Student(), BRIEF)
    assert 0.4 < torch.cat(seen).abs().max() <= 0.5


def test_batches_are_a_function_of_the_step(tmp_path: Path, random_teacher: MNISTTeacher) -> None:
    real = _colors(tmp_path / "real", torch.arange(20) % 3)
    counterfactuals = draw_counterfactuals(tmp_path / "drawn", random_teacher, BRIEF)
    config = replace(BRIEF, counterfactual_ratio=1.5)
    batches, again = (Batches(real, counterfactuals, config, 0) for _ in range(2))
    assert batches.per_epoch == 2
    for step in (5, 0, 3):
        for ours, theirs in zip(batches[step], again[step], strict=True):
            assert torch.equal(ours, theirs)
    assert len(batches[0].labels) == 8
    assert len(batches[0].counterfactuals) == 12
    assert not torch.equal(batches[0].labels, batches[2].labels)
    assert len(Batches(real, None, config, 0)[0].mechanism_labels) == 0
    cropped = Batches(real, counterfactuals, replace(config, random_crops=True, resolution=24), 0)[0]
    assert cropped.images.shape == (8, 3, 24, 24)
    assert cropped.counterfactuals.shape == (12, 3, 24, 24)


@pytest.mark.parametrize(("optimizer", "schedule"), [("sgd", "thirds"), ("adamw", "cosine")])
def test_training_resumes_bit_identically(
    tmp_path: Path, random_teacher: MNISTTeacher, optimizer: str, schedule: str
) -> None:
    real = _colors(tmp_path / "real", torch.arange(24) % 3)
    counterfactuals = draw_counterfactuals(tmp_path / "drawn", random_teacher, BRIEF)
    config = replace(BRIEF, optimizer=optimizer, schedule=schedule, learning_rate=1e-3)

    def trainer() -> EnsembleTrainer:
        return EnsembleTrainer(_small(), real, counterfactuals, config, 0, CPU)

    whole = trainer()
    losses = dict(whole.fit())
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[1]["total"] == pytest.approx(sum(losses[1][name] for name in ("real", *Mechanism)))
    half = trainer()
    for step, _ in half.fit():
        if step == 3:
            break
    torch.save(half.state_dict(), tmp_path / "checkpoint.pt")
    resumed = trainer()
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert dict(resumed.fit()) == {step: losses[step] for step in (4, 5, 6)}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_learning_rate_falls_as_published(tmp_path: Path) -> None:
    real = _colors(tmp_path / "real", torch.arange(24) % 3)
    trainer = EnsembleTrainer(_small(), real, None, replace(BRIEF, epochs=3, learning_rate=1.0), 0, CPU)
    rates = []
    for _ in trainer.fit():
        rates.append(trainer._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0] * 2 + [0.1] * 3 + [0.01] * 3 + [0.001])  # of the next step


def test_a_pretrained_backbone_keeps_its_normalisation(tmp_path: Path) -> None:
    real = _colors(tmp_path / "real", torch.arange(8) % 3)
    for pretrained in (True, False):
        trainer = EnsembleTrainer(_small(), real, None, replace(BRIEF, epochs=1, pretrained=pretrained), 0, CPU)
        before = trainer.model.backbone[1].running_mean.clone()
        list(trainer.fit())
        assert torch.equal(trainer.model.backbone[1].running_mean, before) == pretrained


def test_it_learns_and_is_measured(tmp_path: Path) -> None:
    real = _colors(tmp_path / "real", torch.arange(48) % 3)
    trainer = EnsembleTrainer(_small(), real, None, replace(BRIEF, epochs=4), 0, CPU)
    list(trainer.fit())
    measured = imagenet_accuracy(trainer.model, real, BRIEF, CPU)
    assert measured["top1_ensemble"] > 0.9
    assert set(measured) == {f"top{k}_{head}" for head in HEADS for k in (1, 5)}


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    real = _colors(tmp_path / "real", torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="images are of 3 classes, and the ensemble has 2"):
        EnsembleTrainer(_small(num_classes=2), real, None, BRIEF, 0, CPU)


def test_top1_and_top5_by_hand(tmp_path: Path) -> None:
    images = _colors(tmp_path, torch.tensor([0, 1, 2, 2]))
    images = replace(images, labels=torch.tensor([0, 1, 1, 5]))
    measured = imagenet_accuracy(_decides_by_color(dict.fromkeys(Mechanism, 9.0)), images, BRIEF, CPU)
    assert measured["top1_ensemble"] == 0.5
    assert measured["top5_ensemble"] == 0.75  # class 5 is the last of six


def test_background_gap_by_hand(tmp_path: Path) -> None:
    same = _colors(tmp_path / "same", torch.tensor([0, 1, 2, 0]))
    mixed = replace(_colors(tmp_path / "rand", torch.tensor([0, 1, 2, 2])), labels=torch.tensor([0, 1, 1, 1]))
    model = _decides_by_color({"shape": 9.0, "texture": 9.0, "background": -9.0})
    mapping = torch.tensor([0, 1, 2, 0, 0, 0])
    assert in9_accuracy(model, same, mapping, BRIEF, CPU)["shape"] == 1.0
    measured = measure_in9(model, {"mixed_same": same, "mixed_rand": mixed}, mapping, BRIEF, CPU)
    assert measured["in9_mixed_rand_shape"] == 0.5
    assert measured["bg_gap_shape"] == 0.5
    assert measured["in9_mixed_same_background"] == 0.0
    outside = measure_in9(model, {"mixed_same": same, "mixed_rand": mixed}, torch.full((6,), -1), BRIEF, CPU)
    assert outside["in9_mixed_same_shape"] == 0.0


def test_decisions_go_by_mean_probability() -> None:
    logits = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
    assert category_decisions(logits, [(0, 1), (2,)]).item() == 0  # (0.53 + 0.03) / 2 > 0.20
    assert category_decisions(logits, [(1, 2), (3,)]).item() == 1  # not the sum, which is larger for the first


def test_shape_bias_by_hand(tmp_path: Path) -> None:
    images = _colors(tmp_path, torch.tensor([0, 1, 2, 2]))
    stimuli = CueConflict(
        images.paths,
        torch.tensor([0, 1, 1, 0]),  # shape: right twice
        ("red", "green", "blue"),
        torch.tensor([1, 0, 2, 1]),  # texture: right once, and neither is right once
        ((0,), (1,), (2, 3)),
    )
    measured = measure_cue_conflict(_decides_by_color(dict.fromkeys(Mechanism, 9.0)), stimuli, BRIEF, CPU)
    assert measured["shape_bias_shape"] == pytest.approx(2 / 3)
    assert measured["cue_accuracy_shape"] == 0.75
    never = replace(stimuli, labels=torch.tensor([2, 2, 0, 0]), textures=torch.tensor([1, 0, 1, 1]))
    without = measure_cue_conflict(_decides_by_color(dict.fromkeys(Mechanism, 9.0)), never, BRIEF, CPU)
    assert without["cue_accuracy_shape"] == 0
    assert "shape_bias_shape" not in without


def test_predictions_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    images = _colors(tmp_path, torch.arange(7) % 3)
    model = _small().eval()
    parts = [
        torch.cat([logits["shape"] for _, logits in ensemble_measures.predict(model, images, config, CPU)])
        for config in (BRIEF, replace(BRIEF, batch_size=3))
    ]
    torch.testing.assert_close(parts[0], parts[1])


@pytest.mark.data
@pytest.mark.slow
def test_resnet50_learns_from_imagenet_folders(data_dir: Path) -> None:
    real = image_folder(data_dir / "imagenet_samples")
    assert len(real.classes) == len(real) == 1000
    config = replace(EnsembleConfig(), batch_size=500, epochs=1, workers=0, pretrained=False)
    batch = Batches(real, None, config, 0)[1]
    assert batch.images.shape == (500, 3, 224, 224)
    some = ImageSet(real.paths[:4], real.labels[-4:], real.classes)
    trainer = EnsembleTrainer(
        networks.invariant_ensemble("resnet50", 1000), some, None, replace(config, batch_size=4), 0, CPU
    )
    ((step, losses),) = trainer.fit()
    assert step == 1
    assert losses["real"] == pytest.approx(6.9, abs=1.5)  # ln 1000
