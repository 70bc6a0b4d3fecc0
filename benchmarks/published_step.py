"""The published distillation step, as a baseline for time: our transcription of its order of work.

Written from a description of the public release (TinyGAN's generator and discriminator, SKDCGN's MNIST solver), not
from its code. It trains the same networks with the same objective as `skdcgn.tinygan.distillation.Distiller`, and
differs in how:

- everything in fp32, channels first in memory;
- two generator forwards a step: one whose result is detached for the discriminator's update, one for the student's;
- a discriminator pass of its own for the teacher's and for the student's images, and on every fifth step another one
  for the adversarial term;
- the shortcut's 1x1 convolution after its upsampling, on four times as many pixels;
- the teacher's activations are those of the discriminator's own update, from before its optimizer step (no further
  pass is spent on them: it would make the baseline slower than it was).

Module names are those of `skdcgn.tinygan.networks`, so that weights can be copied over with `load_state_dict`.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from skdcgn.configs.tinygan import TinyGANConfig

_ALPHAS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
_LAMBDA_PIXEL = 0.2
_LAMBDA_ADVERSARIAL = 0.01
_N_CRITIC = 5
_LEARNING_RATE, _BETAS = 2e-4, (0.0, 0.9)


class _ConditionalBatchNorm(nn.Module):
    def __init__(self, channels: int, class_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.affine = nn.Linear(class_dim, 2 * channels)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.affine(condition).chunk(2, dim=1)
        return gamma[:, :, None, None] * self.norm(features) + beta[:, :, None, None]


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, class_dim: int) -> None:
        super().__init__()
        self.norm1 = _ConditionalBatchNorm(in_channels, class_dim)
        self.depthwise1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.pointwise1 = nn.Conv2d(in_channels, out_channels, 1)
        self.norm2 = _ConditionalBatchNorm(out_channels, class_dim)
        self.depthwise2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.pointwise2 = nn.Conv2d(out_channels, out_channels, 1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        residual = F.interpolate(F.relu(self.norm1(features, condition)), scale_factor=2, mode="bilinear")
        residual = F.relu(self.norm2(self.pointwise1(self.depthwise1(residual)), condition))
        residual = self.pointwise2(self.depthwise2(residual))
        return residual + self.shortcut(F.interpolate(features, scale_factor=2, mode="bilinear"))


class PublishedGenerator(nn.Module):
    """The student's generator; noise and one-hot label come as one vector, as in the published data."""

    def __init__(self, config: TinyGANConfig) -> None:
        super().__init__()
        widest = config.width * 2 ** (config.blocks - 1)
        widths = [widest] + [widest >> block for block in range(config.blocks)]
        self.start = config.resolution >> config.blocks
        self.class_embedding = nn.Embedding(config.class_rows, config.class_dim)
        self.fc = nn.Linear(config.input_dim, widest * self.start**2)
        self.blocks = nn.ModuleList(
            _Block(in_channels, out_channels, config.class_dim) for in_channels, out_channels in pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(config.width)
        self.to_image = nn.Conv2d(config.width, config.channels, 3, padding=1)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Map inputs (B, input_dim) and labels (B,) to images (B, C, H, W) in [-1, 1]."""
        condition = self.class_embedding(labels)
        features = self.fc(inputs).view(len(inputs), -1, self.start, self.start)
        for block in self.blocks:
            features = block(features, condition)
        return torch.tanh(self.to_image(F.relu(self.norm(features))))


class PublishedDiscriminator(nn.Module):
    """The projection discriminator."""

    def __init__(self, config: TinyGANConfig, width: int = 32) -> None:
        super().__init__()
        widths = [config.channels] + [width << layer for layer in range(config.blocks)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1))
            for in_channels, out_channels in pairwise(widths)
        )
        self.score = spectral_norm(nn.Linear(widths[-1], 1))
        self.class_embedding = spectral_norm(nn.Embedding(config.class_rows, widths[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return scores (B,) and the activations, first to last layer."""
        activations = []
        features = images
        for layer in self.layers:
            features = F.leaky_relu(layer(features), 0.01)
            activations.append(features)
        pooled = features.sum(dim=(2, 3))
        return self.score(pooled).squeeze(1) + (self.class_embedding(labels) * pooled).sum(dim=1), activations


class PublishedTraining:
    """The published training of one student, step by step."""

    def __init__(self, generator: PublishedGenerator, discriminator: PublishedDiscriminator) -> None:
        self.generator, self.discriminator = generator.train(), discriminator.train()
        self.step = 0
        self._generator_optimizer = torch.optim.Adam(generator.parameters(), _LEARNING_RATE, _BETAS)
        self._discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), _LEARNING_RATE, _BETAS)

    def update(self, images: Tensor, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Take one step on teacher images (B, C, H, W), their generator inputs (B, input_dim) and labels (B,).

        Returns:
            The weighted loss terms, under the names that `Distiller.update` gives them.
        """
        losses = {}
        self.discriminator.requires_grad_(True)
        teacher_scores, teacher_activations = self.discriminator(images, labels)
        teacher_activations = [activation.detach() for activation in teacher_activations]
        student_scores, _ = self.discriminator(self.generator(inputs, labels).detach(), labels)
        loss = F.relu(1 - teacher_scores).mean() + F.relu(1 + student_scores).mean()
        self._discriminator_optimizer.zero_grad()
        loss.backward()
        self._discriminator_optimizer.step()
        losses["discriminator"] = loss.item()

        self.discriminator.requires_grad_(False)
        student_images = self.generator(inputs, labels)
        _, student_activations = self.discriminator(student_images, labels)
        levels = zip(_ALPHAS[-len(teacher_activations) :], teacher_activations, student_activations, strict=True)
        feature = sum(alpha * F.l1_loss(student, teacher) for alpha, teacher, student in levels)
        pixel = _LAMBDA_PIXEL * F.l1_loss(student_images, images)
        losses |= {"feature": feature.item(), "pixel": pixel.item()}
        loss = feature + pixel
        if (self.step + 1) % _N_CRITIC == 0:
            scores, _ = self.discriminator(student_images, labels)
            adversarial = -_LAMBDA_ADVERSARIAL * scores.mean()
            losses["adversarial"] = adversarial.item()
            loss = loss + adversarial
        self._generator_optimizer.zero_grad()
        loss.backward()
        self._generator_optimizer.step()
        self.step += 1
        return losses | {"total": loss.item()}
