"""The runs of the paper's baseline for ImageNet: a CGN whose BigGANs are TinyGANs (Sec. 4.2, A.3 and C).

First a TinyGAN is distilled from the unconstrained BigGAN (`make_tinygan`). Then three copies of it become the
mechanisms of a CGN, which is trained with CGN's own losses and a fourth, frozen copy for the target
(`make_tinygan_cgn`). At last its counterfactuals are measured beside those of CGN and of SKDCGN
(`make_counterfactuals`).
"""

from pathlib import Path

import torch

from skdcgn.cgn.baseline import (
    Parts,
    TinyGANImageNetCGN,
    UnconstrainedTeacher,
    load_baseline,
    save_baseline,
)
from skdcgn.cgn.reconstruction import ReconstructionTrainer
from skdcgn.cgn.teachers import ImageNetTeacher, images_at_once
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data import miniature
from skdcgn.data.labels import evenly_spread_labels
from skdcgn.distributed import decide, own_device
from skdcgn.images import fit_resolution, grid
from skdcgn.measure import cost, imagenet_cgn
from skdcgn.measure.features import extractor, measure_source
from skdcgn.measure.heldout import HeldOut
from skdcgn.mechanisms import Mechanism, NoisePrior, Source, render_composed
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.configs.baseline_cgn_tinygan import (
    CGNRunConfig,
    CounterfactualRunConfig,
    CounterfactualSource,
    TinyGANRunConfig,
)
from skdcgn.recipes.sources import CGN_FILE
from skdcgn.recipes.students import STUDENT, Needs, load_student
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import setup
from skdcgn.tinygan.distillation import Distiller
from skdcgn.tinygan.networks import TinyGANDiscriminator, TinyGANGenerator, load_class_embedding, save_generator
from skdcgn.tinygan.published import load_published_generator
from skdcgn.tinygan.records import FreshBatches, RealBatches

SHOWN = 20
"""Images kept for each figure."""


def make_tinygan(run: Run, config: TinyGANRunConfig, _: Needs) -> None:
    """Distill the unconstrained BigGAN into a TinyGAN (Sec. A.3, Fig. 8).

    The run gets the losses, held-out metrics and comparison images by step, the final metrics, the student, and as
    `samples_<step>` the tensors that Fig. 8 is drawn from.
    """
    device = own_device(setup(config.runtime))
    parts, recipe = config.parts.load(device), config.recipe
    teacher, distill, loss = parts.reference, recipe.distill, recipe.loss
    real = None
    if loss.real:
        real_images = config.real_images
        if real_images is None:
            real_images = decide(lambda: _miniature_images(run, parts))
        real_draws = stream(config.seed, "baseline", "real", device=device)
        real = RealBatches(real_images, teacher, distill.batch_size, real_draws)
    embedding = config.class_embedding and load_class_embedding(config.class_embedding, recipe.architecture)
    with seeded(config.seed, "baseline", "tinygan"):
        generator = TinyGANGenerator(recipe.architecture, embedding, teacher.prior)
        critic = (
            TinyGANDiscriminator(recipe.architecture, distill.discriminator_width) if loss.needs_discriminator else None
        )
    draws = stream(config.seed, "baseline", "train", device=device)
    distiller = Distiller(
        generator,
        critic,
        FreshBatches(teacher, Mechanism.TEXTURE, distill.batch_size, draws),
        epoch_steps=max(1, distill.steps // recipe.epochs),
        config=distill,
        loss=loss,
        device=device,
        compile_student=config.runtime.compile,
        real=real,
    )
    if not run.leads:  # the first process measures and logs for all
        train(distiller, run, config.runtime, lambda step: None, (), "TinyGAN")
        return
    labels = evenly_spread_labels(recipe.heldout, teacher.num_classes)
    noise = teacher.sample_noise(len(labels), stream(0, "baseline", "held-out"))
    found = extractor(teacher.resolution, device)
    heldout = HeldOut(teacher, Mechanism.TEXTURE, noise.to(device), labels.to(device), found and found.features)

    def evaluate(step: int) -> None:
        run.log_metrics("heldout", heldout.measure(distiller.result), step)
        run.log_image("TinyGAN/BigGAN over TinyGAN", heldout.compare(distiller.result), step)
        shown = {"teacher": heldout.teacher[:SHOWN], "student": heldout.render(distiller.result, SHOWN)}
        run.log_tensors(f"samples_{step:07d}", {"labels": heldout.labels[:SHOWN], **shown})

    run.log_dataset(teacher.name, teacher.sha256, "rendered by the teacher", "training")
    evaluate_at = evaluation_steps(distill.steps, (1 / recipe.epochs, 1.0))
    train(distiller, run, config.runtime, evaluate, evaluate_at, "TinyGAN")
    sizes = {
        "parameters": cost.parameters(distiller.result),
        "teacher_parameters": teacher.parameters(Mechanism.TEXTURE),
    }
    run.log_metrics("final", {**heldout.measure(distiller.result), **sizes}, distiller.step)
    run.log_file(STUDENT, lambda folder: save_generator(distiller.result, folder))


def _miniature_images(run: Run, parts: Parts) -> Path:
    """Write the miniature's real images beside the run store, unless they are there."""
    scenery, reason = miniature.scenery(lambda: parts.teacher)
    run.set_tags({"real_images": reason})
    return miniature.real_images(run.store.folder / "miniature_data", scenery)


def make_tinygan_cgn(run: Run, config: CGNRunConfig, needs: Needs) -> None:
    """Train a CGN of four copies of one TinyGAN and a U²-Net (Sec. 4.2 and C, Fig. 9).

    The run gets the losses and held-out metrics by step, the CGN as `cgn.safetensors` (see `load_baseline`), and as
    `mechanisms_<step>` the tensors that Fig. 9 is drawn from.

    Args:
        run: where everything is logged.
        config: see `CGNRunConfig`.
        needs: the run of `make_tinygan` as `tinygan`, unless a checkpoint takes its place.
    """
    device, recipe = setup(config.runtime), config.recipe
    parts = config.parts.load(device)
    if config.tinygan_checkpoint is None:
        tinygan = load_student(run.store, needs["tinygan"].run_id)
    else:
        tinygan = load_published_generator(config.tinygan_checkpoint, parts.reference.num_classes)
    cgn = TinyGANImageNetCGN.of(tinygan, parts.load_u2net())
    trainer = ReconstructionTrainer(recipe.training, cgn, config.seed, device)
    run.set_tags({"perceptual": trainer.perceptual})
    labels = evenly_spread_labels(recipe.heldout, cgn.architecture.num_classes)
    prior = NoisePrior(recipe.training.truncation)
    noise = prior.sample(len(labels), cgn.architecture.noise_dim, stream(0, "baseline", "held-out"))
    at_once = images_at_once(cgn.architecture.resolution)

    def measure_heldout() -> dict[str, float]:
        batches = [(noise[index], labels[index]) for index in torch.arange(len(labels)).split(at_once)]
        return imagenet_cgn.mean_over_chunks(
            [imagenet_cgn.measure_losses(trainer.render(*batch)) for batch in batches], [len(y) for _, y in batches]
        )

    def evaluate(step: int) -> None:
        run.log_metrics("heldout", measure_heldout(), step)
        shown = trainer.render(noise[:SHOWN], labels[:SHOWN])
        tensors = {**shown._asdict(), "image": shown.image, "labels": labels[:SHOWN]}
        run.log_tensors(f"mechanisms_{step:07d}", tensors)
        rows = [tensors[name] for name in ("premask", "mask", "texture", "background", "image", "target")]
        rows[1] = Mechanism.SHAPE.to_image(rows[1], 3)
        run.log_image("mechanisms", grid([row[: SHOWN // 2] for row in rows], scale=2), step)

    if not run.resumed:
        evaluate(0)
    evaluate_at = evaluation_steps(trainer.steps, recipe.snapshots - 1)
    train(trainer, run, config.runtime, evaluate, evaluate_at, "CGN of TinyGANs")
    run.log_metrics("final", measure_heldout(), trainer.step)
    run.log_file(CGN_FILE, lambda path: save_baseline(path, cgn))


def load_counterfactual_source(
    source: CounterfactualSource,
    teacher: ImageNetTeacher | UnconstrainedTeacher,
    store: Store,
    made: RunRecord | None,
    device: torch.device,
) -> Source:
    """Return what composes counterfactuals.

    Args:
        source: which one.
        teacher: the CGN, whose truncation the baseline renders with; for the baseline the BigGAN alone will do.
        store: the run store.
        made: the run that kept the students or the CGN of TinyGANs.
        device: where to render.
    """
    if source == "cgn":
        return teacher
    if source == "skdcgn":
        students = {mechanism: load_student(store, made.run_id, mechanism.value) for mechanism in Mechanism}
        return SKDCGN(students, stand_in=teacher.stand_in, device=device)
    with store.artifact(made.run_id, CGN_FILE) as path:
        cgn = load_baseline(path)
    return ImageNetTeacher.of(cgn, "CGN of TinyGANs", teacher.truncation, teacher.stand_in, device)


def make_counterfactuals(run: Run, config: CounterfactualRunConfig, needs: Needs) -> None:
    """Measure a source of counterfactuals, and keep those that Fig. 10 is drawn from.

    Args:
        run: gets `final/*` of `measure_counterfactuals` and `measure_source`, and the tensors `counterfactuals`.
        config: see `CounterfactualRunConfig`.
        needs: what composes them, unless it is the CGN, as `source`.
    """
    device = setup(config.runtime)
    parts = config.parts.load(device)
    reference = parts.reference
    teacher = reference if config.source == "baseline" else parts.teacher
    source = load_counterfactual_source(config.source, teacher, run.store, needs.get("source"), device)
    measured = imagenet_cgn.measure_counterfactuals(source, reference, config.count)
    if parts.teacher is not None:
        per_class = max(1, config.count // reference.num_classes)
        extract = extractor(reference.resolution, device)
        measured |= measure_source(source, parts.teacher, extract, per_class, device=device)
    run.log_metrics("final", measured)
    noise, labels = imagenet_cgn.counterfactual_inputs(reference, SHOWN)
    drawn = render_composed(source, dict.fromkeys(Mechanism, noise), labels)
    natural = reference.render(Mechanism.TEXTURE, noise, labels[Mechanism.SHAPE])
    named = {f"labels_{mechanism}": y for mechanism, y in labels.items()}
    images = {"image": drawn.images, "mask": drawn.mask, "texture": drawn.texture, "background": drawn.background}
    run.log_tensors("counterfactuals", {**images, "reference": natural, **named})
    run.log_image("counterfactuals", grid([*fit_resolution(drawn.images, reference.resolution).split(5)], scale=2), 0)
