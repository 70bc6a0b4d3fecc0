"""SKDCGN as a run: the three students of one seed, and counterfactuals of theirs beside the teacher's (Fig. 6)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.labels import balanced_labels, select_classes
from skdcgn.images import enlargement, fit_resolution, grid
from skdcgn.mechanisms import Mechanism, Source, render_composed
from skdcgn.randomness import stream
from skdcgn.recipes.configs.students import ComposedConfig
from skdcgn.recipes.students import Needs, load_student
from skdcgn.runs.run import Run
from skdcgn.runtime import setup
from skdcgn.tinygan.networks import save_generator

_SHOWN = 20  # counterfactuals of each side that a run keeps


def make_skdcgn(run: Run, config: ComposedConfig, needs: Needs) -> None:
    """Keep three students under the names of their mechanisms, and counterfactuals of theirs and of the teacher's.

    Args:
        run: gets the students, and as tensors `counterfactuals`: `teacher` and `student` images (N, 3, H, W) in [-1, 1]
            on the same noise and labels, their masks `mask_<side>` and the labels `labels_<mechanism>`.
        config: see `ComposedConfig`.
        needs: the students' runs by mechanism; the teacher's where one was trained here.
    """
    device = setup(config.runtime)
    teacher = config.teacher.load(device, run.store, needs.get("teacher"))
    students = {mechanism: load_student(run.store, needs[mechanism].run_id) for mechanism in Mechanism}
    for mechanism, student in students.items():
        run.log_file(mechanism.value, lambda folder, student=student: save_generator(student, folder))
    sides = {"teacher": teacher, "student": SKDCGN(students, device=device)}
    if config.teacher.dataset in ("imagenet", "miniature"):
        classes = {m: select_classes(config.classes, m, teacher.num_classes) for m in Mechanism}
        tensors = _imagenet_counterfactuals(teacher, sides, classes)
    else:
        tensors = _mnist_counterfactuals(teacher, sides, device)
    run.log_tensors("counterfactuals", tensors)
    rows = [fit_resolution(tensors[side], teacher.resolution) for side in ("student", "teacher")]
    run.log_image("counterfactuals/students over teacher", grid(rows, enlargement(teacher.resolution)), 0)


def _mnist_counterfactuals(teacher: Source, sides: Mapping[str, Source], device: torch.device) -> dict[str, Tensor]:
    """Draw two of each class, with the same noise, labels and patch shuffles on both sides."""
    labels = balanced_labels(2, teacher.num_classes).to(device)
    noise = {m: teacher.sample_noise(len(labels), stream(0, "figure 6", m, device=device)) for m in Mechanism}
    tensors = {}
    for side, source in sides.items():
        sampled = sample_counterfactuals(source, labels, stream(0, "figure 6", device=device), noise=noise)
        tensors |= {side: sampled.images, f"mask_{side}": sampled.mask}
        tensors |= {f"labels_{mechanism}": y for mechanism, y in sampled.labels.items()}
    return tensors


def _imagenet_counterfactuals(
    teacher: Source, sides: Mapping[str, Source], classes: Mapping[Mechanism, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Draw evenly spread classes; labels of texture and background are permuted. ImageNet's CGN shuffles no patches."""
    noise, labels = {}, {}
    for mechanism, ids in classes.items():
        random = stream(0, "figure 6", mechanism)
        spread = torch.tensor(ids)[torch.linspace(0, len(ids) - 1, _SHOWN).round().long()]
        order = torch.arange(_SHOWN)
        if mechanism is not Mechanism.SHAPE:
            order = torch.randperm(_SHOWN, generator=random)
        noise[mechanism], labels[mechanism] = teacher.sample_noise(_SHOWN, random), spread[order]
    tensors = {f"labels_{mechanism}": y for mechanism, y in labels.items()}
    for side, source in sides.items():
        drawn = render_composed(source, noise, labels)
        tensors |= {side: drawn.images, f"mask_{side}": drawn.mask}
    return tensors
