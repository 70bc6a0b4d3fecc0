"""The cases that more than one ImageNet experiment needs: students, and the baseline's TinyGAN and CGN."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cases import Study, skdcgn_case, student_case, style_inputs
from experiments.presets_imagenet import BASELINE, DISTILLATION, BaselineConfig, DistillationConfig
from skdcgn.configs.names import Mechanism, Profile
from skdcgn.configs.tinygan import LossConfig
from skdcgn.errors import InputError
from skdcgn.files import sha256
from skdcgn.recipes.configs.baseline_cgn_tinygan import CGNRunConfig, TinyGANRunConfig
from skdcgn.runs.identity import derive, overrides
from skdcgn.runs.plan import Case
from skdcgn.runtime import Runtime

if TYPE_CHECKING:
    from skdcgn.cgn.baseline import Parts
    from skdcgn.cgn.teachers import ImageNetTeacher

KD_DESCRIPTION = """Distillation of the ImageNet CGN's mechanisms into TinyGAN students (Sec. 4.1). Feeds
**Figures 2 a-c, 6 and 15**. Where the tag `stand_in` is true, the teacher is the packaged miniature at 32x32."""

BASELINE_DESCRIPTION = """The paper's baseline: CGN with TinyGAN generators, trained without a teacher (Sec. 4.2, A.3,
C). Kind `tinygan` feeds **Figure 8**, `cgn` **Figure 9**, `counterfactuals` **Figure 10** and the table beside it."""


def distillation(config: DistillationConfig) -> list[Case]:
    """Return the students of every seed, and where they have all mechanisms the three of a seed put together, last.

    Raises:
        InputError: the teacher's weights are not available, or a part of the config does not fit the teacher.
    """
    from skdcgn.recipes.sources import teacher_tags

    teacher = checked_teacher(config)
    scope = ("dataset", "mechanism", "seeds", "teacher", "objective", "teacher_sets")
    changed = overrides(config, DISTILLATION[config.profile], scope)
    tags = {"dataset": config.dataset, "classes": config.classes, "paper": "Sec. 4.1, Figs. 2, 6, 15"}
    tags |= {"overrides": changed, **teacher_tags(teacher)}
    study = Study("imagenet_kd", KD_DESCRIPTION, tags, inputs={"teacher": teacher.sha256})
    cases = []
    for seed in config.seeds:
        students = {}
        for mechanism in config.mechanisms:
            for objective, loss in objectives(config, mechanism).items():
                told = {"objective": objective, "overrides": changed if loss == config.loss else f"loss.kl={loss.kl}"}
                students[mechanism] = student_case(study, config, mechanism, seed, (objective,), tags=told, loss=loss)
                cases.append(students[mechanism])
        if config.mechanism == "all":
            cases.append(skdcgn_case(study, students, seed, objective=objective))
    return cases


def checked_teacher(config: DistillationConfig) -> "ImageNetTeacher":
    """Return the teacher of an experiment.

    Raises:
        InputError: its weights are not available, or it does not have such classes or noise.
    """
    from skdcgn.data.labels import select_classes

    teacher = config.teacher_config.load()
    student, wanted = config.student, (teacher.num_classes, teacher.noise_dim)
    if (student.num_classes, student.noise_dim) != wanted:
        raise InputError(
            f"the student (classes, noise: {student.num_classes}, {student.noise_dim}) does not fit {teacher.name} "
            f"({', '.join(map(str, wanted))}): use --profile quick or smoke for the miniature, full or paper for "
            "ImageNet, or set --student.num-classes and --student.noise-dim."
        )
    for mechanism in Mechanism:
        select_classes(config.classes, mechanism, teacher.num_classes)
    return teacher


def objectives(config: DistillationConfig, mechanism: Mechanism) -> dict[str, LossConfig]:
    """Return the objectives to distill a mechanism with, by name; the profile's own comes last."""
    both = {"kl": replace(config.loss, kl=config.loss.kl or 1.0), "no_kl": replace(config.loss, kl=0.0)}
    if config.objective != "both":
        return {config.objective: both[config.objective]}
    own = "kl" if config.loss.kl else "no_kl"
    other = "no_kl" if own == "kl" else "kl"
    names = (other, own) if mechanism is Mechanism.SHAPE else (own,)
    return {name: both[name] for name in names}


def skdcgn_of(profile: Profile, teacher: Path | None, runtime: Runtime) -> Case:
    """Return the case of a profile's own students put together, for an experiment that uses them."""
    config = replace(DISTILLATION[profile], teacher=teacher, runtime=replace(runtime, force=False))
    return distillation(config)[-1]


def baseline_study(config: BaselineConfig, default: BaselineConfig, parts: "Parts", scope: Sequence[str] = ()) -> Study:
    """Return the study of a baseline.

    Args:
        config: of the baseline.
        default: the profile's.
        parts: what it takes of others' work.
        scope: fields that choose what to run rather than how, beside those of every baseline.
    """
    from skdcgn.recipes.sources import teacher_tags

    tags = {
        "dataset": "miniature" if parts.reference.stand_in else "imagenet",
        **teacher_tags(parts.reference),
        "seed": config.seed,
        "overrides": overrides(config, default, ("seed", "teacher", "real_images", *scope)),
    }
    return Study("baseline_cgn_tinygan", BASELINE_DESCRIPTION, tags)


def baseline(config: BaselineConfig, parts: "Parts", forced: Collection[str] = ()) -> dict[str, Case]:
    """Return the cases `tinygan`, unless a checkpoint takes its place, and `cgn`, which needs it.

    Args:
        config: of the baseline, or of a script that has more fields than that.
        parts: what it takes of others' work.
        forced: those to which `--runtime.force` applies.

    Raises:
        InputError: a file is missing or damaged, or the parts do not fit each other.
    """
    from skdcgn.recipes.baseline_cgn_tinygan import make_tinygan, make_tinygan_cgn
    from skdcgn.tinygan.published import load_published_generator
    from skdcgn.training import state_digest

    study = baseline_study(derive(BaselineConfig, config), BASELINE[config.profile], parts)
    runtime = {
        kind: replace(config.runtime, force=config.runtime.force and kind in forced) for kind in ("tinygan", "cgn")
    }
    cases: dict[str, Case] = {}
    if config.tinygan_checkpoint is None:
        tinygan = derive(TinyGANRunConfig, config, recipe=config.tinygan, runtime=runtime["tinygan"])
        cases["tinygan"] = study.case(
            "tinygan",
            "tinygan",
            tinygan,
            make_tinygan,
            inputs=tinygan_inputs(tinygan, parts),
            seconds=5 + 0.06 * config.tinygan.distill.steps,
            parallel=True,
            source="baseline",
            paper="Sec. A.3, Fig. 8",
        )
        inputs = {}
    else:
        load_published_generator(config.tinygan_checkpoint, parts.reference.num_classes)
        inputs = {"tinygan": sha256(config.tinygan_checkpoint)}
    training = config.cgn.training
    inputs |= style_inputs(training.perceptual)
    cases["cgn"] = study.case(
        "cgn",
        "cgn",
        derive(CGNRunConfig, config, recipe=config.cgn, runtime=runtime["cgn"]),
        make_tinygan_cgn,
        dict(cases),
        {**inputs, "u2net": state_digest(parts.load_u2net().state_dict())},
        seconds=5 + 0.1 * training.steps * training.accumulate,
        source="baseline",
        paper="Sec. 4.2, Fig. 9",
    )
    return cases


def tinygan_inputs(config: TinyGANRunConfig, parts: "Parts") -> dict[str, str]:
    """Return what identifies the weights and images of a distillation, and check that they fit each other.

    Raises:
        InputError: real images are needed and not given, or a file is missing, damaged, or does not fit the teacher.
    """
    import torch

    from skdcgn.data import miniature
    from skdcgn.tinygan.networks import load_class_embedding
    from skdcgn.tinygan.records import RealBatches

    architecture, teacher = config.recipe.architecture, parts.reference
    wanted = (teacher.resolution, teacher.num_classes, teacher.noise_dim)
    own = (architecture.resolution, architecture.num_classes, architecture.noise_dim)
    if own != wanted:
        raise InputError(
            f"the TinyGAN (resolution, classes, noise: {', '.join(map(str, own))}) does not fit {teacher.name} "
            f"({', '.join(map(str, wanted))}): set --tinygan.architecture to match."
        )
    inputs = {"teacher": teacher.sha256}
    if config.class_embedding is not None:
        load_class_embedding(config.class_embedding, architecture)
        inputs["class_embedding"] = sha256(config.class_embedding)
    if config.recipe.loss.real:
        if config.real_images is not None:
            images = RealBatches(config.real_images, teacher, 1, torch.Generator()).images
            inputs["real_images"] = hashlib.sha256(images.listing.encode()).hexdigest()
        elif teacher.stand_in:
            scenery, _ = miniature.scenery(lambda: parts.teacher)
            inputs["real_images"] = f"{scenery.name} {scenery.sha256}"
        else:
            raise InputError(
                "TinyGAN's objective has a real-image term: give --real-images (such as ImageNet's train), or "
                "--tinygan.loss.real 0 for none."
            )
    return inputs
