"""The paper's baseline for ImageNet: a CGN whose BigGANs are TinyGANs (Sec. 4.2, A.3 and C).

First a TinyGAN is distilled from the unconstrained BigGAN (`distil_unconstrained`). Then three copies of it become
the mechanisms of a CGN, which is trained with CGN's own losses and a fourth, frozen copy for the target
(`cgn_reconstruction`). At last its counterfactuals are measured beside those of CGN and of SKDCGN (`measure`).
"""

import copy
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from pytorch_pretrained_biggan import BigGAN
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skdcgn import cgn_losses, metrics, weights
from skdcgn.cgn_losses import Rendered
from skdcgn.cgn_reconstruction import ReconstructionConfig, ReconstructionTrainer
from skdcgn.distill import DistillConfig, Distiller
from skdcgn.errors import InputError
from skdcgn.evaluation import Features, HeldOut
from skdcgn.imagenet import ImageNetTeacher, imagenet_teacher, miniature_teacher
from skdcgn.images import grid
from skdcgn.inception import Extractor, measure_source
from skdcgn.losses import LossConfig
from skdcgn.mechanisms import MASK_EPSILON, Mechanism, compose
from skdcgn.models.cgn_imagenet import (
    CGN_256,
    FROZEN,
    GENERATORS,
    PARTS_OF,
    Architecture,
    GeneratorName,
    ImageNetCGN,
    Part,
    truncated_noise,
)
from skdcgn.models.tinygan import TinyGANConfig, TinyGANDiscriminator, TinyGANGenerator
from skdcgn.models.u2net import FULL_WIDTHS, U2Net, Widths
from skdcgn.real_images import RealBatches
from skdcgn.runtime import Runtime, atomic_path, seeded, stream
from skdcgn.students import SKDCGN, fit_resolution
from skdcgn.teachers import FreshBatches, Teacher
from skdcgn.tracking import Run, Store
from skdcgn.training import evaluation_steps, train

SHOWN = 20
"""Images kept for each figure."""

_PIXELS = 1 << 20  # pixels rendered at a time: 16 images of 256x256, 1024 of 32x32


class TinyGANImageNetCGN(nn.Module):
    """An ImageNet CGN with TinyGANs in place of BigGANs; its parts have the names of `ImageNetCGN`'s.

    Args:
        architecture: of all four TinyGANs.
        u2net_widths: sizes of the U²-Net.
    """

    def __init__(self, architecture: TinyGANConfig, u2net_widths: Widths = FULL_WIDTHS) -> None:
        super().__init__()
        self.architecture, self.u2net_widths = architecture, u2net_widths
        for name in GENERATORS:
            self.add_module(name, TinyGANGenerator(architecture).requires_grad_(name not in FROZEN))
        self.u2net = U2Net(u2net_widths).requires_grad_(False)
        self.train()

    @classmethod
    def of(cls, tinygan: TinyGANGenerator, u2net: U2Net) -> Self:
        """Return the CGN that training starts from: four times one TinyGAN, and a trained U²-Net."""
        with torch.device("meta"):
            cgn = cls(tinygan.config, _widths(u2net))
        for name in GENERATORS:
            cgn.get_submodule(name).load_state_dict(copy.deepcopy(tinygan.state_dict()), assign=True)
            cgn.get_submodule(name).requires_grad_(name not in FROZEN)
        cgn.u2net.load_state_dict(u2net.state_dict(), assign=True)
        return cgn

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for the frozen networks: they always stay in evaluation mode."""
        super().train(mode)
        for name in FROZEN:
            self.get_submodule(name).eval()
        return self

    def forward(self, mechanism: Mechanism, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one mechanism, with inputs and outputs like those of `ImageNetCGN.forward`."""
        name, *saliency = PARTS_OF[mechanism]
        image = self.generate(name, noise, labels, truncation)
        return self.u2net(image).float().clamp(MASK_EPSILON, 1 - MASK_EPSILON) if saliency else image

    def unconstrained(self, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run the unconstrained TinyGAN, the reconstruction target: (B, 3, H, W) in [-1, 1]."""
        return self.generate("biggan_GT", noise, labels, truncation)

    def generate(self, name: GeneratorName, noise: Tensor, labels: Tensor, truncation: float) -> Tensor:
        """Run one of the four generators: (B, 3, H, W) in [-1, 1]. A TinyGAN has no use for the truncation."""
        del truncation
        return self.get_submodule(name)(noise, labels)


def save_baseline(path: Path, cgn: TinyGANImageNetCGN) -> None:
    """Write a baseline's weights, with its architecture as metadata."""
    metadata = {
        "architecture": json.dumps(dataclasses.asdict(cgn.architecture)),
        "u2net_widths": json.dumps(cgn.u2net_widths),
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in cgn.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)


def load_baseline(path: Path) -> TinyGANImageNetCGN:
    """Read a baseline of `save_baseline`, in evaluation mode.

    Raises:
        InputError: the file is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        widths = tuple(tuple(pair) for pair in json.loads(metadata["u2net_widths"]))
        cgn = TinyGANImageNetCGN(TinyGANConfig(**json.loads(metadata["architecture"])), widths)
        cgn.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no baseline CGN (give the cgn.safetensors of a run): {reason}") from None
    return cgn.eval()


def _widths(u2net: U2Net) -> Widths:
    """Read the sizes of a U²-Net off its stages, each of which leads from its first to its last convolution."""
    stages = [*(f"stage{level}" for level in range(1, 7)), *(f"stage{level}d" for level in range(5, 0, -1))]
    blocks = [u2net.get_submodule(stage) for stage in stages]
    return tuple((block.rebnconv1.conv_s1.out_channels, block.rebnconvin.conv_s1.out_channels) for block in blocks)


class UnconstrainedTeacher:
    """A CGN's unconstrained generator behind the `Teacher` protocol.

    It has one output, a picture, and goes by the name of the mechanism whose output is a picture of the same kind:
    the texture.
    """

    def __init__(
        self,
        biggan: BigGAN,
        architecture: Architecture,
        name: str,
        truncation: float,
        stand_in: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap a generator.

        Args:
            biggan: the part `biggan_GT` of a CGN.
            architecture: of that CGN.
            name: for tags and titles.
            truncation: of the noise and of BigGAN's statistics, in (0, 1].
            stand_in: whether it stands in for BigGAN-deep-256.
            device: where to run.
        """
        self._biggan, self.device = biggan.to(device).eval().requires_grad_(False), torch.device(device)
        self.name, self.truncation, self.stand_in = name, truncation, stand_in
        self.resolution = architecture.resolution
        self.num_classes = architecture.num_classes
        self.noise_dim = architecture.noise_dim
        self.sha256 = hashlib.sha256(f"{digest(biggan)} truncation {truncation:g}".encode()).hexdigest()

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw u, (n, noise_dim): a normal cut off at ±2, times the truncation, on the generator's device."""
        return truncated_noise(n, self.noise_dim, self.truncation, generator)

    @torch.no_grad()
    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: asked for a mechanism that is no picture.
        """
        if mechanism is not Mechanism.TEXTURE:
            raise ValueError(f"the unconstrained generator draws pictures, no {mechanism}")
        at_once = _at_once(self.resolution)
        batches = zip(noise.to(self.device).split(at_once), labels.to(self.device).split(at_once), strict=True)
        one_hot = torch.eye(self.num_classes, device=self.device)
        return torch.cat([self._biggan(u, one_hot[y], self.truncation) for u, y in batches])

    def parameters(self, mechanism: Mechanism) -> int:
        """Count the generator's parameters."""
        return metrics.parameters(self._biggan)


class Parts(NamedTuple):
    """What the baseline takes of others' work: never trained here."""

    teacher: ImageNetTeacher | None
    """The whole CGN, to compare with; None where only BigGAN and U²-Net are at hand."""
    reference: UnconstrainedTeacher
    """The unconstrained BigGAN."""
    load_u2net: Callable[[], U2Net]


def load_parts(
    teacher: Path | None,
    biggan: Path | None,
    u2net: Path | None,
    miniature: bool,
    truncation: float,
    device: torch.device | str = "cpu",
) -> Parts:
    """Find the CGN and the parts of it that the baseline needs.

    Args:
        teacher: a file in the format of `cgn.pth`; by default the authors', or the miniature.
        biggan: BigGAN-deep-256 alone, in place of the CGN's `biggan_GT`.
        u2net: U²-Net alone, in place of the CGN's.
        miniature: whether the default is the miniature.
        truncation: of the unconstrained generator.
        device: where to run.

    Raises:
        InputError: a file is missing or damaged.
    """
    if miniature and teacher is None:
        cgn = miniature_teacher(device)
    elif teacher is not None or weights.status(weights.REGISTRY["cgn_imagenet"])[0] != "missing":
        cgn = imagenet_teacher(teacher, device)
    elif biggan is not None and u2net is not None:
        cgn = None
    else:
        raise InputError(
            "this profile needs the ImageNet CGN, which is not at hand (python -m skdcgn.weights says how to get it): "
            "give --teacher, or --biggan and --u2net, or take --profile quick, which uses the miniature."
        )
    architecture = CGN_256 if cgn is None else cgn.architecture

    def load(part: Part, path: Path | None) -> nn.Module:
        if path is None and cgn.stand_in:
            return cgn.network(Mechanism.SHAPE).get_submodule(part)  # the miniature is in memory as a whole
        path = path or teacher or weights.locate("cgn_imagenet", download=False)
        return ImageNetCGN.load(path, architecture, (part,)).get_submodule(part)

    reference = UnconstrainedTeacher(
        load("biggan_GT", biggan),
        architecture,
        f"unconstrained BigGAN of the {cgn.name}" if biggan is None else biggan.name,
        truncation,
        stand_in=cgn is not None and cgn.stand_in and biggan is None,
        device=device,
    )
    return Parts(cgn, reference, lambda: load("u2net", u2net))


def digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    result = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        result.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


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
    labels = spread_labels(recipe.heldout, teacher.num_classes)
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
        "parameters": metrics.parameters(distiller.result),
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
    labels = spread_labels(recipe.heldout, cgn.architecture.num_classes)
    generator = stream(0, "baseline", "held-out")
    noise = truncated_noise(len(labels), cgn.architecture.noise_dim, recipe.training.truncation, generator)

    at_once = _at_once(cgn.architecture.resolution)

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
        "reconstruction": cgn_losses.reconstruction_distance(rendered.image, rendered.target).item(),
        "mask_entropy": cgn_losses.binary_entropy(mask).item(),
        "mask_share": mask.mean().item(),
        "background_saliency": cgn_losses.background_saliency(rendered.saliency).item(),
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


def compose_counterfactuals(source: Teacher, noise: Tensor, labels: Mapping[Mechanism, Tensor]) -> Composed:
    """Compose counterfactuals as CGN does on ImageNet: one noise (B, noise_dim) for all, a label (B,) for each."""
    mask, texture, background = (source.render(mechanism, noise, labels[mechanism]) for mechanism in Mechanism)
    return Composed(compose(mask, texture, background), mask, texture, background)


def counterfactual_inputs(
    reference: UnconstrainedTeacher, count: int, seed: int = 0
) -> tuple[Tensor, dict[Mechanism, Tensor]]:
    """Return noise (count, noise_dim) and the labels (count,) of each mechanism, drawn independently of each other."""
    generator = stream(seed, "baseline", "counterfactuals")
    noise = reference.sample_noise(count, generator)
    labels = {Mechanism.SHAPE: spread_labels(count, reference.num_classes)}
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        labels[mechanism] = torch.randint(reference.num_classes, (count,), generator=generator)
    return noise, labels


def measure(source: Teacher, reference: UnconstrainedTeacher, count: int, seed: int = 0) -> dict[str, float]:
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
    for index in torch.arange(count).split(_at_once(reference.resolution)):
        chunk_labels = {mechanism: y[index] for mechanism, y in labels.items()}
        drawn = compose_counterfactuals(source, noise[index], chunk_labels)
        natural = reference.render(Mechanism.TEXTURE, noise[index], chunk_labels[Mechanism.SHAPE])
        share = drawn.mask.mean(dim=(1, 2, 3))
        row = {
            "mask_share": share.mean().item(),
            "mask_grey": ((drawn.mask > 0.1) & (drawn.mask < 0.9)).float().mean().item(),
            "mask_collapsed": ((share < 0.1) | (share > 0.9)).float().mean().item(),
            "noise_energy": metrics.noise_energy(natural, fit_resolution(drawn.image, reference.resolution)),
        }
        for mechanism, output in zip(Mechanism, (drawn.mask, drawn.texture, drawn.background), strict=True):
            other = source.render(mechanism, other_noise[index], chunk_labels[mechanism])
            pair = (mechanism.to_image(each, mechanism.channels) for each in (output, other))
            row[f"pixel_variation_{mechanism}"] = metrics.l1(*pair)
        rows.append(row)
        sizes.append(len(index))
    return _means(rows, sizes)


def measure_run(
    run: Run,
    source: Teacher,
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


def spread_labels(count: int, num_classes: int) -> Tensor:
    """Return `count` labels (count,), evenly spread over the classes: 0, 1, ... where there are enough of them."""
    if count >= num_classes:
        return torch.arange(count) % num_classes
    return torch.linspace(0, num_classes - 1, count).round().long()


def _at_once(resolution: int) -> int:
    """Return how many images of a side to render at a time."""
    return max(1, _PIXELS // resolution**2)


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
