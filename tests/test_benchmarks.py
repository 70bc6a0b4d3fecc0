"""The benchmarks: the published baseline is the same function as the suite's nets, and every script measures."""

import csv
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tyro

from benchmarks import distillation_step, imagenet_step, inference, teacher_sampling, timing
from benchmarks.published_step import PublishedDiscriminator, PublishedGenerator, PublishedTraining
from skdcgn.configs.tinygan import PUBLISHED_MNIST
from skdcgn.errors import InputError
from skdcgn.measure.cost import parameters
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.distillation import DistillConfig, Distiller
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import Records

TINY = TinyGANConfig(
    resolution=16, width=4, blocks=3, label_input="one_hot", class_dim=8, class_rows=12, mask_channels=3
)


def make_pairs(
    config: TinyGANConfig, width: int = 8
) -> tuple[TinyGANGenerator, PublishedGenerator, TinyGANDiscriminator, PublishedDiscriminator]:
    """The suite's nets and the baseline's, with the same weights."""
    with seeded(0, "test"):
        generator, discriminator = TinyGANGenerator(config), TinyGANDiscriminator(config, width)
    published_generator, published_discriminator = PublishedGenerator(config), PublishedDiscriminator(config, width)
    published_generator.load_state_dict(generator.state_dict())
    published_discriminator.load_state_dict(discriminator.state_dict())
    return generator, published_generator, discriminator, published_discriminator


def make_batch(config: TinyGANConfig, size: int = 8) -> Records:
    random = stream(0, "test batch")
    noise = torch.randn(size, config.noise_dim, generator=random)
    labels = torch.randint(config.num_classes, (size,), generator=random)
    images = torch.rand(size, config.channels, config.resolution, config.resolution, generator=random) * 2 - 1
    return Records(noise, labels, images)


def test_baseline_has_the_published_sizes() -> None:
    assert parameters(PublishedGenerator(PUBLISHED_MNIST)) == 2_101_955
    assert parameters(PublishedDiscriminator(PUBLISHED_MNIST)) == 3_300_321


@pytest.mark.parametrize("training", [True, False])
def test_generators_are_the_same_function(training: bool) -> None:
    generator, published, _, _ = make_pairs(TINY)
    batch = make_batch(TINY)
    for norm in (module for module in generator.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(generator=stream(0, "running mean"))  # eval mode must read these
        norm.running_var.uniform_(0.5, 2, generator=stream(0, "running var"))
    published.load_state_dict(generator.state_dict())
    with torch.no_grad():
        ours = generator.train(training)(batch.noise, batch.labels)
        theirs = published.train(training)(distillation_step.generator_inputs(batch, TINY), batch.labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_discriminators_are_the_same_function() -> None:
    _, _, discriminator, published = make_pairs(TINY)
    batch = make_batch(TINY)
    with torch.no_grad():
        scores, activations = discriminator.eval()(batch.images, batch.labels)
        published_scores, published_activations = published.eval()(batch.images, batch.labels)
    torch.testing.assert_close(scores, published_scores, rtol=1e-4, atol=1e-5)
    assert len(activations) == len(published_activations) == TINY.blocks
    for ours, theirs in zip(activations, published_activations, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_published_step_trains_both_nets() -> None:
    _, generator, _, discriminator = make_pairs(TINY)
    training, batch = PublishedTraining(generator, discriminator), make_batch(TINY)
    before = {name: weight.clone() for net in (generator, discriminator) for name, weight in net.named_parameters()}
    names = []
    for _ in range(5):
        losses = training.update(batch.images, distillation_step.generator_inputs(batch, TINY), batch.labels)
        assert all(math.isfinite(value) for value in losses.values())
        names.append(set(losses))
    unmoved = [
        name
        for net in (generator, discriminator)
        for name, weight in net.named_parameters()
        if torch.equal(weight, before[name])
    ]
    assert unmoved == ["score.bias"]  # teacher's and student's hinge cancel there while all scores are within 1
    assert names[:4] == [{"discriminator", "feature", "pixel", "total"}] * 4
    assert names[4] == names[0] | {"adversarial"}  # n_critic: every fifth step


def test_both_steps_train_alike() -> None:
    """From the same weights, the first fp32 step has the same losses and moves the student the same way."""
    generator, published_generator, discriminator, published_discriminator = make_pairs(TINY)
    batch = make_batch(TINY)
    config = DistillConfig(precision="fp32")
    loss = LossConfig(lambda_2=0.0)  # the two count every fifth step from different ends
    distiller = Distiller(generator, discriminator, iter(()), epoch_steps=10, config=config, loss=loss)
    before = {name: weight.detach().clone() for name, weight in generator.named_parameters()}
    ours = distiller.update((batch, None))
    training = PublishedTraining(published_generator, published_discriminator)
    theirs = training.update(batch.images, distillation_step.generator_inputs(batch, TINY), batch.labels)
    assert ours["discriminator"] == pytest.approx(theirs["discriminator"], rel=1e-3)
    assert ours["pixel"] == pytest.approx(theirs["pixel"], rel=1e-4)
    assert ours["feature"] == pytest.approx(theirs["feature"], rel=5e-2)  # D before or after its own step
    published = dict(published_generator.named_parameters())
    moves = torch.cat([(weight.detach() - before[name]).flatten() for name, weight in generator.named_parameters()])
    published_moves = torch.cat([(published[name].detach() - before[name]).flatten() for name in before])
    assert torch.cosine_similarity(moves, published_moves, dim=0) > 0.9


SCRIPTS = {"distillation_step": distillation_step, "imagenet_step": imagenet_step, "inference": inference}
SCRIPTS |= {"teacher_sampling": teacher_sampling}


def test_every_command_that_is_written_down_is_one() -> None:
    texts = [script.__doc__ for script in SCRIPTS.values()] + [Path(timing.__file__).with_name("README.md").read_text()]
    found = [command for text in texts for command in re.findall(r"python -m benchmarks\.(\w+)((?: \S+)*)", text)]
    assert {name for name, _ in found} == set(SCRIPTS)
    for name, options in found:
        arguments = options.partition("`")[0].split()
        assert isinstance(tyro.cli(SCRIPTS[name].Config, args=arguments), SCRIPTS[name].Config)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_one_thread_is_the_default(script: ModuleType) -> None:
    """Where other programs share the cores, several are a trap: see the README."""
    assert script.Config().runtime == timing.Machine(device="cpu", threads=1)


def test_ratio_is_paired() -> None:
    fast = [1.0, 5.0, 2.0, 8.0, 1.0]  # a machine whose load changes: only the pairs are comparable
    assert timing.ratio([3 * seconds for seconds in fast], fast) == (3.0, 3.0, 3.0)
    mixed = timing.ratio([2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 5)
    assert mixed.median == 4.0
    assert 2.0 <= mixed.low < 4.0 < mixed.high <= 6.0


def test_calls_alternate() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = timing.alternate(calls, repeats=2, warmup=1, device=torch.device("cpu"))
    assert "".join(order) == "ababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def check(rows: list[dict], out: Path, count: int) -> None:
    """Every row is finite and positive, and the CSV has the same rows, each with its machine."""
    assert len(rows) == count
    for row in rows:
        assert all(math.isfinite(row[column]) and row[column] > 0 for column in ("ms", "ratio", "ratio_low"))
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in written] == pytest.approx([row["ratio"] for row in rows])
    assert all(row["hardware"] and row["torch"] == torch.__version__ for row in written)


def test_distillation_step_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.csv"
    config = distillation_step.Config(student=TINY, discriminator_width=8, batch_size=4, repeats=1, warmup=1, out=out)
    rows = distillation_step.main(config)
    check(rows, out, count=3)
    assert [row["step"] for row in rows] == ["published fp32", "suite fp32", "suite bf16"]
    assert rows[0]["ratio"] == 1
    assert "published fp32" in capsys.readouterr().out


def test_distillation_step_refuses_a_label_embedding() -> None:
    with pytest.raises(InputError, match="label-input"):
        distillation_step.main(distillation_step.Config(student=TinyGANConfig()))


def test_teacher_sampling_measures(tmp_path: Path) -> None:
    out = tmp_path / "sampling.csv"
    rows = teacher_sampling.main(teacher_sampling.Config(batch_size=4, per_class=2, repeats=1, warmup=1, out=out))
    check(rows, out, count=6)
    assert all(row["records_per_second"] > 0 for row in rows)


def test_inference_measures(tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    rows = inference.main(inference.Config(batch_sizes=(1, 2), repeats=1, warmup=1, out=out))
    check(rows, out, count=18)
    size = {(row["mechanism"], row["source"]): row["parameters"] for row in rows}
    assert size["texture", "published student"] == 2_101_955
    assert size["shape", "teacher"] == 194_914
    assert all(size[mechanism, "native student"] < size[mechanism, "teacher"] for mechanism in ("shape", "texture"))
