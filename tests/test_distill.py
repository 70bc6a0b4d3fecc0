"""The distiller: learning, its step's parts, and bit-identical continuation."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.configs.tinygan import NATIVE_MNIST
from skdcgn.measure.features import frechet_distance
from skdcgn.measure.heldout import HeldOut
from skdcgn.mechanisms import Mechanism
from skdcgn.randomness import seeded, stream
from skdcgn.tinygan.distillation import DistillConfig, Distiller
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches

CONFIG = DistillConfig(steps=8, batch_size=8, learning_rate=2e-3, schedule="cosine", ema=0.9, precision="fp32")
FULL_LOSS = LossConfig(kl=0.5, cross_entropy=0.1, n_critic=2)


def _distiller(
    teacher: MNISTTeacher, loss: LossConfig = FULL_LOSS, config: DistillConfig = CONFIG, **student: Any
) -> Distiller:
    architecture = replace(NATIVE_MNIST, width=4, **student).for_mechanism(Mechanism.TEXTURE)
    with seeded(0, "distiller"):
        generator = TinyGANGenerator(architecture)
        discriminator = TinyGANDiscriminator(architecture, width=4) if loss.needs_discriminator else None
    batches = FreshBatches(teacher, Mechanism.TEXTURE, config.batch_size, stream(0, "train"))
    return Distiller(generator, discriminator, batches, 4, config, loss)


def test_update_reports_every_term_and_their_sum(random_teacher: MNISTTeacher) -> None:
    (step, losses), *_ = _distiller(random_teacher).fit()
    assert step == 1
    terms = {"feature", "pixel", "adversarial", "kl", "cross_entropy"}
    assert set(losses) == terms | {"total", "discriminator", "discriminator_cross_entropy"}
    assert losses["total"] == pytest.approx(sum(losses[term] for term in terms), rel=1e-5)


def test_adversarial_term_enters_every_nth_step(random_teacher: MNISTTeacher) -> None:
    there = ["adversarial" in losses for _, losses in _distiller(random_teacher).fit()]
    assert there == [True, False] * 4


def test_student_learns_what_it_is_given(random_teacher: MNISTTeacher) -> None:
    loss = LossConfig(feature=0, lambda_1=1, lambda_1_decay=0, lambda_2=0)
    distiller = _distiller(random_teacher, loss, replace(CONFIG, steps=150, ema=0.0, batch_size=16))
    heldout = HeldOut.unseen(random_teacher, Mechanism.TEXTURE, per_class=3)
    before = heldout.measure(distiller.result)["l1"]
    for _ in distiller.fit():
        pass
    assert heldout.measure(distiller.result)["l1"] < 0.7 * before


@pytest.mark.parametrize("term", ["discriminator", "student"])
def test_each_network_is_moved_by_its_own_step_only(random_teacher: MNISTTeacher, term: str) -> None:
    """The student's update must not leak into the discriminator: its weights move by the hinge loss alone."""
    distiller = _distiller(random_teacher)
    reference = _distiller(random_teacher, replace(FULL_LOSS, feature=7.0))
    batch = next(FreshBatches(random_teacher, Mechanism.TEXTURE, 8, stream(1, "batch"))), None
    distiller.update(batch)
    reference.update(batch)
    moved = getattr(distiller, term).state_dict()
    other = getattr(reference, term).state_dict()
    same = all(torch.equal(moved[key], other[key]) for key in moved)
    assert same == (term == "discriminator")


@pytest.mark.parametrize("loss", [FULL_LOSS, LossConfig(feature=0, lambda_2=0, lambda_1=1, kl=1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_continuation_is_bit_identical(random_teacher: MNISTTeacher, loss: LossConfig, precision: str) -> None:
    config = replace(CONFIG, precision=precision)
    whole = _distiller(random_teacher, loss, config)
    expected = dict(whole.fit())

    first = _distiller(random_teacher, loss, config)
    steps = first.fit()
    seen = dict(next(steps) for _ in range(3))
    state = copy.deepcopy(first.state_dict())

    second = _distiller(random_teacher, loss, config)
    for parameter in second.student.parameters():
        parameter.data.zero_()
    second.load_state_dict(state)
    seen |= dict(second.fit())
    assert seen == expected
    for key, value in whole.result.state_dict().items():
        assert torch.equal(value, second.result.state_dict()[key]), key


def test_schedule_warms_up_and_ends_near_zero(random_teacher: MNISTTeacher) -> None:
    distiller = _distiller(random_teacher, config=replace(CONFIG, steps=40, warmup=4))
    rates = []
    for _ in distiller.fit():
        rates.append(distiller._optimizer.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(CONFIG.learning_rate, rel=0.05)
    assert rates.index(max(rates)) <= 5
    assert rates[-1] < 0.01 * CONFIG.learning_rate


def test_average_is_evaluated_where_there_is_one(random_teacher: MNISTTeacher) -> None:
    assert _distiller(random_teacher).result is not _distiller(random_teacher).student
    plain = _distiller(random_teacher, config=replace(CONFIG, ema=0.0))
    assert plain.result is plain.student


def test_rgb_student_sees_masks_as_grey_at_its_own_resolution(random_teacher: MNISTTeacher) -> None:
    architecture = replace(NATIVE_MNIST, width=4, resolution=64, mask_channels=3).for_mechanism(Mechanism.SHAPE)
    batches = FreshBatches(random_teacher, Mechanism.SHAPE, 4, stream(0, "train"))
    discriminator = TinyGANDiscriminator(architecture, width=4)
    distiller = Distiller(
        TinyGANGenerator(architecture), discriminator, batches, 1, replace(CONFIG, steps=1), LossConfig()
    )
    assert [step for step, _ in distiller.fit()] == [1]
    heldout = HeldOut.unseen(random_teacher, Mechanism.SHAPE, per_class=1)
    assert heldout.render(distiller.result).shape == (10, 1, 32, 32)


def test_discriminator_terms_need_a_discriminator(random_teacher: MNISTTeacher) -> None:
    batches = FreshBatches(random_teacher, Mechanism.SHAPE, 4, stream(0, "train"))
    with pytest.raises(ValueError, match="give a discriminator"):
        Distiller(TinyGANGenerator(NATIVE_MNIST), None, batches, 1, CONFIG, LossConfig())


def test_frechet_distance_is_between_features_of_teacher_and_student(random_teacher: MNISTTeacher) -> None:
    student = _distiller(random_teacher).result
    heldout = HeldOut.unseen(random_teacher, Mechanism.TEXTURE, 2, features=lambda images: images.mean((2, 3)).numpy())
    for part in (heldout, heldout.excerpt(11)):
        colors = [images.mean((2, 3)).numpy() for images in (part.teacher, part.render(student))]
        assert len(colors[0]) == len(part.labels)
        assert part.measure(student)["frechet"] == pytest.approx(frechet_distance(*colors)) != 0
    assert "frechet" not in HeldOut.unseen(random_teacher, Mechanism.TEXTURE, 2).measure(student)


def test_seen_and_unseen_noise_differ(random_teacher: MNISTTeacher) -> None:
    train = next(FreshBatches(random_teacher, Mechanism.SHAPE, 50, stream(0, "train", Mechanism.SHAPE)))
    unseen = HeldOut.unseen(random_teacher, Mechanism.SHAPE, per_class=5)
    rows = {tuple(row) for row in train.noise.tolist()} & {tuple(row) for row in unseen.noise.tolist()}
    assert not rows
