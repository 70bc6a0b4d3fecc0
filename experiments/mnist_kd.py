"""Distil the mechanisms of an MNIST CGN into TinyGAN students (paper Sec. 4.3, Fig. 7).

    python experiments/mnist_kd.py                                        all three mechanisms, three seeds: minutes
    python experiments/mnist_kd.py --profile paper --mechanism shape      the published setting
    python experiments/mnist_kd.py --dataset wildlife --loss.kl 0.5       another teacher, another KL weight
    python experiments/mnist_kd.py --dataset digits                       no network, no data: a teacher trained here

Every student is a run of its own, below one run for the whole. Finished students are not trained again.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from experiments import train_cgn_mnist
from skdcgn import cli, randomness, runtime
from skdcgn.classifiers.features import digit_features
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.counterfactuals.students import SKDCGN
from skdcgn.data.labels import balanced_labels
from skdcgn.files import sha256
from skdcgn.images import fit_resolution, grid
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.recipes.profiles import MNIST
from skdcgn.recipes.student import distil
from skdcgn.recipes.study import Study, StudyConfig
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.tinygan.networks import load_class_embedding

DESCRIPTION = """Distillation of an MNIST CGN's mechanisms into TinyGAN students (Sec. 4.3).
`heldout/*` and `final/*` are measured on noise that no training saw. Feeds **Figure 7 a-c**, Figure 11 and the MNIST
counterpart of Figure 6."""


@dataclass(frozen=True)
class Config(StudyConfig):
    """Distillation of an MNIST CGN."""

    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""


DEFAULTS = {
    name: Config(
        name,
        scale.student,
        scale.distill,
        scale.loss,
        scale.student_seeds,
        scale.heldout_per_class,
        scale.evaluations,
    )
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return their final metrics, a row for each (mechanism, seed)."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    embedding, identity = None, {}
    if config.class_embedding:
        embedding = load_class_embedding(config.class_embedding, config.student)
        identity["class_embedding"] = sha256(config.class_embedding)
    tags = {"source": "skdcgn", "paper": "Sec. 4.3, Fig. 7"}
    default, runs = DEFAULTS[config.profile], {}
    with Study("mnist_kd", config, default, teacher, store, tags, DESCRIPTION, identity=identity) as study:
        for seed, mechanism in itertools.product(config.seeds, config.mechanisms):
            with study.student(mechanism, seed) as (run, child):
                if not run.finished:
                    distil(run, teacher, mechanism, child, seed, device, digit_features, embedding)
            runs[seed, mechanism] = run.run_id
        if not study.group.finished and config.mechanism == "all":
            students = {mechanism: store.load_student(runs[config.seeds[0], mechanism]) for mechanism in Mechanism}
            log_counterfactuals(study.group, teacher, SKDCGN(students, device=device), device)
    print(study)
    return study.results()


def log_counterfactuals(run: run_module.Run, teacher: Source, students: SKDCGN, device: torch.device) -> None:
    """Keep counterfactuals of teacher and students on the same noise, labels and patch shuffles (as in Fig. 6)."""
    labels = balanced_labels(2, teacher.num_classes).to(device)
    noise = {
        m: teacher.sample_noise(len(labels), randomness.stream(0, "figure 6", m, device=device)) for m in Mechanism
    }
    tensors = {}
    for name, source in (("teacher", teacher), ("student", students)):
        generator = randomness.stream(0, "figure 6", device=device)
        sampled = sample_counterfactuals(source, labels, generator, noise=noise)
        tensors |= {name: sampled.images, f"mask_{name}": sampled.mask}
        tensors |= {f"labels_{mechanism}": y for mechanism, y in sampled.labels.items()}
    run.log_tensors("counterfactuals", tensors)
    rows = [fit_resolution(tensors[name], teacher.resolution) for name in ("student", "teacher")]
    run.log_image("counterfactuals/students over teacher", grid(rows, scale=2), 0)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
