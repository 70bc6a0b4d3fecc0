"""Out-of-distribution robustness of classifiers trained on counterfactuals (announced in Sec. 1, never reported).

    python experiments/ood_robustness.py                                      double-colored MNIST, a few minutes
    python experiments/ood_robustness.py --datasets colored wildlife          the other variants
    python experiments/ood_robustness.py --datasets digits                    no network, no data
    python experiments/ood_robustness.py --sources cgn skdcgn_published       students of the published size (hours)
    python experiments/ood_robustness.py --profile full                       10^5 images, five seeds, all variants

The same classifier learns from as many images of each source: the original (biased) ones, a conditional GAN's, and
counterfactuals of the CGN, of SKDCGN and of the baseline. It is tested where colours or textures are random.
Generators that are not there yet are trained first, students by `mnist_kd` and the baseline by `baseline_mnist`.
"""

import tempfile
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pandas as pd

from analysis.frame.published import robustness as published
from experiments import baseline_mnist, mnist_kd, train_cgn_mnist
from skdcgn import cli, runtime
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.counterfactuals.gan import GANConfig
from skdcgn.data.mnist import Dataset
from skdcgn.errors import InputError
from skdcgn.measure.statistics import mean_interval
from skdcgn.recipes.ood_robustness import (
    ImageSource,
    counterfactual_images,
    generated_images,
    original_images,
    train_classifier,
    train_gan,
)
from skdcgn.recipes.profiles import ROBUSTNESS, Profile, RobustnessScale, TrainingSource
from skdcgn.recipes.sources import finished_group, load_source
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import PUBLISHED_MNIST

EXPERIMENT = "ood_robustness"
DESCRIPTION = """Classifiers trained on images of one source, tested where colours or textures are random.
`final/valid_accuracy`: last 10,000 of MNIST-train, the CGN authors' test set; `final/test_accuracy`: MNIST-test;
`final/*_drifted_accuracy`: with the wandering colours of the CGN authors' loader. Feeds the **robustness table**."""


@dataclass(frozen=True)
class Config(RobustnessScale):
    """Comparison of classifiers by the images that they learn from."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        for name in ("images", "generators", "per_mask"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is too few: give at least 1.")
        for name in ("sources", "seeds", "datasets"):
            if not getattr(self, name):
                raise InputError(f"--{name} names none: give at least one.")


DEFAULTS = {name: Config(**vars(scale), profile=name) for name, scale in ROBUSTNESS.items()}


@dataclass(frozen=True)
class GANRun:
    """Training of one conditional GAN."""

    profile: Profile
    gan: GANConfig
    dataset: Dataset
    runtime: Runtime


def main(config: Config) -> pd.DataFrame:
    """Train every classifier that is not there yet; return their final metrics by data set, source and seed."""
    runtime.setup(config.runtime)
    store = run_store.open_store()
    overrides = run_identity.overrides(config, DEFAULTS[config.profile], ("datasets", "sources", "seeds"))
    tags = {"profile": config.profile, "overrides": overrides, "paper": "Sec. 1"}
    name, rows = f"{', '.join(config.datasets)} {config.profile}", []
    with store.start(EXPERIMENT, config, name, {"level": "group"}, tags, None, DESCRIPTION) as group:
        for dataset, source in product(config.datasets, config.sources):
            teacher = train_cgn_mnist.load_teacher(dataset, config.students, None, config.runtime, store)
            generators = 1 if source == "skdcgn_published" else config.generators
            found: dict[int, ImageSource] = {}
            for position, seed in enumerate(config.seeds):
                own = config.seeds[position % generators]
                if own not in found:
                    found[own] = find_images(config, dataset, source, own, teacher, group)
                child = replace(config, datasets=(dataset,), sources=(source,), seeds=(seed,))
                final = classify(child, found[own], {**tags, **teacher_of(source, teacher)}, group)
                rows.append({"dataset": dataset, "source": source, "seed": seed, **final})
        results = pd.DataFrame(rows).set_index(["dataset", "source", "seed"])
        table = summarise(results)
        if not group.finished:
            with tempfile.TemporaryDirectory() as folder:
                table.to_csv(Path(folder) / "robustness.csv")
                group.log_file(Path(folder) / "robustness.csv")
    print(table.to_string(na_rep=""))
    return results


def classify(config: Config, images: ImageSource, tags: dict[str, object], group: run_module.Run) -> dict[str, float]:
    """Train the classifier of one data set, source and seed unless that was done before; return its final metrics."""
    (dataset,), (source,), (seed,) = config.datasets, config.sources, config.seeds
    tags = {**tags, "dataset": dataset, "source": source, "seed": seed, "images": images.name}
    name, identity = f"{dataset} {source} seed {seed}", {"images": images.identity}
    with group.store.start(EXPERIMENT, config, name, identity, tags, group, DESCRIPTION) as run:
        if run.finished:
            print(f"{name}: finished before (run {run.run_id}), skipped")
        else:
            device = runtime.setup(config.runtime)
            train_classifier(run, images, config.images, dataset, config.classifier, seed, config.runtime, device)
    return run.final


def find_images(
    config: Config,
    dataset: Dataset,
    source: TrainingSource,
    seed: int,
    teacher: MNISTTeacher,
    group: run_module.Run,
) -> ImageSource:
    """Return the training images of a source, from a generator of a seed, which is trained unless it is there."""
    device, store = runtime.setup(config.runtime), group.store
    own = {"dataset": dataset, "runtime": config.runtime}
    if source == "original":
        return original_images(dataset)
    if source == "cgn":
        return counterfactual_images(teacher, config.per_mask)
    if source == "gan":
        gan = GANRun(config.profile, replace(config.gan, seed=seed), **own)
        tags = {"profile": config.profile, "dataset": dataset, "seed": seed, "source": "gan_training"}
        with store.start(EXPERIMENT, gan, f"{dataset} GAN seed {seed}", None, tags, group, DESCRIPTION) as run:
            if not run.finished:
                train_gan(run, dataset, gan.gan, config.runtime, device)
        generator = store.load_student(run.run_id, "generator").to(device)
        return generated_images(generator, f"GAN (run {run.run_id[:8]})", run.run_id)
    if source == "baseline":
        trained = baseline_mnist.main(replace(baseline_mnist.DEFAULTS[config.students], seeds=(seed,), **own))
        run_id = trained.loc[seed, "run_id"]
    else:
        students = mnist_kd.DEFAULTS[config.students]
        if source == "skdcgn_published":
            students = replace(mnist_kd.DEFAULTS[config.published_students], student=PUBLISHED_MNIST)
        students = replace(students, seeds=(seed,), **own)
        mnist_kd.main(students)
        run_id = finished_group(store, "mnist_kd", students)
    return counterfactual_images(load_source(f"runs:/{run_id}", store, device), config.per_mask)


def teacher_of(source: TrainingSource, teacher: MNISTTeacher) -> dict[str, object]:
    """Return the teacher's tags of a source: what the CGN itself and its students have in common."""
    if source in ("cgn", "skdcgn", "skdcgn_published"):
        return {"teacher": teacher.name, "teacher_sha256": teacher.sha256, "stand_in": teacher.stand_in}
    return {"teacher": "none", "teacher_sha256": "none", "stand_in": False}


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Return the table of the comparison: published accuracies (train / test) beside ours over seeds, in per cent."""
    rows = {}
    for (dataset, source), runs in results.groupby(["dataset", "source"], sort=False):
        row = {
            name.replace("_", " "): "" if accuracy is None else f"{accuracy.train:g} / {accuracy.test:g}"
            for name, accuracy in published(dataset, source)._asdict().items()
        }
        for metric in (column for column in results if column.endswith("_accuracy")):
            values = (100 * runs[metric].dropna()).tolist()
            if values:
                mean, low, high, n = mean_interval(values)
                interval = f" [{low:.1f}, {high:.1f}]" if n > 1 else ""
                row[metric.removesuffix("_accuracy").replace("_", " ")] = f"{mean:.1f}{interval} n={n}"
        rows[dataset, source] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["dataset", "source"])


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
