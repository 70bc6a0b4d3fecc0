"""Held-out evaluation of a student, on noise that no training ever sees, the same for every run."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from skdcgn.counterfactuals.students import render
from skdcgn.data.labels import balanced_labels
from skdcgn.images import enlargement, fit_resolution, grid
from skdcgn.measure.features import frechet_distance
from skdcgn.measure.fidelity import fidelity
from skdcgn.mechanisms import Mechanism, Source, in_chunks, render_finite
from skdcgn.randomness import stream
from skdcgn.tinygan.networks import Student
from skdcgn.tinygan.records import Records

Features = Callable[[Tensor], np.ndarray]


class HeldOut:
    """What a teacher renders from one fixed set of inputs, to compare students with."""

    def __init__(
        self,
        teacher: Source,
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
            features: maps RGB images (B, 3, H, W) in [-1, 1] to (B, D), for the Fréchet distance; None leaves it out.
        """
        self.mechanism, self.noise, self.labels, self._features = mechanism, noise, labels, features
        self.teacher = in_chunks(
            partial(render_finite, teacher, mechanism), noise, labels, _at_once(teacher.resolution)
        )
        self._teacher_features = None if features is None else features(mechanism.to_image(self.teacher, 3))

    @classmethod
    def unseen(
        cls,
        teacher: Source,
        mechanism: Mechanism,
        per_class: int,
        features: Features | None = None,
        device: torch.device | str = "cpu",
        classes: Sequence[int] | None = None,
    ) -> "HeldOut":
        """Return the held-out set: noise from a stream that training never draws from, all classes alike.

        `classes` are the labels, all of the teacher's by default.
        """
        own = torch.tensor(range(teacher.num_classes) if classes is None else classes)
        labels = own[balanced_labels(per_class, len(own))].to(device)
        noise = teacher.sample_noise(len(labels), stream(0, "held-out", mechanism)).to(device)
        return cls(teacher, mechanism, noise, labels, features)

    @classmethod
    def seen(
        cls, teacher: Source, mechanism: Mechanism, records: Records, device: torch.device | str = "cpu"
    ) -> "HeldOut":
        """Return the same comparison on noise of the training records, to tell memory from generalization."""
        return cls(teacher, mechanism, records.noise.to(device), records.labels.to(device))

    def excerpt(self, count: int) -> "HeldOut":
        """Return `count` of its inputs: the first where they have each class twice at most, else evenly spread ones."""
        index = torch.arange(min(count, len(self.labels)))
        if len(self.labels[:count].unique()) < len(self.labels.unique()):
            index = torch.linspace(0, len(self.labels) - 1, count).round().long()
        excerpt = copy.copy(self)
        excerpt.noise, excerpt.labels, excerpt.teacher = self.noise[index], self.labels[index], self.teacher[index]
        if self._teacher_features is not None:
            excerpt._teacher_features = self._teacher_features[index.numpy()]
        return excerpt

    def render(self, student: Student, count: int | None = None) -> Tensor:
        """Render the student's side at the teacher's resolution: all, or the first `count`."""
        run, at_once = partial(render, student, self.mechanism), _at_once(student.config.resolution)
        outputs = in_chunks(run, self.noise[:count], self.labels[:count], at_once)
        return fit_resolution(outputs, self.teacher.shape[-1])

    def measure(self, student: Student) -> dict[str, float]:
        """Return the student's `fidelity`, and as `frechet` its Fréchet distance where there are features."""
        outputs = self.render(student)
        measured = fidelity(self.mechanism, self.teacher, outputs)
        if self._features is not None:
            features = self._features(self.mechanism.to_image(outputs, 3))
            measured["frechet"] = frechet_distance(self._teacher_features, features)
        return measured

    def compare(self, student: Student, samples: int = 10, columns: int = 5) -> np.ndarray:
        """Draw rows of the teacher over rows of the student, as in the paper's figures: (height, width, 3) uint8.

        In several short rows, since the UI shows a picture in a square.
        """
        samples = min(samples, len(self.labels))
        columns = min(columns, samples)
        shown = self.excerpt(samples - samples % columns)
        outputs = shown.teacher, shown.render(student)
        teacher, student_rows = (self.mechanism.to_image(output, 3).split(columns) for output in outputs)
        rows = [row for pair in zip(teacher, student_rows, strict=True) for row in pair]
        return grid(rows, enlargement(self.teacher.shape[-1]))


def _at_once(resolution: int) -> int:
    """Return how many images of a side are rendered at a time: 64 of 256x256, and 250 at most."""
    return min(250, max(1, (1 << 22) // resolution**2))
