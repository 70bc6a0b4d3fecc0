"""Distil the mechanisms of an MNIST CGN into TinyGAN students (paper Sec. 4.3, Fig. 7).

    python experiments/mnist_kd.py                                        all three mechanisms, a few minutes
    python experiments/mnist_kd.py --profile paper --mechanism shape      the published setting
    python experiments/mnist_kd.py --dataset wildlife --loss.kl 0.5       another teacher, another KL weight
    python experiments/mnist_kd.py --dataset digits                       no network, no data: a teacher trained here

Every student is a run of its own, below one run for the whole. Finished students are not trained again.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from experiments import train_cgn_mnist
from skdcgn import cli, runtime, tracking
from skdcgn.counterfactuals import sample_counterfactuals
from skdcgn.distill import DistillConfig
from skdcgn.images import grid
from skdcgn.losses import LossConfig
from skdcgn.mechanisms import Mechanism
from skdcgn.metrics import digit_features
from skdcgn.models.tinygan import TinyGANConfig, load_class_embedding
from skdcgn.profiles import MNIST, Profile
from skdcgn.runtime import Runtime
from skdcgn.students import SKDCGN, fit_resolution
from skdcgn.teachers import Teacher, balanced_labels
from skdcgn.training import distil, teacher_tags
from skdcgn.weights import sha256

DESCRIPTION = """Distillation of an MNIST CGN's mechanisms into TinyGAN students (Sec. 4.3).
`heldout/*` and `final/*` are measured on noise that no training saw. Feeds **Figure 7 a-c**, Figure 11 and the MNIST
counterpart of Figure 6."""


@dataclass(frozen=True)
class Config:
    """Distillation of an MNIST CGN."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    seeds: tuple[int, ...]
    """One student for each seed and mechanism."""
    evaluations: int
    """Held-out evaluations during a training."""
    heldout_per_class: int
    """Held-out images of each class."""
    dataset: Literal["double_colored", "colored", "wildlife", "digits"] = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distil."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {
    name: Config(
        name,
        scale.student,
        scale.distill,
        scale.loss,
        scale.seeds[:1],
        scale.evaluations,
        scale.heldout_per_class,
    )
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return their final metrics, a row for each (mechanism, seed)."""
    device = runtime.setup(config.runtime)
    store = tracking.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    embedding = load_class_embedding(config.class_embedding, config.student) if config.class_embedding else None
    mechanisms = list(Mechanism) if config.mechanism == "all" else [Mechanism(config.mechanism)]
    identity = {"teacher": teacher.sha256}
    if config.class_embedding:
        identity["class_embedding"] = sha256(config.class_embedding)
    tags = {**teacher_tags(config.profile, config.dataset, teacher), "source": "skdcgn", "paper": "Sec. 4.3, Fig. 7"}
    scope = ("dataset", "mechanism", "seeds", "teacher")
    tags["overrides"] = tracking.overrides(config, DEFAULTS[config.profile], scope)
    name = f"{config.dataset} {config.profile}"
    rows, runs = [], {}
    with store.start("mnist_kd", config, name, {**identity, "level": "group"}, tags, None, DESCRIPTION) as parent:
        for seed, mechanism in itertools.product(config.seeds, mechanisms):
            child = replace(config, mechanism=mechanism.value, seeds=(seed,))
            child_tags = {**tags, "mechanism": mechanism.value, "seed": seed}
            child_name = f"{mechanism} seed {seed}"
            with store.start("mnist_kd", child, child_name, identity, child_tags, parent, DESCRIPTION) as run:
                if run.finished:
                    print(f"{name}, {child_name}: finished before (run {run.run_id}), skipped")
                else:
                    distil(run, teacher, mechanism, child, seed, device, digit_features, embedding)
            rows.append({"mechanism": mechanism.value, "seed": seed, **run.final})
            runs[seed, mechanism] = run.run_id
        if not parent.finished and config.mechanism == "all":
            students = {mechanism: store.load_student(runs[config.seeds[0], mechanism]) for mechanism in Mechanism}
            log_counterfactuals(parent, teacher, SKDCGN(students, device=device), device)
    results = pd.DataFrame(rows).set_index(["mechanism", "seed"])
    print(results.to_string(float_format="%.4g", na_rep=""))
    return results


def log_counterfactuals(run: tracking.Run, teacher: Teacher, students: SKDCGN, device: torch.device) -> None:
    """Keep counterfactuals of teacher and students on the same noise, labels and patch shuffles (as in Fig. 6)."""
    labels = balanced_labels(2, teacher.num_classes).to(device)
    noise = {m: teacher.sample_noise(len(labels), runtime.stream(0, "figure 6", m, device=device)) for m in Mechanism}
    tensors = {}
    for name, source in (("teacher", teacher), ("student", students)):
        generator = runtime.stream(0, "figure 6", device=device)
        sampled = sample_counterfactuals(source, labels, generator, noise=noise)
        tensors |= {name: sampled.images, f"mask_{name}": sampled.mask}
        tensors |= {f"labels_{mechanism}": y for mechanism, y in sampled.labels.items()}
    run.log_tensors("counterfactuals", tensors)
    rows = [fit_resolution(tensors[name], teacher.resolution) for name in ("student", "teacher")]
    run.log_image("counterfactuals/students over teacher", grid(rows, scale=2), 0)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
