"""Distillation of one mechanism into a TinyGAN student (paper Sec. 3.1)."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skdcgn import distributed
from skdcgn.errors import InputError
from skdcgn.images import fit_resolution
from skdcgn.mechanisms import Mechanism
from skdcgn.runtime import Precision, autocast
from skdcgn.tinygan.losses import LossConfig, discriminator_terms, generator_terms
from skdcgn.tinygan.networks import TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import Records


class Batches(Protocol):
    """An endless, resumable stream of teacher records: `teachers.FreshBatches` or `teacher_sets.StoredBatches`."""

    def __next__(self) -> Records: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class DistillConfig:
    """How a student is trained; the objective itself is `losses.LossConfig`."""

    steps: int = 4700
    """Optimiser steps."""
    batch_size: int = 64
    """Teacher records a step, over all processes together."""
    learning_rate: float = 2e-4
    """Adam's learning rate, for student and discriminator."""
    texture_steps: int | None = None
    """Other number of steps for texture and background."""
    texture_learning_rate: float | None = None
    """Other learning rate for texture and background."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam's betas."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the student's learning rate; cosine has a short linear warm-up and ends at 0."""
    warmup: int = 100
    """Steps of that warm-up."""
    ema: float = 0.0
    """Decay of the moving average of the student's weights that is evaluated and kept; 0 keeps the weights."""
    per_class: int = 1000
    """Records of each class in the stored teacher set (the paper's 1000); 0 renders fresh ones at each step."""
    published_code: bool = False
    """Draw the teacher set as the published scripts did (see `teachers.draw_records`)."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    precision: Precision = "bf16"
    """bf16 computes in mixed precision (faster on CPUs and GPUs that have it), fp32 in full."""

    def for_mechanism(self, mechanism: Mechanism) -> "DistillConfig":
        """Return the config with what is special for one mechanism put in its place."""
        if mechanism is Mechanism.SHAPE:
            return self
        steps = self.steps if self.texture_steps is None else self.texture_steps
        rate = self.learning_rate if self.texture_learning_rate is None else self.texture_learning_rate
        return replace(self, steps=steps, learning_rate=rate)


class Distiller:
    """Trains one student, with its discriminator where the objective needs one, on teacher records."""

    def __init__(
        self,
        student: TinyGANGenerator,
        discriminator: TinyGANDiscriminator | None,
        batches: Batches,
        epoch_steps: int,
        config: DistillConfig,
        loss: LossConfig,
        device: torch.device | str = "cpu",
        compile_student: bool = False,
        real: Batches | None = None,
    ) -> None:
        """Set up a training that `fit` then runs.

        Args:
            student: S.
            discriminator: D, or None where `loss.needs_discriminator` is false.
            batches: the teacher's records.
            epoch_steps: steps in an epoch, for the decay of lambda_1.
            config: optimiser and precision.
            loss: the objective.
            device: where to train.
            compile_student: run the student through torch.compile.
            real: real images, with noise for the images that the student draws beside them, where `loss.real` has a
                weight (see `real_images.RealBatches`).
        """
        if loss.needs_discriminator and discriminator is None:
            raise ValueError("this objective has discriminator terms: give a discriminator")
        if loss.real and real is None:
            raise InputError("loss.real needs real images, which this training has none of: leave its weight at 0.")
        if real is not None and not loss.real:
            raise ValueError("real images are given, but loss.real has no weight")
        self.student = student.to(device, memory_format=torch.channels_last).train()
        self.discriminator = None
        if loss.needs_discriminator:
            self.discriminator = discriminator.to(device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.student).requires_grad_(False) if config.ema else None
        self.step = 0
        self.steps = config.steps
        self._device = torch.device(device)
        forward = torch.compile(self.student) if compile_student else self.student
        self._forward = distributed.parallel(forward, self._device)
        self._score = distributed.parallel(self.discriminator, self._device) if self.discriminator else None
        self._batches, self._real, self._epoch_steps = batches, real, epoch_steps
        self._config, self._loss = config, loss
        self._optimizer = self._adam(self.student)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._learning_rate_factor)
        self._discriminator_optimizer = self._adam(self.discriminator) if self.discriminator else None

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), self._config.learning_rate, self._config.betas, fused=True)

    def _learning_rate_factor(self, step: int) -> float:
        if self._config.schedule == "constant":
            return 1.0
        warmup = min(self._config.warmup, self.steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())

    @property
    def result(self) -> TinyGANGenerator:
        """The student to evaluate and to keep: the moving average where there is one."""
        return self.average if self.average is not None else self.student

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train to the last step, yielding (step, losses) after each."""
        while self.step < self.steps:
            losses = self.update(next(self._batches), None if self._real is None else next(self._real))
            yield self.step, losses

    def update(self, batch: Records, real: Records | None = None) -> dict[str, float]:
        """Take one step on a batch, and on a batch of real images where the objective has them.

        Returns:
            Every weighted loss term by name, and the student's `total`.
        """
        noise, labels = batch.noise, batch.labels
        config = self.student.config
        images = fit_resolution(batch.images, config.resolution)
        images = images.expand(-1, config.channels, -1, -1).contiguous(memory_format=torch.channels_last)

        adversarial = self.step % self._loss.n_critic == 0
        with autocast(self._device, self._config.precision):
            student_images = self._forward(noise, labels)
            beside_real = None
            if real is not None:
                real = real._replace(images=fit_resolution(real.images, config.resolution))
                with torch.set_grad_enabled(adversarial):  # else only the discriminator looks at them
                    beside_real = Records(real.noise, real.labels, self._forward(real.noise, real.labels))

        discriminator_losses = self._update_discriminator(images, student_images.detach(), labels, real, beside_real)
        terms = self._student_terms(images, student_images, labels, beside_real, adversarial)
        total = sum(terms.values())
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._optimizer.step()
        self._schedule.step()
        self._update_average()
        self.step += 1

        named = {**terms, "total": total, **discriminator_losses}
        return dict(zip(named, torch.stack([value.detach() for value in named.values()]).tolist(), strict=True))

    def _update_discriminator(
        self,
        images: Tensor,
        student_images: Tensor,
        labels: Tensor,
        real: Records | None,
        beside_real: Records | None,
    ) -> dict[str, Tensor]:
        """Step the discriminator once, on teacher's, student's and real images in one pass."""
        if self.discriminator is None:
            return {}
        self.discriminator.requires_grad_(True)
        kinds = [(images, labels), (student_images, labels)]
        if real is not None:
            kinds += [(real.images, real.labels), (beside_real.images.detach(), real.labels)]
        seen, seen_labels = (torch.cat(field) for field in zip(*kinds, strict=True))
        scores, _ = self._discriminate(seen, seen_labels, self._score)
        teacher_scores, student_scores, *others = scores.split([len(images) for images, _ in kinds])
        terms = discriminator_terms(teacher_scores, student_scores, self._loss, *others)
        self._discriminator_optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        self._discriminator_optimizer.step()
        return terms

    def _student_terms(
        self,
        images: Tensor,
        student_images: Tensor,
        labels: Tensor,
        beside_real: Records | None,
        adversarial: bool,
    ) -> dict[str, Tensor]:
        """The student's objective on one batch, as weighted terms."""
        teacher_activations, student_activations, student_scores, scores_beside_real = [], [], None, None
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            with parametrize.cached():  # one spectral norm for both passes
                with torch.no_grad():  # in one pass with the student's, the teacher's half would be differentiated too
                    _, teacher_activations = self._discriminate(images, labels)
                student_scores, student_activations = self._discriminate(student_images, labels)
                if beside_real is not None and adversarial:
                    scores_beside_real, _ = self._discriminate(beside_real.images, beside_real.labels)
        return generator_terms(
            images,
            student_images,
            teacher_activations,
            student_activations,
            student_scores,
            self._loss,
            epoch=self.step // self._epoch_steps,
            adversarial=adversarial,
            scores_beside_real=scores_beside_real,
        )

    def _discriminate(
        self, images: Tensor, labels: Tensor, network: nn.Module | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the discriminator: in its own step as the `network` that averages gradients over processes."""
        with autocast(self._device, self._config.precision):
            scores, activations = (network or self.discriminator)(images, labels)
        return scores.float(), [activation.float() for activation in activations]

    @torch.no_grad()
    def _update_average(self) -> None:
        """Follow the student's weights: weight by weight, and its buffers exactly.

        Early on the decay is lower, so that the random initial weights are forgotten.
        """
        if self.average is None:
            return
        decay = min(self._config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 1 - decay)
        torch._foreach_copy_(list(self.average.buffers()), list(self.student.buffers()))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs."""
        state = {
            "step": self.step,
            "student": self.student.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "batches": self._batches.state_dict(),
        }
        if self._real is not None:
            state["real"] = self._real.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self._discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._batches.load_state_dict(state["batches"])
        if self._real is not None:
            self._real.load_state_dict(state["real"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self._discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
