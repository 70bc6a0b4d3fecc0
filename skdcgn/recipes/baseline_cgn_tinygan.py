"""The paper's baseline for ImageNet: a CGN whose BigGANs are TinyGANs (Sec. 4.2, A.3 and C).

First a TinyGAN is distilled from the unconstrained BigGAN (`distil_unconstrained`). Then three copies of it become
the mechanisms of a CGN, which is trained with CGN's own losses and a fourth, frozen copy for the target
(`cgn_reconstruction`). At last its counterfactuals are measured beside those of CGN and of SKDCGN (`measure`).
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from skdcgn.cgn import losses
from skdcgn.cgn.baseline import Parts, TinyGANImageNetCGN, UnconstrainedTeacher, save_baseline
from skdcgn.cgn.losses import Rendered
from skdcgn.cgn.reconstruction import ReconstructionConfig, ReconstructionTrainer
from skdcgn.cgn.teachers import ImageNetTeacher, images_at_once
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.labels import evenly_spread_labels
from skdcgn.errors import InputError
from skdcgn.images import fit_resolution, grid
from skdcgn.measure import cost, fidelity
from skdcgn.measure.features import Extractor, measure_source
from skdcgn.measure.heldout import Features, HeldOut
from skdcgn.mechanisms import Mechanism, NoisePrior, Source, compose
from skdcgn.randomness import seeded, stream
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runs.store import Store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig, Distiller
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import TinyGANConfig, TinyGANDiscriminator, TinyGANGenerator
from skdcgn.tinygan.records import FreshBatches, RealBatches

SHOWN = 20
"""Images kept for each figure."""


@dataclasses.dataclass(frozen=True)
class TinyGANRecipe:
    """How the baseline's TinyGAN is distilled from the unconstrained BigGAN."""

    architecture: TinyGANConfig
    distill: DistillConfig
    """Its training, always on freshly rendered images: `per_class` says only how many make an epoch."""
    loss: LossConfig
    """Its objective: with real images (see `LossConfig.real`)."""
    epochs: int = 18
    """Epochs that the training stands for, after the first and last of which Fig. 8 shows it."""
    heldout: int = 1000
    """Held-out images."""


@dataclasses.dataclass(frozen=True)
class CounterfactualRecipe:
    """Which counterfactuals are measured."""

    source: Literal["baseline", "cgn", "skdcgn"]
    """What composes them."""
    count: int
    """How many, of the baseline's own measures; the feature distances take as many for each class as that makes."""


@dataclasses.dataclass(frozen=True)
class CGNRecipe:
    """How the baseline's CGN is trained."""

    training: ReconstructionConfig
    snapshots: int = 5
    """Times at which Fig. 9 shows its mechanisms, evenly spaced from before the first step to after the last."""
    heldout: int = 1000
    """Held-out inputs."""


def distil_unconstrained(
    run: Run,
    teacher: UnconstrainedTeacher,
    recipe: TinyGANRecipe,
    runtime: Runtime,
    seed: int,
    real_images: Path | None = None,
    features: Features | None = None,
    class_embedding: Tensor | None = None,
) -> None:
    """Distil the unconstrained BigGAN into a TinyGAN, as a run (Sec. A.3, Fig. 8).

    The run gets the losses, held-out metrics and comparison images by step, the final metrics, the student, and as
    `samples_<step>` the tensors that Fig. 8 is drawn from.

    Args:
        run: where everything is logged.
        teacher: the unconstrained generator.
        recipe: how to do it.
        runtime: how often to log and to write checkpoints.
        seed: of initial weights and training noise.
        real_images: an ImageFolder (see `real_images.RealBatches`), where the objective has a real-image term.
        features: for the Fréchet distance to the teacher's images, see `evaluation.HeldOut`.
        class_embedding: initial class embedding, such as BigGAN's.

    Raises:
        InputError: real images are needed and not given, or do not fit; or the architecture does not fit the teacher.
    """
    config, distill, loss, device = recipe.architecture, recipe.distill, recipe.loss, teacher.device
    _check_architecture(config, teacher)
    if loss.real and real_images is None:
        raise InputError(
            "TinyGAN's objective has a real-image term: give --real-images (such as ImageNet's train), or "
            "--tinygan.loss.real 0 for none."
        )
    with seeded(seed, "baseline", "tinygan"):
        generator = TinyGANGenerator(config, class_embedding)
        discriminator = TinyGANDiscriminator(config, distill.discriminator_width) if loss.needs_discriminator else None
    draws = stream(seed, "baseline", "train", device=device)
    real_draws = stream(seed, "baseline", "real", device=device)
    distiller = Distiller(
        generator,
        discriminator,
        FreshBatches(teacher, Mechanism.TEXTURE, distill.batch_size, draws),
        epoch_steps=max(1, distill.steps // recipe.epochs),
        config=distill,
        loss=loss,
        device=device,
        compile_student=runtime.compile,
        real=RealBatches(real_images, teacher, distill.batch_size, real_draws) if loss.real else None,
    )
    labels = evenly_spread_labels(recipe.heldout, teacher.num_classes)
    noise = teacher.sample_noise(len(labels), stream(0, "baseline", "held-out"))
    heldout = HeldOut(teacher, Mechanism.TEXTURE, noise.to(device), labels.to(device), features)

    def evaluate(step: int) -> None:
        run.log_metrics("heldout", heldout.measure(distiller.result), step)
        run.log_image("TinyGAN/BigGAN over TinyGAN", heldout.compare(distiller.result), step)
        shown = {"teacher": heldout.teacher[:SHOWN], "student": heldout.render(distiller.result, SHOWN)}
        run.log_tensors(f"samples_{step:07d}", {"labels": heldout.labels[:SHOWN], **shown})

    run.log_dataset(teacher.name, teacher.sha256, "rendered by the teacher", "training")
    train(distiller, run, runtime, evaluate, evaluation_steps(distill.steps, (1 / recipe.epochs, 1.0)), "TinyGAN")
    final = heldout.measure(distiller.result)
    final |= {
        "parameters": cost.parameters(distiller.result),
        "teacher_parameters": teacher.parameters(Mechanism.TEXTURE),
    }
    run.log_metrics("final", final, distiller.step)
    run.log_student(distiller.result)


def train_baseline(
    run: Run, cgn: TinyGANImageNetCGN, recipe: CGNRecipe, runtime: Runtime, seed: int, device: torch.device
) -> None:
    """Train the baseline's CGN, as a run (Sec. 4.2 and C, Fig. 9).

    The run gets the losses and held-out metrics by step, the CGN as `cgn.safetensors` (see `load_baseline`), and as
    `mechanisms_<step>` the tensors that Fig. 9 is drawn from.

    Args:
        run: where everything is logged.
        cgn: what to train, in place: four copies of one TinyGAN, and a U²-Net (see `TinyGANImageNetCGN.of`).
        recipe: how to do it.
        runtime: how often to log and to write checkpoints.
        seed: of the training's draws.
        device: where to run.
    """
    trainer = ReconstructionTrainer(recipe.training, cgn, seed, device)
    run.set_tags({"perceptual": trainer.perceptual})
    labels = evenly_spread_labels(recipe.heldout, cgn.architecture.num_classes)
    generator = stream(0, "baseline", "held-out")
    noise = NoisePrior(recipe.training.truncation).sample(len(labels), cgn.architecture.noise_dim, generator)

    at_once = images_at_once(cgn.architecture.resolution)

    def measure_heldout() -> dict[str, float]:
        batches = [(noise[index], labels[index]) for index in torch.arange(len(labels)).split(at_once)]
        return _means([losses_of(trainer.render(*batch)) for batch in batches], [len(y) for _, y in batches])

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
    train(trainer, run, runtime, evaluate, evaluate_at, "CGN of TinyGANs")
    run.log_metrics("final", measure_heldout(), trainer.step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cgn.safetensors"
        save_baseline(path, cgn)
        run.log_file(path)


def losses_of(rendered: Rendered) -> dict[str, float]:
    """Measure how far a CGN's outputs fulfil what its losses ask for, without their weights."""
    mask = rendered.mask
    return {
        "reconstruction": losses.reconstruction_distance(rendered.image, rendered.target).item(),
        "mask_entropy": losses.binary_entropy(mask).item(),
        "mask_share": mask.mean().item(),
        "background_saliency": losses.background_saliency(rendered.saliency).item(),
    }


class Composed(NamedTuple):
    """Counterfactuals of one source, and what they were composed of."""

    image: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    mask: Tensor
    """(B, 1, H, W) in [0, 1]."""
    texture: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    background: Tensor
    """(B, 3, H, W) in [-1, 1]."""


def compose_counterfactuals(source: Source, noise: Tensor, labels: Mapping[Mechanism, Tensor]) -> Composed:
    """Compose counterfactuals as CGN does on ImageNet: one noise (B, noise_dim) for all, a label (B,) for each."""
    mask, texture, background = (source.render(mechanism, noise, labels[mechanism]) for mechanism in Mechanism)
    return Composed(compose(mask, texture, background), mask, texture, background)


def counterfactual_inputs(
    reference: UnconstrainedTeacher, count: int, seed: int = 0
) -> tuple[Tensor, dict[Mechanism, Tensor]]:
    """Return noise (count, noise_dim) and the labels (count,) of each mechanism, drawn independently of each other."""
    generator = stream(seed, "baseline", "counterfactuals")
    noise = reference.sample_noise(count, generator)
    labels = {Mechanism.SHAPE: evenly_spread_labels(count, reference.num_classes)}
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        labels[mechanism] = torch.randint(reference.num_classes, (count,), generator=generator)
    return noise, labels


def measure(source: Source, reference: UnconstrainedTeacher, count: int, seed: int = 0) -> dict[str, float]:
    """Measure the counterfactuals of a source by what needs no features; all sources get the same input.

    Args:
        source: a CGN, SKDCGN's students, or the baseline.
        reference: the unconstrained generator, whose images of the same noise and the shape's label are the natural
            ones that counterfactuals are held against.
        count: counterfactuals.
        seed: of the inputs.

    Returns:
        `mask_share`, mean of the masks; `mask_grey`, share of their values between 0.1 and 0.9; `mask_collapsed`,
        share of masks that leave less than a tenth of the image to object or background; `noise_energy` of the
        images over the reference's (see `metrics.noise_energy`); and `pixel_variation_<mechanism>`, mean absolute
        difference of two outputs of the same label in [-1, 1].
    """
    noise, labels = counterfactual_inputs(reference, count, seed)
    other_noise = reference.sample_noise(count, stream(seed, "baseline", "variation"))
    rows, sizes = [], []
    for index in torch.arange(count).split(images_at_once(reference.resolution)):
        chunk_labels = {mechanism: y[index] for mechanism, y in labels.items()}
        drawn = compose_counterfactuals(source, noise[index], chunk_labels)
        natural = reference.render(Mechanism.TEXTURE, noise[index], chunk_labels[Mechanism.SHAPE])
        share = drawn.mask.mean(dim=(1, 2, 3))
        row = {
            "mask_share": share.mean().item(),
            "mask_grey": ((drawn.mask > 0.1) & (drawn.mask < 0.9)).float().mean().item(),
            "mask_collapsed": ((share < 0.1) | (share > 0.9)).float().mean().item(),
            "noise_energy": fidelity.noise_energy(natural, fit_resolution(drawn.image, reference.resolution)),
        }
        for mechanism, output in zip(Mechanism, (drawn.mask, drawn.texture, drawn.background), strict=True):
            other = source.render(mechanism, other_noise[index], chunk_labels[mechanism])
            pair = (mechanism.to_image(each, mechanism.channels) for each in (output, other))
            row[f"pixel_variation_{mechanism}"] = fidelity.l1(*pair)
        rows.append(row)
        sizes.append(len(index))
    return _means(rows, sizes)


def measure_run(
    run: Run,
    source: Source,
    parts: Parts,
    recipe: CounterfactualRecipe,
    extract: Extractor | None,
    device: torch.device | str = "cpu",
) -> None:
    """Measure a source of counterfactuals as a run, which keeps those that Fig. 10 is drawn from.

    Args:
        run: gets `final/*` of `measure` and of `inception.measure_source`, and the tensors `counterfactuals`.
        source: what composes them.
        parts: what they are held against.
        recipe: how many.
        extract: what Fréchet distances are taken with, if anything.
        device: where the source is.
    """
    reference = parts.reference
    measured = measure(source, reference, recipe.count)
    if parts.teacher is not None:
        per_class = max(1, recipe.count // reference.num_classes)
        measured |= measure_source(source, parts.teacher, extract, per_class, device=device)
    run.log_metrics("final", measured)
    noise, labels = counterfactual_inputs(reference, SHOWN)
    drawn = compose_counterfactuals(source, noise, labels)
    natural = reference.render(Mechanism.TEXTURE, noise, labels[Mechanism.SHAPE])
    named = {f"labels_{mechanism}": y for mechanism, y in labels.items()}
    run.log_tensors("counterfactuals", {**drawn._asdict(), "reference": natural, **named})
    run.log_image("counterfactuals", grid([*fit_resolution(drawn.image, reference.resolution).split(5)], scale=2), 0)


def find_students(
    store: Store, profile: str, teacher: ImageNetTeacher | None, device: torch.device | str = "cpu"
) -> SKDCGN | None:
    """Return the students of all classes that `imagenet_kd` has finished for a profile and teacher.

    Of each mechanism it is the newest one with the profile's own settings, or else the newest one.

    Returns:
        The students, or None where a mechanism has none.
    """
    if teacher is None:
        return None
    setting = f"tags.profile = '{profile}' and tags.teacher_sha256 = '{teacher.sha256}' and tags.classes = 'all'"
    runs = store.search("imagenet_kd", f"attributes.status = 'FINISHED' and {setting}")
    newest = {}
    for run in sorted(runs, key=lambda run: run.data.tags["overrides"] != "none"):
        newest.setdefault(run.data.tags.get("mechanism"), run.info.run_id)
    if any(mechanism.value not in newest for mechanism in Mechanism):
        return None
    students = {mechanism: store.load_student(newest[mechanism.value]) for mechanism in Mechanism}
    return SKDCGN(students, stand_in=teacher.stand_in, device=device)


def _means(rows: Sequence[Mapping[str, float]], sizes: Sequence[int]) -> dict[str, float]:
    """Return the mean of each metric over chunks of these sizes."""
    return {key: sum(row[key] * n for row, n in zip(rows, sizes, strict=True)) / sum(sizes) for key in rows[0]}


def _check_architecture(config: TinyGANConfig, teacher: UnconstrainedTeacher) -> None:
    wanted = (teacher.resolution, teacher.num_classes, teacher.noise_dim)
    if (config.resolution, config.num_classes, config.noise_dim) != wanted:
        raise InputError(
            f"the TinyGAN (resolution, classes, noise: {config.resolution}, {config.num_classes}, {config.noise_dim}) "
            f"does not fit {teacher.name} ({', '.join(map(str, wanted))}): set --tinygan.architecture to match."
        )
