"""SKDCGN itself: three students that together stand in for a CGN (paper Sec. 3.1, inference)."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.mechanisms import NORMAL, Mechanism, Source
from skdcgn.tinygan.networks import Student
from skdcgn.training import state_digest


class SKDCGN(Source):
    """Three students as one source, so that whatever takes a CGN takes them as well."""

    def __init__(
        self,
        students: Mapping[Mechanism, Student],
        name: str = "SKDCGN",
        stand_in: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Compose students.

        Args:
            students: one generator for each mechanism; they must agree on resolution, noise prior and classes.
            name: for tags and titles.
            stand_in: whether their teacher was an untrained or miniature stand-in.
            device: where to run them.

        Raises:
            InputError: a mechanism is missing, or the students do not fit each other.
        """
        missing = [mechanism.value for mechanism in Mechanism if mechanism not in students]
        if missing:
            raise InputError(
                f"SKDCGN needs a student for every mechanism: no {' and no '.join(missing)} student given."
            )
        shared = {
            (student.config.resolution, student.config.noise_dim, student.config.num_classes, student.prior)
            for student in students.values()
        }
        if len(shared) > 1:
            raise InputError("the three students differ in resolution, noise or classes: they cannot be composed.")
        ((self.resolution, self.noise_dim, self.num_classes, self.prior),) = shared
        self._students = {mechanism: students[mechanism].to(device).eval() for mechanism in Mechanism}
        self.name = name
        self.stand_in = stand_in
        states = {mechanism: self._students[mechanism].state_dict() for mechanism in Mechanism}
        self.sha256 = state_digest(*({f"{m}.{key}": value for key, value in states[m].items()} for m in Mechanism))
        if self.prior != NORMAL:
            self.sha256 = hashlib.sha256(f"{self.sha256} {self.prior}".encode()).hexdigest()

    def student(self, mechanism: Mechanism) -> Student:
        """Return one mechanism's student."""
        return self._students[mechanism]

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Run one mechanism's student; see `Source.render`."""
        return render(self._students[mechanism], mechanism, noise, labels)

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the parameters of a mechanism's student."""
        return sum(parameter.numel() for parameter in self._students[mechanism].parameters())


@torch.no_grad()
def render(student: Student, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
    """Run one student in eval mode and map its image to the mechanism's own range and channels."""
    training = student.training
    student.eval()
    device = student.fc.weight.device
    output = mechanism.from_image(student(noise.to(device), labels.to(device)).float())
    student.train(training)
    return output
