"""The invariant classifier: architecture, training, evaluation, and the feature network made with it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from skdcgn.classifiers import invariant
from skdcgn.classifiers.invariant import (
    ClassifierConfig,
    ClassifierTrainer,
    Evaluation,
    evaluate,
    new_classifier,
    trained_classifier,
)
from skdcgn.classifiers.networks import InvariantCNN
from skdcgn.commands import feature_network
from skdcgn.data.mnist import TensorSet, make_dataset
from skdcgn.errors import InputError
from skdcgn.files import load_checkpoint, save_checkpoint
from skdcgn.images import to_float
from skdcgn.measure import features as image_features
from skdcgn.measure.cost import parameters
from skdcgn.measure.features import load_feature_network
from skdcgn.randomness import stream
from skdcgn.training import one_cycle

BRIEF = ClassifierConfig(epochs=1, batch_size=16)


def pixels(n: int) -> tuple[Tensor, Tensor]:
    """A two-way task that anyone can learn: noise around a dark or a bright gray, (n, 3, 8, 8) uint8."""
    generator = stream(0, "two-way")
    labels = torch.randint(2, (n,), generator=generator)
    noise = torch.randint(-60, 60, (n, 3, 8, 8), generator=generator)
    return (80 + 96 * labels[:, None, None, None] + noise).to(torch.uint8), labels


def same_weights(a: InvariantCNN, b: InvariantCNN) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_parameters_by_hand() -> None:
    batch_norm = 2 * 3
    convolutions = (3 * 25 + 1) * 32 + (32 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 64
    assert parameters(InvariantCNN()) == batch_norm + convolutions + (64 + 1) * 10 == 67_760
    assert parameters(InvariantCNN(2)) == batch_norm + convolutions + (64 + 1) * 2


@pytest.mark.parametrize("size", [32, 64])
def test_layers_are_those_of_the_original(size: int) -> None:
    model = new_classifier(10, seed=0).eval()
    images = torch.randn(4, 3, size, size, generator=stream(0, "images"))
    state = {name.removeprefix("convolutions."): value for name, value in model.state_dict().items()}
    x = F.batch_norm(images, state["0.running_mean"], state["0.running_var"], state["0.weight"], state["0.bias"])
    x = F.max_pool2d(F.conv2d(x, state["1.weight"], state["1.bias"], padding=2).relu(), 3, 2, 1)
    for layer, stride in ((4, 1), (6, 2), (8, 1)):
        x = F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], stride, padding=1).relu()
    assert x.shape == (4, 64, size // 4, size // 4)
    torch.testing.assert_close(model.features(images), x.mean(dim=(2, 3)))
    torch.testing.assert_close(model(images), x.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"])


@pytest.mark.parametrize("training", [True, False])
def test_the_first_layers_do_what_they_do_one_by_one(training: bool) -> None:
    """Outputs, gradients of all weights and running statistics, with a batch norm that scales and shifts."""
    models = [new_classifier(10, seed=0).double().train(training) for _ in range(2)]
    for model in models:
        with torch.no_grad():
            model.convolutions[0].weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
            model.convolutions[0].bias.copy_(torch.tensor([1.0, -0.5, 3.0]))
    images = 3 * torch.randn(6, 3, 32, 32, generator=stream(0, "images"), dtype=torch.float64) + 1
    outputs = models[0].features(images), models[1].convolutions(images).mean(dim=(2, 3))
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output * torch.arange(64)).sum().backward()
    named = [dict(model.convolutions.named_parameters()) for model in models]
    for name, parameter in named[0].items():
        torch.testing.assert_close(parameter.grad, named[1][name].grad, msg=name)
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())
    assert models[0].convolutions[0].num_batches_tracked == int(training)


def test_evaluation_by_hand() -> None:
    class BrightestChannel(InvariantCNN):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    predicted = torch.tensor([0, 0, 1, 2, 2, 2, 0])
    labels = torch.tensor([0, 1, 1, 0, 0, 0, 0])
    images = (255 * F.one_hot(predicted, 3))[:, :, None, None].expand(-1, -1, 4, 4).to(torch.uint8)
    model = BrightestChannel(3).train()
    for batch_size in (2, 100):
        evaluation = evaluate(model, images, labels, batch_size=batch_size)
        assert evaluation.confusion.tolist() == [[2, 0, 3], [1, 1, 0], [0, 0, 0]]
    assert evaluation.accuracy == pytest.approx(3 / 7)
    assert evaluation.class_accuracy[:2].tolist() == pytest.approx([2 / 5, 1 / 2])
    assert evaluation.class_accuracy[2].isnan()
    assert not model.training


def test_a_perfect_evaluation() -> None:
    evaluation = Evaluation(torch.diag(torch.tensor([3, 4])))
    assert evaluation.accuracy == 1
    assert evaluation.class_accuracy.tolist() == [1, 1]


def test_a_two_way_task_is_learned() -> None:
    images, labels = pixels(512)
    model = trained_classifier(images[:256], labels[:256], ClassifierConfig(epochs=3, batch_size=16), num_classes=2)
    assert not model.training
    assert evaluate(model, images[256:], labels[256:]).accuracy > 0.98


def test_training_reports_each_epoch() -> None:
    images, labels = pixels(100)  # not a multiple of the batch size
    trainer = ClassifierTrainer(images, labels, ClassifierConfig(epochs=3, batch_size=16), 0, num_classes=2)
    reports = []
    for epoch, measured in trainer.fit():
        assert not trainer.model.training  # ready to be evaluated between two epochs
        reports.append((epoch, measured))
    assert [epoch for epoch, _ in reports] == [1, 2, 3]
    assert reports[-1][1]["loss"] < reports[0][1]["loss"]
    assert reports[-1][1]["accuracy"] > 0.9


def test_biased_digits_teach_the_color_and_not_the_shape() -> None:
    training, test = make_dataset("digits", "train", seed=0, limit=400), make_dataset("digits", "test", seed=0)
    model = trained_classifier(training.pixels, training.labels, ClassifierConfig(epochs=4, batch_size=16))
    assert evaluate(model, training.pixels, training.labels).accuracy > 0.98
    assert evaluate(model, test.pixels, test.labels).accuracy < 0.3


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    images, labels = pixels(64)
    before = torch.get_rng_state()
    first = trained_classifier(images, labels, BRIEF, seed=3, num_classes=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert same_weights(first, trained_classifier(images, labels, BRIEF, seed=3, num_classes=2))
    assert same_weights(new_classifier(2, seed=3), new_classifier(2, seed=3))
    assert not same_weights(new_classifier(2, seed=3), new_classifier(2, seed=4))


def test_a_resumed_training_ends_the_same(tmp_path: Path) -> None:
    images, labels = pixels(100)
    whole, first, second = (
        ClassifierTrainer(images, labels, ClassifierConfig(epochs=4, batch_size=16), 3, num_classes=2) for _ in range(3)
    )
    expected = dict(whole.fit())
    seen = dict(next(first.fit()) for _ in range(2))
    save_checkpoint(tmp_path / "checkpoint.pt", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert seen | dict(second.fit()) == expected
    assert same_weights(whole.model, second.model)


def test_gamma_scales_the_learning_rate_after_each_epoch() -> None:
    images, labels = pixels(64)
    models = (
        trained_classifier(images, labels, ClassifierConfig(epochs=epochs, gamma=0.0), num_classes=2)
        for epochs in (1, 3)
    )
    one, three = (torch.cat([parameter.flatten() for parameter in model.parameters()]) for model in models)
    assert torch.equal(one, three)


@pytest.mark.parametrize("recipe", ["published", "fast"])
def test_recipes_learn_and_go_on_where_they_stopped(tmp_path: Path, recipe: str) -> None:
    images, labels = pixels(256)
    config = ClassifierConfig(recipe=recipe, epochs=3, batch_size=16)
    whole, first, second = (ClassifierTrainer(images, labels, config, 3, num_classes=2) for _ in range(3))
    expected = dict(whole.fit())
    assert expected[3]["loss"] < 0.5 * expected[1]["loss"]
    seen = dict([next(first.fit())])
    save_checkpoint(tmp_path / "checkpoint.pt", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert seen | dict(second.fit()) == expected
    assert same_weights(whole.model, second.model)


def test_the_fast_recipe_keeps_the_signal_and_the_network() -> None:
    images = torch.randn(64, 3, 32, 32, generator=stream(0, "images"))
    published, fast = (new_classifier(10, 0, recipe) for recipe in ("published", "fast"))
    assert [value.shape for value in published.parameters()] == [value.shape for value in fast.parameters()]
    small, large = (model.features(images).std().item() for model in (published, fast))
    assert large > 5 * small
    assert not torch.equal(fast.convolutions[1].weight, new_classifier(10, 1, "fast").convolutions[1].weight)


def test_one_cycle_rises_to_one_and_falls_to_nothing() -> None:
    factors = [one_cycle(100, 0.2)(step) for step in range(100)]
    top = factors.index(max(factors))
    assert (top, factors[top]) == (20, 1.0)
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[0] < 0.06
    assert factors[-1] < 0.001


def test_pixels_and_floats_train_alike() -> None:
    images, labels = pixels(64)
    from_pixels = trained_classifier(images, labels, BRIEF, num_classes=2)
    from_floats = trained_classifier(to_float(images), labels, BRIEF, num_classes=2)
    assert same_weights(from_pixels, from_floats)
    assert torch.equal(
        evaluate(from_pixels, images, labels).confusion, evaluate(from_floats, to_float(images), labels).confusion
    )


def test_precision_changes_little() -> None:
    images, labels = pixels(64)
    fp32, bf16 = (
        trained_classifier(images, labels, ClassifierConfig(epochs=1, precision=precision), num_classes=2)
        for precision in ("fp32", "bf16")
    )
    assert not same_weights(fp32, bf16)
    torch.testing.assert_close(fp32.linear.weight, bf16.linear.weight, atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("count", "labels", "sentence"),
    [(0, [], "one label for each image: got 0 and 0"), (2, [0], "2 and 1"), (2, [0, 2], "from 0 to 2.* 0 to 1")],
)
def test_bad_sets_are_told(count: int, labels: list[int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        trained_classifier(torch.zeros(count, 3, 8, 8), torch.tensor(labels), BRIEF, num_classes=2)


def test_feature_network_reads_shapes_whatever_their_color() -> None:
    network = load_feature_network()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    digits = make_dataset("digits", "test", seed=0)  # from another source than those it learned from
    assert evaluate(network, digits.pixels, digits.labels).accuracy > 0.6
    features = network.features(digits.images(slice(8)))
    assert features.shape == (8, 64)
    assert features.dtype == torch.float32


@pytest.mark.data
def test_feature_network_is_as_good_as_its_file_says(data_dir: Path) -> None:
    file = Path(invariant.__file__).parents[1] / "assets" / image_features.FEATURE_NETWORK
    with safetensors.safe_open(file, "pt") as opened:
        stated = float(opened.metadata()["test_accuracy"])
    data = make_dataset("double_colored", "test", seed=0, limit=2500)
    # A tenth of the digits have the color of their background: about 0.91 is the best one can do.
    assert 0.88 < stated < 0.92
    accuracy = evaluate(load_feature_network(), data.pixels, data.labels).accuracy
    assert accuracy == pytest.approx(stated, abs=0.02)  # three standard errors


def test_making_the_feature_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def digits(dataset: str, split: str, seed: int, biased: bool | None = None) -> TensorSet:
        asked.append((dataset, split, biased))
        return make_dataset("digits", split, seed, biased, limit=32)

    monkeypatch.setattr("skdcgn.data.mnist.make_dataset", digits)
    out = tmp_path / "features.safetensors"
    accuracy = feature_network.main(feature_network.Config(out=out, classifier=BRIEF, device="cpu"))
    assert asked == [("double_colored", "train", False), ("double_colored", "test", None)]
    with safetensors.safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["command"] == "python -m skdcgn feature-network --seed 0"
    assert json.loads(metadata["classifier"])["epochs"] == 1
    assert float(metadata["test_accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    assert str(tmp_path) not in str(metadata)
    assert out.stat().st_size < 500_000
    InvariantCNN().load_state_dict(safetensors.torch.load_file(out))


def test_a_damaged_feature_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"")
    safetensors.torch.save_file({"other": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    for name, words in (("broken", "cannot be read as weights"), ("wrong", "is damaged .install the package whole")):
        monkeypatch.setattr(image_features, "FEATURE_NETWORK", str(tmp_path / f"{name}.safetensors"))
        with pytest.raises(InputError, match=rf"{name}\.safetensors {words}"):
            load_feature_network()


def test_a_package_without_the_feature_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_features, "FEATURE_NETWORK", "absent.safetensors")
    with pytest.raises(InputError, match=r"absent\.safetensors.*python -m skdcgn feature-network"):
        load_feature_network()
