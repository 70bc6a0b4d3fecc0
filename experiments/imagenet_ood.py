"""Do counterfactuals make an ImageNet classifier robust? CGN's invariant ensemble (announced in Sec. 1, not reported).

    python experiments/imagenet_ood.py                          the miniature at 32x32: a few minutes
    python experiments/imagenet_ood.py --profile full --imagenet ILSVRC --in9 bg_challenge --cue-conflict stimuli
        --backbone resnet50-0676ba61.pth
    python experiments/imagenet_ood.py --sources original cgn   without the students and the baseline

The ensemble learns from real images alone (original), or beside counterfactuals of the CGN, of SKDCGN, of the baseline.
It is tested on ImageNet-val, on IN-9 (background gap) and on cue-conflict stimuli (shape bias), each in its authors'
folders. Generators that are not there yet are trained first, by imagenet_kd and baseline_cgn_tinygan.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from skdcgn.recipes.profiles import ENSEMBLE, Profile
from skdcgn.recipes.student import teacher_tags
from tqdm import tqdm

from experiments import baseline_cgn_tinygan, imagenet_kd
from skdcgn import cli, runtime
from skdcgn.cgn import baseline
from skdcgn.cgn.teachers import ImageNetTeacher
from skdcgn.classifiers.ensemble import EnsembleConfig, draw_counterfactuals
from skdcgn.classifiers.networks import RESNET50_ADDRESS
from skdcgn.data import miniature as miniature_data
from skdcgn.data.imagenet import RobustnessSets, robustness_sets
from skdcgn.errors import InputError
from skdcgn.files import sha256
from skdcgn.mechanisms import Source
from skdcgn.recipes import baseline_cgn_tinygan as baseline_cgn_tinygan_recipe
from skdcgn.recipes.imagenet_ood import train_ensemble
from skdcgn.runs import identity as run_identity
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime

TrainingSource = Literal["original", "cgn", "skdcgn", "baseline"]
EXPERIMENT = "imagenet_ood"
DESCRIPTION = """CGN's invariant ensemble, trained on real images and counterfactuals of one source.
`final/top1_*`, `final/top5_*`: ImageNet-val; `final/in9_*`, `final/bg_gap_*`: IN-9, mixed_same less mixed_rand;
`final/shape_bias_*`: cue conflict. Where `stand_in` is true, teacher and images are the miniature's."""


@dataclass(frozen=True)
class Config:
    """Robustness of the invariant ensemble."""

    profile: Profile
    """Scale: smoke (tests) and quick (a first look) on the miniature, full (our best answer), paper (published)."""
    training: EnsembleConfig
    images: int
    """Training images of each class of the miniature pictures; of their test sets, half as many."""
    seeds: tuple[int, ...]
    """One ensemble for each seed and source. The counterfactuals of a source are the same for all seeds."""
    evaluations: int
    """Times at which the validation accuracy is measured."""
    sources: tuple[TrainingSource, ...] = ("original", "cgn", "skdcgn", "baseline")
    """original: real images alone; the others: counterfactuals beside them."""
    imagenet: Path | None = None
    """ImageNet: a folder with train and val."""
    in9: Path | None = None
    """IN-9: the unpacked backgrounds challenge, with its in_to_in9.json put into it."""
    cue_conflict: Path | None = None
    """The cue-conflict stimuli: a folder with one folder for each shape."""
    backbone: Path | None = None
    """Weights of a ResNet-50 trained on ImageNet, in torchvision's format."""
    teacher: Path | None = None
    """Another file in the format of cgn.pth."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {
    name: Config(name, scale.training, scale.images, scale.seeds, scale.evaluations) for name, scale in ENSEMBLE.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every ensemble that is not there yet; return their final metrics, a row for each source and seed."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    teacher = imagenet_kd.load_teacher(replace(imagenet_kd.DEFAULTS[config.profile], teacher=config.teacher), device)
    sets, images = load_sets(config, teacher, store)
    tqdm.write(f"{teacher.reason}\n{images}")
    tags = {
        **teacher_tags(config.profile, "miniature" if teacher.stand_in else "imagenet", teacher),
        "overrides": run_identity.overrides(config, DEFAULTS[config.profile], ("sources", "seeds")),
        "images": images,
        "paper": "Sec. 1",
    }
    identity = {"teacher": teacher.sha256, "images": sets.identity}
    if config.backbone is not None:
        identity["backbone"] = sha256(config.backbone)
    name, rows = f"invariant ensemble {config.profile}", []
    with store.start(EXPERIMENT, config, name, {**identity, "level": "group"}, tags, None, DESCRIPTION) as group:
        for source in config.sources:
            generator = load_source(source, config, teacher, store, device)
            own = identity if generator is None else {**identity, "counterfactuals": generator.sha256}
            for seed in config.seeds:
                child, name = replace(config, sources=(source,), seeds=(seed,)), f"{source} seed {seed}"
                child_tags = {**tags, "source": source, "seed": seed}
                with store.start(EXPERIMENT, child, name, own, child_tags, group, DESCRIPTION) as run:
                    if run.finished:
                        tqdm.write(f"{name}: finished before (run {run.run_id}), skipped")
                    else:
                        drawn = generator and draw_counterfactuals(
                            store.folder / "counterfactuals", generator, teacher, config.training
                        )
                        train_ensemble(
                            run,
                            drawn,
                            sets,
                            config.training,
                            seed,
                            config.runtime,
                            device,
                            config.backbone,
                            config.evaluations,
                        )
                rows.append({"source": source, "seed": seed, **run.final})
    results = pd.DataFrame(rows).set_index(["source", "seed"])
    print(results.T.to_string(float_format="%.3f", na_rep=""))
    return results


def load_sets(config: Config, teacher: Source, store: run_store.Store) -> tuple[RobustnessSets, str]:
    """Return the images, and in one line which they are: miniature ones go with a miniature teacher.

    Raises:
        InputError: a path is missing, or the parts of the experiment do not fit each other.
    """
    paths = (config.imagenet, config.in9, config.cue_conflict)
    if teacher.stand_in and not any(paths):
        scenery, reason = miniature_data.scenery(lambda: teacher)
        folders = miniature_data.write_all(store.folder / "miniature_data", scenery, per_class=config.images)
        sets = robustness_sets(*folders, miniature_data.CATEGORIES)
    elif all(paths):
        sets, reason = robustness_sets(*paths), f"pictures: {', '.join(map(str, paths))}"
    else:
        raise InputError(
            "--imagenet, --in9 and --cue-conflict go together: give the folders of all three, or none and "
            "--profile quick, which makes miniature pictures."
        )
    if len(sets.train.classes) != teacher.num_classes:
        raise InputError(
            f"the images are of {len(sets.train.classes)} classes, and {teacher.name} has {teacher.num_classes}: give "
            "an --imagenet with all of them."
        )
    if config.training.pretrained and config.backbone is None:
        raise InputError(
            f"--backbone is missing: give the file of {RESNET50_ADDRESS}, or start from nothing with "
            "--training.no-pretrained."
        )
    return sets, reason


def load_source(
    source: TrainingSource, config: Config, teacher: ImageNetTeacher, store: run_store.Store, device: torch.device
) -> Source | None:
    """Return where a source's counterfactuals come from, trained first unless it was before; None for original."""
    if source == "original":
        return None
    if source == "cgn":
        return teacher
    same = {"teacher": config.teacher, "runtime": config.runtime}
    if source == "skdcgn":
        imagenet_kd.main(replace(imagenet_kd.DEFAULTS[config.profile], **same))
        return baseline_cgn_tinygan_recipe.find_students(store, config.profile, teacher, device)
    baseline_cgn_tinygan.main(replace(baseline_cgn_tinygan.DEFAULTS[config.profile], stage="cgn", **same))
    finished = f"attributes.status = 'FINISHED' and tags.profile = '{config.profile}' and tags.stage = 'cgn'"
    run, *_ = store.search("baseline_cgn_tinygan", finished)
    with store.artifact(run.info.run_id, "cgn.safetensors") as path:
        cgn = baseline.load_baseline(path)
    return ImageNetTeacher.of(cgn, "baseline (CGN of TinyGANs)", teacher.truncation, teacher.stand_in, device)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
