"""Trainings as tracked runs: the loop that all of them share, and the distillation of one student."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from skdcgn import distributed
from skdcgn.counterfactuals.students import render
from skdcgn.measure import cost
from skdcgn.measure.heldout import Features, HeldOut
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import seeded, stream
from skdcgn.runs.loop import _progress, evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig, Distiller
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches
from skdcgn.tinygan.teacher_sets import StoredBatches, TeacherSet, TeacherSetConfig, set_folder

_SAMPLES = 40  # held-out images of each side that a run keeps for the figures


class StudentRecipe(Protocol):
    """The part of an experiment's config that says how a student is made."""

    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    evaluations: int | tuple[float, ...]
    """Held-out evaluations during training: how many, or at which fractions of it."""
    heldout_per_class: int
    """Held-out images of each class."""
    runtime: Runtime


def teacher_tags(profile: str, dataset: str, teacher: Source) -> dict[str, object]:
    """Return the tags that every run with a teacher has."""
    return {
        "profile": profile,
        "dataset": dataset,
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "stand_in": teacher.stand_in,
    }


def distil(
    run: Run,
    teacher: Source,
    mechanism: Mechanism,
    recipe: StudentRecipe,
    seed: int,
    device: torch.device,
    features: Features | None = None,
    class_embedding: Tensor | None = None,
    on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
    classes: Sequence[int] | None = None,
    teacher_sets: Path | None = None,
) -> None:
    """Distil one mechanism of a teacher into a student, as a run (paper Sec. 3.1).

    The run gets the losses, held-out metrics and comparison images by step, the final metrics of student and
    teacher, the student itself, and the tensors that the figures are drawn from.

    Args:
        run: where everything is logged.
        teacher: the black box.
        mechanism: which of its mechanisms.
        recipe: architecture, training and objective of the student.
        seed: of initial weights and training noise.
        device: where to run.
        features: for the Fréchet distance, see `evaluation.HeldOut`.
        class_embedding: initial class embedding of the student, such as BigGAN's.
        on_evaluation: called with the step and the metrics of each held-out evaluation; it may end the training by
            raising, as a sweep does with optuna.TrialPruned.
        classes: the labels to learn; all of the teacher's by default.
        teacher_sets: folder of stored teacher sets, by default one beside the run store.
    """
    distill, loss, runtime = recipe.distill.for_mechanism(mechanism), recipe.loss, recipe.runtime
    classes = tuple(range(teacher.num_classes) if classes is None else classes)
    teacher_sets = teacher_sets or run.store.folder / "teacher_sets"
    config = recipe.student.for_mechanism(mechanism)
    with seeded(seed, "student", mechanism):
        generator = TinyGANGenerator(config, class_embedding)
        discriminator = TinyGANDiscriminator(config, distill.discriminator_width) if loss.needs_discriminator else None
    batches = _batches(teacher_sets, teacher, mechanism, distill, seed, device, classes)
    epoch_images = (distill.per_class or DistillConfig.per_class) * len(classes)
    distiller = Distiller(
        generator,
        discriminator,
        batches,
        epoch_steps=max(1, epoch_images // distill.batch_size),
        config=distill,
        loss=loss,
        device=device,
        compile_student=runtime.compile,
    )
    description = f"{mechanism} (seed {seed})"
    if distributed.rank():  # process 0 measures and logs for all
        train(distiller, run, runtime, lambda step: None, (), description)
        return
    heldout = HeldOut.unseen(teacher, mechanism, recipe.heldout_per_class, features, device, classes)

    def picture(step: int) -> None:
        run.log_image(f"{mechanism}/teacher over student", heldout.compare(distiller.result), step)

    def evaluate(step: int) -> None:
        measured = heldout.measure(distiller.result)
        run.log_metrics("heldout", measured, step)
        picture(step)
        if on_evaluation is not None:
            on_evaluation(step, measured)

    run.log_dataset(f"{teacher.name}: {mechanism}", teacher.sha256, "rendered by the teacher", "training")
    evaluate_at = evaluation_steps(distiller.steps, recipe.evaluations)
    if not run.resumed:
        picture(0)  # the step at which the UI's image charts open
    train(distiller, run, runtime, evaluate, evaluate_at, description)

    final = heldout.measure(distiller.result)
    if isinstance(batches, StoredBatches):
        seen = HeldOut.seen(teacher, mechanism, batches.sample(len(heldout.labels)), device)
        final |= {f"seen_{name}": value for name, value in seen.measure(distiller.result).items()}
    final |= _sizes(teacher, mechanism, distiller.result, heldout)
    run.log_metrics("final", final, distiller.step)
    run.log_metrics("cost", _latencies(teacher, mechanism, distiller.result, heldout), distiller.step)
    run.log_student(distiller.result)
    shown = heldout.excerpt(min(2 * len(classes), _SAMPLES))
    samples = {"teacher": shown.teacher, "student": shown.render(distiller.result)}
    run.log_tensors("samples", {"noise": shown.noise, "labels": shown.labels, **samples})


def _batches(
    teacher_sets: Path,
    teacher: Source,
    mechanism: Mechanism,
    distill: DistillConfig,
    seed: int,
    device: torch.device,
    classes: Sequence[int],
) -> FreshBatches | StoredBatches:
    """The student's data: the stored teacher set, written first where it is missing, or fresh records."""
    if not distill.per_class:
        random = stream(seed, "train", mechanism, device=device)
        return FreshBatches(teacher, mechanism, distill.batch_size, random, classes)
    config = TeacherSetConfig(mechanism, distill.per_class, seed, published_code=distill.published_code)
    folder = set_folder(teacher_sets, teacher, config)
    with _progress("teacher set", "class", total=len(classes)) as bar:
        for written, _ in TeacherSet.write(folder, teacher, config, classes):
            bar.update(written - bar.n)
    return StoredBatches(TeacherSet(folder, classes), distill.batch_size, stream(seed, "train", mechanism), device)


def _sizes(teacher: Source, mechanism: Mechanism, student: TinyGANGenerator, heldout: HeldOut) -> dict[str, float]:
    """Parameters, and multiply-accumulates of one image, of the student and of the teacher's mechanism."""
    one = heldout.noise[:1], heldout.labels[:1]
    return {
        "parameters": cost.parameters(student),
        "teacher_parameters": teacher.parameters(mechanism),
        "macs": cost.macs(lambda: render(student, mechanism, *one)),
        "teacher_macs": cost.macs(lambda: teacher.render(mechanism, *one)),
    }


def _latencies(teacher: Source, mechanism: Mechanism, student: TinyGANGenerator, heldout: HeldOut) -> dict[str, float]:
    """Milliseconds a batch of 1 and of 64, for the student and the teacher's mechanism."""
    measured = {}
    for batch in (1, 64):
        noise = heldout.noise[:1].expand(batch, -1).contiguous()
        labels = heldout.labels[:1].expand(batch).contiguous()
        measured[f"latency_ms_batch_{batch}"] = cost.latency_ms(partial(render, student, mechanism, noise, labels))
        measured[f"teacher_latency_ms_batch_{batch}"] = cost.latency_ms(
            partial(teacher.render, mechanism, noise, labels)
        )
    return measured
