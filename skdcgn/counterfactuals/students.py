"""SKDCGN itself: three TinyGAN students that together stand in for a CGN (paper Sec. 3.1, inference)."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.tinygan.networks import TinyGANGenerator


class SKDCGN:
    """Three students behind the `Source` protocol, so that whatever takes a CGN takes them as well."""

    def __init__(
        self,
        students: Mapping[Mechanism, TinyGANGenerator],
        name: str = "SKDCGN",
        stand_in: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Compose students.

        Args:
            students: one generator for each mechanism; they must agree on resolution, noise and classes.
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
        configs = [students[mechanism].config for mechanism in Mechanism]
        if len({(config.resolution, config.noise_dim, config.num_classes) for config in configs}) > 1:
            raise InputError("the three students differ in resolution, noise or classes: they cannot be composed.")
        self._students = {mechanism: students[mechanism].to(device).eval() for mechanism in Mechanism}
        self.name = name
        self.stand_in = stand_in
        self.resolution = configs[0].resolution
        self.noise_dim = configs[0].noise_dim
        self.num_classes = configs[0].num_classes
        self.sha256 = _digest(self._students)

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw z ~ N(0, I), (n, noise_dim), on the generator's device."""
        return torch.randn(n, self.noise_dim, generator=generator, device=generator.device)

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return a mask (B, 1, H, W) in [0, 1], or a texture or background (B, 3, H, W) in [-1, 1]."""
        return render(self._students[mechanism], mechanism, noise, labels)

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the parameters of a mechanism's student."""
        return sum(parameter.numel() for parameter in self._students[mechanism].parameters())


@torch.no_grad()
def render(student: TinyGANGenerator, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
    """Run one student in eval mode and map its image to the mechanism's own range and channels."""
    training = student.training
    student.eval()
    device = student.fc.weight.device
    output = mechanism.from_image(student(noise.to(device), labels.to(device)).float())
    student.train(training)
    return output


def _digest(students: Mapping[Mechanism, TinyGANGenerator]) -> str:
    digest = hashlib.sha256()
    for mechanism in Mechanism:
        for key, value in sorted(students[mechanism].state_dict().items()):
            digest.update(f"{mechanism}.{key}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
