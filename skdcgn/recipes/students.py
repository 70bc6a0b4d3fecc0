"""One student's run: the distillation of one mechanism (paper Sec. 3.1); and that of three students composed."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch

from skdcgn.configs.tinygan import DistillConfig
from skdcgn.counterfactuals.students import render
from skdcgn.data.labels import select_classes
from skdcgn.distributed import own_device
from skdcgn.images import to_uint8
from skdcgn.measure import cost
from skdcgn.measure.features import extractor
from skdcgn.measure.fidelity import fidelity, noise_response, steps_to
from skdcgn.measure.heldout import HeldOut
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.configs.students import ClassMeansConfig, ConvergenceConfig, StudentConfig
from skdcgn.runs.loop import evaluation_steps, progress, train
from skdcgn.runs.run import Run
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import setup
from skdcgn.tinygan.distillation import Distiller
from skdcgn.tinygan.networks import (
    Student,
    TinyGANDiscriminator,
    build_student,
    load_class_embedding,
    load_generator,
    save_generator,
)
from skdcgn.tinygan.records import FreshBatches
from skdcgn.tinygan.teacher_sets import StoredBatches, TeacherSet, TeacherSetConfig, set_folder

STUDENT = "student"
"""What a student's run keeps it under."""
_SAMPLES = 40  # held-out images of each side that a run keeps for the figures
_BY_STEP = 10  # and at each evaluation

Needs = Mapping[str, RunRecord]


def make_student(run: Run, config: StudentConfig, needs: Needs) -> None:
    """Distill one mechanism of a teacher into a student; see `distil`."""
    device = own_device(setup(config.runtime))
    distil(run, config.teacher.load(device, run.store, needs.get("teacher")), config, device)


def distil(
    run: Run,
    teacher: Source,
    config: StudentConfig,
    device: torch.device,
    on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
) -> HeldOut | None:
    """Distill one mechanism of a teacher into a student, as a run (paper Sec. 3.1).

    The run gets the losses, held-out metrics and comparison images by step, the final metrics of student and teacher,
    the student itself as `student`, and the tensors that figures are drawn from: `samples`, and `heldout_<step>`.

    Args:
        run: where everything is logged.
        teacher: the black box.
        config: which mechanism, and how to train.
        device: where to run.
        on_evaluation: called with the step and the metrics of each held-out evaluation; it may end the training by
            raising, as a search does with optuna.TrialPruned.

    Returns:
        The held-out set; None in a process that does not log.
    """
    mechanism, seed = Mechanism(config.mechanism), config.seed
    distill, loss, runtime = config.distill.for_mechanism(mechanism), config.loss, config.runtime
    classes = select_classes(config.classes, mechanism, teacher.num_classes)
    architecture = config.student.for_mechanism(mechanism)
    embedding = config.class_embedding and load_class_embedding(config.class_embedding, config.student)
    with seeded(seed, "student", mechanism):
        generator = build_student(architecture, embedding, teacher.prior)
        critic = TinyGANDiscriminator(architecture, distill.discriminator_width) if loss.needs_discriminator else None
    batches = _batches(run.store, teacher, config, distill, classes, device)
    epoch_images = (distill.per_class or DistillConfig.per_class) * len(classes)
    epoch_steps = max(1, epoch_images // distill.batch_size)
    distiller = Distiller(generator, critic, batches, epoch_steps, distill, loss, device, runtime.compile)
    description = f"{mechanism} (seed {seed})"
    if not run.leads:  # the first process measures and logs for all
        train(distiller, run, runtime, lambda step: None, (), description)
        return None
    found = extractor(teacher.resolution, device) if config.frechet else None
    features = found and found.features
    heldout = HeldOut.unseen(teacher, mechanism, config.heldout_per_class, features, device, classes)
    excerpt = heldout.excerpt(_BY_STEP)

    def keep(step: int) -> None:
        run.log_image(f"{mechanism}/teacher over student", heldout.compare(distiller.result), step)
        sides = {"teacher": excerpt.teacher, "student": excerpt.render(distiller.result)}
        pixels = {side: to_uint8(mechanism.to_image(rows, mechanism.channels)) for side, rows in sides.items()}
        run.log_tensors(f"heldout_{step:07d}", pixels)

    def evaluate(step: int) -> None:
        measured = heldout.measure(distiller.result)
        run.log_metrics("heldout", measured, step)
        keep(step)
        if on_evaluation is not None:
            on_evaluation(step, measured)

    run.log_dataset(f"{teacher.name}: {mechanism}", teacher.sha256, "rendered by the teacher", "training")
    if not run.resumed:
        keep(0)  # the step at which the UI's image charts open
    train(distiller, run, runtime, evaluate, evaluation_steps(distiller.steps, config.evaluations), description)

    final = heldout.measure(distiller.result)
    if isinstance(batches, StoredBatches):
        seen = HeldOut.seen(teacher, mechanism, batches.sample(len(heldout.labels)), device)
        final |= {f"seen_{name}": value for name, value in seen.measure(distiller.result).items()}
    final |= _sizes(teacher, mechanism, distiller.result, heldout)
    run.log_metrics("final", final, distiller.step)
    run.log_metrics("cost", _latencies(teacher, mechanism, distiller.result, heldout), distiller.step)
    run.log_file(STUDENT, lambda folder: save_generator(distiller.result, folder))
    shown = heldout.excerpt(min(2 * len(classes), _SAMPLES))
    samples = {"teacher": shown.teacher, "student": shown.render(distiller.result)}
    run.log_tensors("samples", {"noise": shown.noise, "labels": shown.labels, **samples})
    return heldout


def _batches(
    store: Store,
    teacher: Source,
    config: StudentConfig,
    distill: DistillConfig,
    classes: tuple[int, ...],
    device: torch.device,
) -> FreshBatches | StoredBatches:
    """The student's data: the stored teacher set, written first where it is missing, or fresh records."""
    mechanism = Mechanism(config.mechanism)
    if not distill.per_class:
        random = stream(config.seed, "train", mechanism, device=device)
        return FreshBatches(teacher, mechanism, distill.batch_size, random, classes)
    content = TeacherSetConfig(mechanism, distill.per_class, config.seed, published_code=distill.published_code)
    folder = set_folder(config.teacher_sets or store.folder / "teacher_sets", teacher, content)
    with progress("teacher set", "class", total=len(classes)) as bar:
        for written, _ in TeacherSet.write(folder, teacher, content, classes):
            bar.update(written - bar.n)
    order = stream(config.seed, "train", mechanism)
    return StoredBatches(TeacherSet(folder, classes), distill.batch_size, order, device)


def _sizes(teacher: Source, mechanism: Mechanism, student: Student, heldout: HeldOut) -> dict[str, float]:
    """Parameters, and multiply-accumulates of one image, of the student and of the teacher's mechanism."""
    one = heldout.noise[:1], heldout.labels[:1]
    return {
        "parameters": cost.parameters(student),
        "teacher_parameters": teacher.parameters(mechanism),
        "macs": cost.macs(lambda: render(student, mechanism, *one)),
        "teacher_macs": cost.macs(lambda: teacher.render(mechanism, *one)),
    }


def _latencies(teacher: Source, mechanism: Mechanism, student: Student, heldout: HeldOut) -> dict[str, float]:
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


# --- what some studies measure beside


def make_converging_student(run: Run, config: ConvergenceConfig, needs: Needs) -> None:
    """Distill a student, and note as `final/steps_to_target` when it reached the target, if it ever did."""
    make_student(run, config, needs)
    if not run.leads:
        return
    shape = config.mechanism == Mechanism.SHAPE
    run.flush()
    history = run.store.history(run.run_id, "heldout/iou" if shape else "heldout/l1")
    steps = steps_to(history, config.target_iou if shape else config.target_l1, rising=shape)
    if math.isfinite(steps):
        run.log_metrics("final", {"steps_to_target": steps})


def make_responding_student(run: Run, config: StudentConfig, needs: Needs) -> None:
    """Distill a student, and measure as `final/noise_response` how far it follows unseen noise as its teacher does."""
    device = own_device(setup(config.runtime))
    teacher = config.teacher.load(device, run.store, needs.get("teacher"))
    heldout = distil(run, teacher, config, device)
    if heldout is None:
        return
    images = heldout.render(load_student(run.store, run.run_id).to(device))
    run.log_metrics("final", {"noise_response": noise_response(heldout.teacher, images, heldout.labels)})


def make_class_means(run: Run, config: ClassMeansConfig, needs: Needs) -> None:
    """Measure what a student gets that knows the class means and nothing else: a floor to compare fidelity with."""
    device = setup(config.runtime)
    teacher = config.teacher.load(device, run.store, needs.get("teacher"))
    heldout = HeldOut.unseen(teacher, Mechanism(config.mechanism), config.heldout_per_class, device=device)
    means = heldout.teacher.clone()
    for label in heldout.labels.unique():
        means[heldout.labels == label] = heldout.teacher[heldout.labels == label].mean(dim=0)
    run.log_metrics("final", fidelity(heldout.mechanism, heldout.teacher, means))


def load_student(store: Store, run_id: str, name: str = STUDENT) -> Student:
    """Load the student that a run kept under a name, in eval mode.

    Raises:
        InputError: there is no such run, or it kept no student.
    """
    with store.artifact(run_id, name) as folder:
        return load_generator(folder)
