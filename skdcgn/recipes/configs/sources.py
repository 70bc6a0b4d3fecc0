"""Teachers as fields of a config."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skdcgn.configs.fields import Checked, Share
from skdcgn.configs.names import Dataset, Precision
from skdcgn.errors import InputError

if TYPE_CHECKING:
    import torch

    from skdcgn.cgn.teachers import ImageNetTeacher, MNISTTeacher
    from skdcgn.runs.store import RunRecord, Store


@dataclass(frozen=True)
class MNISTTeacherConfig(Checked):
    """A teacher for an MNIST variant."""

    dataset: Dataset
    """Whose CGN: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    checkpoint: Path | None = None
    """Another checkpoint than the authors'."""

    def load(
        self, device: "torch.device | str" = "cpu", store: "Store | None" = None, trained: "RunRecord | None" = None
    ) -> "MNISTTeacher":
        """Load the teacher.

        Args:
            device: where to run it.
            store: the run store, for one trained here.
            trained: the run that trained it.

        Raises:
            InputError: the weights are not available, or do not belong to such a CGN.
        """
        from skdcgn.cgn.teachers import mnist_teacher
        from skdcgn.recipes.sources import load_trained

        if trained is not None:
            return load_trained(store, trained, self.dataset, device)
        if self.dataset == "digits":
            raise InputError("--dataset digits trains its own teacher: leave --teacher out, or take another --dataset.")
        return mnist_teacher(self.dataset, self.checkpoint, device)


@dataclass(frozen=True)
class ImageNetTeacherConfig(Checked):
    """A teacher for ImageNet."""

    dataset: Literal["imagenet", "miniature"]
    """The CGN authors' one at 256x256, or its packaged miniature at 32x32 with ten classes."""
    checkpoint: Path | None = None
    """Another checkpoint than the authors' (not for the miniature)."""
    truncation: Share | None = None
    """Of the noise; CGN's own 0.5 by default, 1 for the miniature."""
    precision: Precision = "fp32"
    """That it renders with."""

    def load(
        self, device: "torch.device | str" = "cpu", store: "Store | None" = None, trained: "RunRecord | None" = None
    ) -> "ImageNetTeacher":
        """Load the teacher; see `MNISTTeacherConfig.load`. None is trained here.

        Raises:
            InputError: the weights are not available, or do not belong to such a CGN.
        """
        from skdcgn.cgn.teachers import imagenet_teacher, miniature_teacher

        if self.dataset == "miniature":
            if self.checkpoint is not None:
                raise InputError(
                    "the miniature comes with the package: leave --teacher out (teacher sets: --checkpoint), or say "
                    "imagenet."
                )
            return miniature_teacher(device, self.truncation)
        teacher = imagenet_teacher(self.checkpoint, device, self.truncation, self.precision)
        if teacher.stand_in:
            raise InputError(
                "the CGN authors' ImageNet weights are not on this machine: python -m skdcgn weights says how to get "
                "them, and --profile quick (teacher sets: --teacher miniature) uses the miniature instead."
            )
        return teacher


TeacherConfig = MNISTTeacherConfig | ImageNetTeacherConfig
"""A teacher of one's own kind has such a class: a frozen dataclass with `dataset` and `load`."""
