"""Held-out evaluation of a student: on noise that no training ever sees, the same for every run."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from skdcgn import metrics
from skdcgn.images import grid
from skdcgn.mechanisms import Mechanism
from skdcgn.models.tinygan import TinyGANGenerator
from skdcgn.runtime import stream
from skdcgn.students import fit_resolution, render
from skdcgn.teachers import Records, Teacher, balanced_labels

Features = Callable[[Tensor], np.ndarray]

_CHUNK = 250  # images rendered at a time


class HeldOut:
    """What a teacher renders from one fixed set of inputs, to hold students against."""

    def __init__(
        self,
        teacher: Teacher,
        mechanism: Mechanism,
        noise: Tensor,
        labels: Tensor,
        features: Features | None = None,
    ) -> None:
        """Render the teacher's side.

        Args:
            teacher: the black box.
            mechanism: what to compare.
            noise: z, (N, noise_dim).
            labels: y, (N,).
            features: for the Fréchet distance, see `metrics.fidelity`.
        """
        self.mechanism, self.noise, self.labels, self._features = mechanism, noise, labels, features
        self.teacher = _chunked(lambda z, y: teacher.render(mechanism, z, y), noise, labels)

    @classmethod
    def unseen(
        cls,
        teacher: Teacher,
        mechanism: Mechanism,
        per_class: int,
        features: Features | None = None,
        device: torch.device | str = "cpu",
    ) -> "HeldOut":
        """Return the held-out set: noise from a stream that training never draws from, all classes alike."""
        labels = balanced_labels(per_class, teacher.num_classes).to(device)
        noise = teacher.sample_noise(len(labels), stream(0, "held-out", mechanism)).to(device)
        return cls(teacher, mechanism, noise, labels, features)

    @classmethod
    def seen(
        cls, teacher: Teacher, mechanism: Mechanism, records: Records, device: torch.device | str = "cpu"
    ) -> "HeldOut":
        """Return the same comparison on noise of the training records, to tell memory from generalisation."""
        return cls(teacher, mechanism, records.noise.to(device), records.labels.to(device))

    def render(self, student: TinyGANGenerator, count: int | None = None) -> Tensor:
        """Render the student's side at the teacher's resolution: all, or the first `count`."""
        outputs = _chunked(lambda z, y: render(student, self.mechanism, z, y), self.noise[:count], self.labels[:count])
        return fit_resolution(outputs, self.teacher.shape[-1])

    def measure(self, student: TinyGANGenerator) -> dict[str, float]:
        """Return the student's `metrics.fidelity`."""
        return metrics.fidelity(self.mechanism, self.teacher, self.render(student), self._features)

    def compare(self, student: TinyGANGenerator, samples: int = 10, columns: int = 5) -> np.ndarray:
        """Draw rows of the teacher over rows of the student, as in the paper's figures: (height, width, 3) uint8.

        In several short rows, since the UI shows a picture in a square.
        """
        outputs = self.teacher[:samples], self.render(student, samples)
        teacher, student_rows = (self.mechanism.to_image(output, 3).split(columns) for output in outputs)
        return grid([row for pair in zip(teacher, student_rows, strict=True) for row in pair], scale=2)


def _chunked(function: Callable[[Tensor, Tensor], Tensor], noise: Tensor, labels: Tensor) -> Tensor:
    pairs = zip(noise.split(_CHUNK), labels.split(_CHUNK), strict=True)
    return torch.cat([function(z, y) for z, y in pairs])
