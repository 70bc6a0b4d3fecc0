"""Train classifiers on counterfactuals of modified shape masks (paper Sec. 4.5, Table 1, Fig. 3; claim of Sec. 4.4).

    python experiments/table1_shape_im.py                                        a first look, minutes
    python experiments/table1_shape_im.py --profile full                         CGNs trained from scratch: hours
    python experiments/table1_shape_im.py --when training --init scratch         one reading of the paper
    python experiments/table1_shape_im.py --when sampling --strengths 0.25 0.5 0.9      transparency alone
    python experiments/table1_shape_im.py --dataset digits                       no network, no data

Masks are modified while the CGN is trained, while it is sampled, or both; texture and background have permuted labels
or the digit's own: the paper leaves both open. Each CGN is trained once, whatever is drawn from it afterwards.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from pathlib import Path

import pandas as pd
from skdcgn.recipes.student import teacher_tags

from analysis import table1_shape_im as table1_shape_im_figures
from analysis.frame.table import Table
from experiments import train_cgn_mnist
from skdcgn import cli, runtime
from skdcgn.cgn.adversarial import CGNTrainer, CGNTrainingConfig, save_cgn
from skdcgn.cgn.teachers import MNISTTeacher, mnist_teacher
from skdcgn.data.mnist import Dataset
from skdcgn.errors import InputError
from skdcgn.images import grid, to_float
from skdcgn.mechanisms import Source
from skdcgn.recipes.profiles import SHAPE_STUDY, Profile, ShapeScale
from skdcgn.recipes.table1_shape_im import (
    Case,
    CaseConfig,
    Init,
    RealImages,
    Remembering,
    cases,
    estimate_seconds,
    measure,
    real_images,
    samples,
    start_of,
)
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import train
from skdcgn.runtime import Runtime

EXPERIMENT = "table1_shape_im"
DESCRIPTION = """Classifiers trained on counterfactuals with modified masks. `final/valid_accuracy`: of digits, on the
last 10,000 of MNIST-train, the original's test set; `final/test_accuracy`: on MNIST-test; `final/two_way_*`: of real
and counterfactual images, the task of the caption. Feeds **Table 1**, **Figure 3** and the curve over transparency."""


@dataclass(frozen=True)
class Config(ShapeScale):
    """Study of the shape mechanism."""

    profile: Profile = "quick"
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    dataset: Dataset = "double_colored"
    """What CGNs are trained on, and classifiers tested on; digits needs no download."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        for name in ("interventions", "when", "init", "labels", "seeds"):
            if not getattr(self, name):
                raise InputError(f"--{name} names none: give at least one.")
        for name in ("images", "per_mask", "unpermuted_epochs", "two_way_images", "two_way_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is too few: give at least 1.")

    def cases(self) -> list[Case]:
        """Return the cases of each seed, those of one CGN next to each other."""
        return cases(self.interventions, self.when, self.init, self.labels, self.strengths, self.strengths_when)

    def training_of(self, case: Case, seed: int) -> CGNTrainingConfig | None:
        """Return how the CGN of a case is trained, if it is."""
        if case.cgn is None:
            return None
        init, intervention, strength = case.cgn
        training = self.training if init == "scratch" else self.finetune
        return replace(training, intervention=intervention, intervention_strength=strength, seed=seed)

    def cgn(self, case: Case, seed: int) -> "CGNConfig":
        """Return the config of the CGN of a case that has one trained."""
        return CGNConfig(self.profile, self.dataset, case.init, self.training_of(case, seed), self.runtime)

    def of(self, case: Case, seed: int) -> CaseConfig:
        """Return the config of a case."""
        epochs = self.classifier.epochs if case.labels == "permuted" else self.unpermuted_epochs
        return CaseConfig(
            self.profile,
            self.dataset,
            case,
            self.training_of(case, seed),
            self.images,
            self.per_mask,
            replace(self.classifier, epochs=epochs),
            replace(self.classifier, epochs=self.two_way_epochs),
            self.two_way_images,
            self.test_images,
            seed,
            self.runtime,
        )


DEFAULTS = {name: Config(**vars(scale), profile=name) for name, scale in SHAPE_STUDY.items()}


@dataclass(frozen=True)
class CGNConfig:
    """What a trained CGN depends on, beside the teacher that it may start from."""

    profile: Profile
    dataset: Dataset
    init: Init
    training: CGNTrainingConfig
    runtime: Runtime


def main(config: Config) -> pd.DataFrame:
    """Run every case that is not there yet; return its final metrics, a row for each case and seed."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    groups = [(cgn, list(of_cgn)) for cgn, of_cgn in groupby(config.cases(), lambda case: case.cgn)]
    real = real_images(config.dataset, config.test_images)
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    choices = ("interventions", "when", "init", "labels", "strengths", "strengths_when", "seeds", "dataset", "teacher")
    tags = {
        **teacher_tags(config.profile, config.dataset, teacher),
        "overrides": run_identity.overrides(config, DEFAULTS[config.profile], choices),
        "paper": "Sec. 4.5, Table 1",
    }
    configs = [config.of(case, seed) for seed in config.seeds for _, of_cgn in groups for case in of_cgn]
    minutes = estimate_seconds(configs, real.training, teacher, device) / 60
    print(f"{len(configs)} cases: about {minutes:.0f} minutes in all on this machine; finished ones are skipped")

    name, rows = f"{config.dataset} {config.profile}", []
    identity = {"teacher": teacher.sha256, "level": "group"}
    with store.start(EXPERIMENT, config, name, identity, {**tags, "level": "group"}, None, DESCRIPTION) as group:
        for seed, (cgn, of_cgn) in product(config.seeds, groups):
            source: Source = teacher
            if cgn is not None:
                source = train_cgn(config.cgn(of_cgn[0], seed), real, teacher, tags, group)
            remembering = Remembering(source)
            for case in of_cgn:
                final = run_case(config.of(case, seed), remembering, real, tags, group)
                rows.append({**case.tags, "seed": seed, **final})
        results = pd.DataFrame(rows)
        table = table1_shape_im_figures.cells(results)
        if not group.finished:
            log_csv(group, "table_1", table)
    print(Table("Table 1", table, (), ("protocol", "intervention"), "quantity").text.to_string())
    print(*table1_shape_im_figures.verdict(results), sep="\n")
    return results


def train_cgn(
    config: CGNConfig, real: RealImages, teacher: MNISTTeacher, tags: Mapping[str, object], group: run_module.Run
) -> MNISTTeacher:
    """Train the CGN of some cases unless that was done before; return it."""
    device, store = runtime.setup(config.runtime), group.store
    training = config.training
    strength = "" if training.intervention_strength is None else f" {training.intervention_strength:g}"
    name = f"CGN ({config.init}), {training.intervention}{strength}, seed {training.seed}"
    own = {"level": "cgn", "init": config.init, "intervention": training.intervention, "seed": training.seed}
    start = {"start": teacher.sha256 if config.init == "pretrained" else "scratch"}
    with store.start(EXPERIMENT, config, name, start, {**tags, **own}, group, DESCRIPTION) as run:
        if run.finished:
            print(f"{name}: finished before (run {run.run_id}), skipped")
        else:
            trainer = CGNTrainer(training, real.training, start_of(teacher, config.init), device)
            run.set_tags({"perceptual": trainer.perceptual})
            train(trainer, run, config.runtime, lambda step: None, (), name)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "cgn.safetensors"
                save_cgn(path, trainer.ema, {"dataset": config.dataset, "run": run.run_id})
                run.log_file(path)
    with store.artifact(run.run_id, "cgn.safetensors") as path:
        return mnist_teacher(config.dataset, path, device, name, stand_in=teacher.stand_in)


def run_case(
    config: CaseConfig, source: Source, real: RealImages, tags: Mapping[str, object], group: run_module.Run
) -> dict[str, float]:
    """Train the classifiers of a case unless that was done before; return its final metrics."""
    name = f"{config.case}, seed {config.seed}"
    own = {**config.case.tags, "level": "case", "source": source.name, "seed": config.seed}
    identity = {"source": source.sha256}
    with group.store.start(EXPERIMENT, config, name, identity, {**tags, **own}, group, DESCRIPTION) as run:
        if run.finished:
            print(f"{name}: finished before (run {run.run_id}), skipped")
            return run.final
        start = time.perf_counter()
        measured = measure(config, source, real, runtime.setup(config.runtime))
        run.log_metrics("final", measured)
        run.log_metrics("cost", {"seconds": time.perf_counter() - start})
        pixels = samples(source, config.case, config.seed)
        run.log_tensors("samples", pixels)
        run.log_image("masks over images", grid([to_float(pixels["mask"]), to_float(pixels["images"])], scale=2), 0)
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in measured.items()))
    return measured


def log_csv(run: run_module.Run, name: str, table: pd.DataFrame) -> None:
    """Keep a table as `name.csv`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.csv"
        table.to_csv(path, index=False)
        run.log_file(path)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
