"""Distillation of one mechanism into a student (paper Sec. 3.1)."""

from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skdcgn import distributed
from skdcgn.configs.tinygan import DistillConfig, LossConfig
from skdcgn.errors import InputError
from skdcgn.images import fit_resolution
from skdcgn.runtime import autocast
from skdcgn.tinygan.losses import discriminator_terms, generator_terms
from skdcgn.tinygan.networks import Student, TinyGANDiscriminator
from skdcgn.tinygan.records import Records
from skdcgn.training import Stateful, Trainer, descend, warm_cosine

Network = TypeVar("Network", bound=nn.Module)


class Batches(Stateful, Protocol):
    """An endless, resumable stream of teacher records: `records.FreshBatches` or `teacher_sets.StoredBatches`."""

    def __next__(self) -> Records: ...


class Distiller(Trainer[tuple[Records, Records | None]]):
    """Trains one student, with its discriminator where the objective needs one, on teacher records.

    A batch is the teacher's records, and a batch of real images where the objective has them.
    """

    def __init__(
        self,
        student: Student,
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
            config: optimizer and precision.
            loss: the objective.
            device: where to train.
            compile_student: run the student through torch.compile.
            real: real images, with noise for the images that the student draws beside them, where `loss.real` has a
                weight (see `real_batches.RealBatches`).
        """
        if loss.needs_discriminator and discriminator is None:
            raise ValueError("this objective has discriminator terms: give a discriminator")
        if loss.real and real is None:
            raise InputError("loss.real needs real images, which this training has none of: leave its weight at 0.")
        if real is not None and not loss.real:
            raise ValueError("real images are given, but loss.real has no weight")
        super().__init__(config.steps, parallel=True)
        self._device = torch.device(device)
        self._batches, self._real, self._epoch_steps = batches, real, epoch_steps
        self._config, self._loss = config, loss
        self.student = self.register("student", self._set_up(student))
        schedule = warm_cosine(config.steps, config.warmup) if config.schedule == "cosine" else None
        self._optimizer = self.register_optimizer("optimizer", self._adam(self.student), schedule)
        self.result: Student = self.student
        """The student to evaluate and to keep: the moving average where there is one."""
        if config.ema:
            self.result = self.average("average", self.student, config.ema, average_buffers=False)
        self.discriminator = None
        if loss.needs_discriminator:
            self.discriminator = self.register("discriminator", self._set_up(discriminator))
            self._discriminator_optimizer = self.register_optimizer(
                "discriminator_optimizer", self._adam(self.discriminator)
            )
        self._forward = torch.compile(self.student) if compile_student else self.student
        self.register("batches", batches)
        if real is not None:
            self.register("real", real)

    def _set_up(self, network: Network) -> Network:
        return distributed.parallel(network.to(self._device, memory_format=torch.channels_last).train())

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), self._config.learning_rate, self._config.betas, fused=True)

    def batches(self) -> Iterator[tuple[Records, Records | None]]:
        """Yield the teacher's records and real images, if any, of each step that is still to do."""
        while self.step < self.steps:
            yield next(self._batches), None if self._real is None else next(self._real)

    def training_step(self, batch: tuple[Records, Records | None]) -> dict[str, Tensor]:
        """Step discriminator and student; return every weighted loss term, and the student's `total`."""
        (noise, labels, images), real = batch
        config = self.student.config
        images = fit_resolution(images, config.resolution)
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
        total = descend(self._optimizer, terms)
        return {**terms, "total": total, **discriminator_losses}

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
        scores, _ = self._discriminate(seen, seen_labels)
        teacher_scores, student_scores, *others = scores.split([len(images) for images, _ in kinds])
        terms = discriminator_terms(teacher_scores, student_scores, self._loss, *others)
        descend(self._discriminator_optimizer, terms)
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

    def _discriminate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        with autocast(self._device, self._config.precision):
            scores, activations = self.discriminator(images, labels)
        return scores.float(), [activation.float() for activation in activations]
