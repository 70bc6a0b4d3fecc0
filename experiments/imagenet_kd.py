"""Distil the mechanisms of the ImageNet CGN into TinyGAN students (paper Sec. 4.1, Figs. 2, 6, 15).

    python experiments/imagenet_kd.py                                   the miniature at 32x32: two minutes
    python experiments/imagenet_kd.py --profile paper --mechanism shape the published setting, 256x256
    python experiments/imagenet_kd.py --profile full --classes best     classes that CGN's authors found to work well
    torchrun --nproc_per_node 4 experiments/imagenet_kd.py --profile paper --teacher-sets DIR

full and paper need the CGN authors' 1.1 GB (python -m skdcgn weights says how to get it). Teacher sets are written
first where they are missing; python -m skdcgn teacher-sets does so on as many devices as there are.
Masks are distilled twice, with and without the KL term (Fig. 15).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from skdcgn.recipes.profiles import IMAGENET
from skdcgn.recipes.student import distil
from skdcgn.recipes.study import Study, StudyConfig
from tqdm import tqdm

from skdcgn import cli, distributed, randomness, runtime
from skdcgn.cgn.teachers import ImageNetTeacher, imagenet_teacher, miniature_teacher
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.labels import select_classes
from skdcgn.errors import InputError
from skdcgn.files import sha256
from skdcgn.images import enlargement, fit_resolution, grid
from skdcgn.measure.features import extractor
from skdcgn.mechanisms import Mechanism, Source, compose
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Precision
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import load_class_embedding

DESCRIPTION = """Distillation of the ImageNet CGN's mechanisms into TinyGAN students (Sec. 4.1). Feeds **Figures 2 a-c,
6 and 15**. Where the tag `stand_in` is true, the teacher is the packaged miniature at 32x32."""


@dataclass(frozen=True)
class Config(StudyConfig):
    """Distillation of the ImageNet CGN."""

    dataset: Literal["imagenet", "miniature"] = "imagenet"
    """The CGN authors' teacher at 256x256, or its packaged miniature at 32x32 with ten classes."""
    classes: str = "all"
    """all, animals, best (those the CGN authors found to work well), or ids such as 0-99 or 1,5,7."""
    truncation: float | None = None
    """Truncation of the teacher's noise; CGN's own 0.5 by default, 1 for the miniature."""
    teacher_precision: Precision = "fp32"
    """Precision that the teacher renders with."""
    objective: Literal["kl", "no_kl", "both"] = "both"
    """With the KL term (of weight loss.kl, or 1 where that is 0) or without it; both is the profile's own, and for
    masks the other one as well, for Figure 15."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""
    teacher_sets: Path | None = None
    """Folder of python -m skdcgn teacher-sets; by default one beside the run store."""


COUNTERFACTUALS = 20
"""Counterfactuals of each side that a run keeps."""

DEFAULTS = {
    name: Config(
        name,
        scale.student,
        scale.distill,
        scale.loss,
        scale.seeds[:1],
        scale.heldout_per_class,
        scale.evaluations,
        dataset="miniature" if scale.miniature else "imagenet",
    )
    for name, scale in IMAGENET.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return their final metrics, a row for each (mechanism, KL, seed)."""
    with distributed.group(runtime.setup(config.runtime)) as device:
        store = run_store.open_store()
        teacher = load_teacher(config, device)
        tqdm.write(teacher.reason)
        embedding, identity = None, {}
        if config.class_embedding:
            embedding = load_class_embedding(config.class_embedding, config.student)
            identity["class_embedding"] = sha256(config.class_embedding)
        features = extractor(teacher.resolution, device)
        tags = {"source": "skdcgn", "paper": "Sec. 4.1, Figs. 2, 6, 15", "classes": config.classes}
        default, runs = DEFAULTS[config.profile], {}
        with Study(
            "imagenet_kd", config, default, teacher, store, tags, DESCRIPTION, varies="objective", identity=identity
        ) as study:
            for seed, mechanism in itertools.product(config.seeds, config.mechanisms):
                classes = select_classes(config.classes, mechanism, teacher.num_classes)
                for objective, loss in objectives(config, mechanism).items():
                    other = {"overrides": f"loss.kl={loss.kl}"} if loss != config.loss else {}
                    with study.student(mechanism, seed, objective, other, loss=loss) as (run, child):
                        if not run.finished:
                            distil(
                                run,
                                teacher,
                                mechanism,
                                child,
                                seed,
                                device,
                                features and features.features,
                                embedding,
                                classes=classes,
                                teacher_sets=config.teacher_sets,
                            )
                    runs[seed, mechanism] = run.run_id
            if not study.group.finished and config.mechanism == "all" and distributed.rank() == 0:
                students = {m: store.load_student(runs[config.seeds[0], m]) for m in Mechanism}
                classes = {m: select_classes(config.classes, m, teacher.num_classes) for m in Mechanism}
                log_counterfactuals(study.group, teacher, SKDCGN(students, device=device), classes)
        if distributed.rank() == 0:
            print(study)
        return study.results()


def load_teacher(config: Config, device: torch.device) -> ImageNetTeacher:
    """Return the teacher of an experiment.

    Raises:
        InputError: the authors' weights are not at hand, or the student does not fit the teacher.
    """
    if config.dataset == "miniature":
        if config.teacher is not None:
            raise InputError("--dataset miniature comes with the package: leave --teacher out, or say imagenet.")
        teacher = miniature_teacher(device, config.truncation)
    else:
        teacher = imagenet_teacher(config.teacher, device, config.truncation, config.teacher_precision)
        if teacher.stand_in:
            raise InputError(
                "the CGN authors' ImageNet weights are not on this machine: python -m skdcgn weights says how to get "
                "them, and --profile quick takes the miniature in their place."
            )
    student = config.student
    if (student.num_classes, student.noise_dim) != (teacher.num_classes, teacher.noise_dim):
        raise InputError(
            f"the student (classes, noise: {student.num_classes}, {student.noise_dim}) does not fit {teacher.name} "
            f"({teacher.num_classes}, {teacher.noise_dim}): take --profile quick or smoke for the miniature, full or "
            "paper for ImageNet, or set --student.num-classes and --student.noise-dim."
        )
    return teacher


def objectives(config: Config, mechanism: Mechanism) -> dict[str, LossConfig]:
    """Return the objectives to distil a mechanism with, by name; the profile's own comes last."""
    both = {
        "kl": replace(config.loss, kl=config.loss.kl or 1.0),
        "no_kl": replace(config.loss, kl=0.0),
    }
    own = "kl" if config.loss.kl else "no_kl"
    names = [config.objective] if config.objective != "both" else [name for name in both if name != own] + [own]
    if config.objective == "both" and mechanism is not Mechanism.SHAPE:
        names = [own]
    return {name: both[name] for name in names}


def log_counterfactuals(
    run: run_module.Run, teacher: Source, students: Source, classes: Mapping[Mechanism, Sequence[int]]
) -> None:
    """Keep counterfactuals of teacher and students on the same noise and labels (Fig. 6).

    The labels of texture and background are permuted. There is no patch shuffle: that belongs to MNIST's CGN.
    """
    noise, labels, tensors = {}, {}, {}
    for mechanism, ids in classes.items():
        random = randomness.stream(0, "figure 6", mechanism)
        spread = torch.tensor(ids)[torch.linspace(0, len(ids) - 1, COUNTERFACTUALS).round().long()]
        order = torch.arange(COUNTERFACTUALS)
        if mechanism is not Mechanism.SHAPE:
            order = torch.randperm(COUNTERFACTUALS, generator=random)
        noise[mechanism], labels[mechanism] = teacher.sample_noise(COUNTERFACTUALS, random), spread[order]
        tensors[f"labels_{mechanism}"] = labels[mechanism]
    for name, source in (("teacher", teacher), ("student", students)):
        outputs = [source.render(mechanism, noise[mechanism], labels[mechanism]) for mechanism in Mechanism]
        tensors |= {name: compose(*outputs), f"mask_{name}": outputs[0]}
    run.log_tensors("counterfactuals", tensors)
    rows = [fit_resolution(tensors[name], teacher.resolution) for name in ("student", "teacher")]
    run.log_image("counterfactuals/students over teacher", grid(rows, enlargement(teacher.resolution)), 0)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
