"""The stages of the paper's baseline for ImageNet."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from skdcgn.configs.cgn import ReconstructionConfig
from skdcgn.configs.fields import Checked, PositiveInt, Seed, SeveralInt, Share, Times
from skdcgn.configs.tinygan import DistillConfig, LossConfig, TinyGANConfig
from skdcgn.runs.plan import RunConfig

if TYPE_CHECKING:
    import torch

    from skdcgn.cgn.baseline import Parts


CounterfactualSource = Literal["baseline", "cgn", "skdcgn"]
"""What composes counterfactuals: the CGN of TinyGANs, the CGN itself, or its students."""
ALL_SOURCES: tuple[CounterfactualSource, ...] = get_args(CounterfactualSource)


@dataclass(frozen=True)
class TinyGANRecipe(Checked):
    """How the baseline's TinyGAN is distilled from the unconstrained BigGAN."""

    architecture: TinyGANConfig
    distill: DistillConfig
    """Its training, always on freshly rendered images: `per_class` says only how many make an epoch."""
    loss: LossConfig
    """Its objective: with real images (see `LossConfig.real`)."""
    epochs: PositiveInt = 18
    """Epochs that the training stands for, after the first and last of which Fig. 8 shows it."""
    heldout: SeveralInt = 1000
    """Held-out images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.architecture.check_sizes()
        if self.loss.feature:
            self.architecture.check_levels(self.loss.alphas)


@dataclass(frozen=True)
class CGNRecipe(Checked):
    """How the baseline's CGN is trained."""

    training: ReconstructionConfig
    snapshots: Times = 5
    """Times at which Fig. 9 shows its mechanisms, evenly spaced from before the first step to after the last."""
    heldout: PositiveInt = 1000
    """Held-out inputs."""


@dataclass(frozen=True)
class PartsConfig(Checked):
    """What the baseline takes of others' work; see `cgn.baseline.load_parts`."""

    miniature: bool
    """Whether the default is the packaged miniature rather than the authors' CGN."""
    truncation: Share
    """Of the unconstrained generator."""
    teacher: Path | None = None
    biggan: Path | None = None
    u2net: Path | None = None

    def load(self, device: "torch.device | str" = "cpu") -> "Parts":
        """Load the parts.

        Raises:
            InputError: a file is missing or damaged.
        """
        from skdcgn.cgn.baseline import load_parts

        return load_parts(self.teacher, self.biggan, self.u2net, self.miniature, self.truncation, device)


@dataclass(frozen=True)
class StageConfig(RunConfig):
    """What every run of the baseline has in its config."""

    parts: PartsConfig


@dataclass(frozen=True)
class TinyGANRunConfig(StageConfig):
    """The distillation of the TinyGAN."""

    seed: Seed
    """Of initial weights and training noise."""
    recipe: TinyGANRecipe
    real_images: Path | None = None
    """An ImageFolder; by default miniature pictures, for a miniature teacher."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""


@dataclass(frozen=True)
class CGNRunConfig(StageConfig):
    """The training of the CGN of TinyGANs."""

    seed: Seed
    """Of the training's draws."""
    recipe: CGNRecipe
    tinygan_checkpoint: Path | None = None
    """A TinyGAN of its authors, where no run has distilled one."""


@dataclass(frozen=True)
class CounterfactualRunConfig(StageConfig):
    """The measurement of one source of counterfactuals."""

    source: CounterfactualSource
    count: PositiveInt
    """How many, of the baseline's own measures; the feature distances take as many for each class as that makes."""
