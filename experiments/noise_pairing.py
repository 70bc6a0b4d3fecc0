"""Ask why students fail on random noise (paper Sec. 4.3): too small, or trained on the wrong noise?

    python experiments/noise_pairing.py                                        both teacher sets, all mechanisms
    python experiments/noise_pairing.py --pairing published --mechanism shape
    python experiments/noise_pairing.py --profile full

The published scripts stored textures and backgrounds with other noise than they were made from, and every target as a
JPEG, normalised image by image. Masks kept their noise: they show what the files alone do. `final/noise_response` is
how far a student answers to noise as its teacher does, on noise never seen; `final/seen_*` is measured on the noise of
the training set, against the teacher's true output.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from experiments import train_cgn_mnist
from skdcgn import cli, metrics, runtime, tracking
from skdcgn.distill import DistillConfig
from skdcgn.evaluation import HeldOut
from skdcgn.losses import LossConfig
from skdcgn.mechanisms import Mechanism
from skdcgn.models.tinygan import TinyGANConfig
from skdcgn.profiles import MNIST, Profile
from skdcgn.runtime import Runtime
from skdcgn.training import distil, teacher_tags

DESCRIPTION = """Students of exact teacher sets against students of sets drawn as the published scripts did, seed by
seed, on seen and unseen noise (Sec. 4.3). `baseline/*` of the group: the teacher's class means as a student."""


@dataclass(frozen=True)
class Config:
    """Exact noise against the published pipeline's."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    seeds: tuple[int, ...]
    """One student for each seed, mechanism and pairing."""
    heldout_per_class: int
    """Held-out images of each class."""
    evaluations: int | tuple[float, ...] = 5
    """Held-out evaluations during a training: how many, or at which fractions of it."""
    dataset: Literal["double_colored", "colored", "wildlife", "digits"] = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distil."""
    pairing: Literal["exact", "published", "all"] = "all"
    """Teacher set: each image with its own noise, or as the published scripts drew it."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    runtime: Runtime = field(default_factory=Runtime)


# Masks are drawn as grey RGB, as the published students do: the published teacher set holds them so.
DEFAULTS = {
    name: Config(
        name,
        replace(scale.student, mask_channels=3),
        scale.ablation,
        scale.loss,
        scale.seeds,
        scale.heldout_per_class,
    )
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return final metrics, a row for each (mechanism, pairing, seed)."""
    device = runtime.setup(config.runtime)
    store = tracking.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    mechanisms = list(Mechanism) if config.mechanism == "all" else [Mechanism(config.mechanism)]
    pairings = ["exact", "published"] if config.pairing == "all" else [config.pairing]
    identity = {"teacher": teacher.sha256}
    tags = {**teacher_tags(config.profile, config.dataset, teacher), "source": "skdcgn", "paper": "Sec. 4.3"}
    scope = ("dataset", "mechanism", "pairing", "seeds", "teacher")
    tags["overrides"] = tracking.overrides(config, DEFAULTS[config.profile], scope)
    name = f"{config.dataset} {config.profile}"
    rows = []
    with store.start("noise_pairing", config, name, {**identity, "level": "group"}, tags, None, DESCRIPTION) as parent:
        for mechanism in mechanisms:
            heldout = HeldOut.unseen(teacher, mechanism, config.heldout_per_class, device=device)
            if not parent.finished:
                log_class_means(parent, heldout)
            for seed, pairing in itertools.product(config.seeds, pairings):
                distill = replace(config.distill, published_code=pairing == "published")
                child = replace(config, mechanism=mechanism.value, pairing=pairing, seeds=(seed,), distill=distill)
                child_tags = {**tags, "mechanism": mechanism.value, "pairing": pairing, "seed": seed}
                child_name = f"{mechanism} {pairing} seed {seed}"
                with store.start("noise_pairing", child, child_name, identity, child_tags, parent, DESCRIPTION) as run:
                    if run.finished:
                        print(f"{name}, {child_name}: finished before (run {run.run_id}), skipped")
                    else:
                        distil(run, teacher, mechanism, child, seed, device)
                        images = heldout.render(store.load_student(run.run_id).to(device))
                        response = metrics.noise_response(heldout.teacher, images, heldout.labels)
                        run.log_metrics("final", {"noise_response": response})
                rows.append({"mechanism": mechanism.value, "pairing": pairing, "seed": seed, **run.final})
    results = pd.DataFrame(rows).set_index(["mechanism", "pairing", "seed"])
    print(results.to_string(float_format="%.4g", na_rep=""))
    return results


def log_class_means(run: tracking.Run, heldout: HeldOut) -> None:
    """Measure what a student gets that ignores its noise: each class's mean of the teacher's held-out images."""
    means = heldout.teacher.clone()
    for label in heldout.labels.unique():
        means[heldout.labels == label] = heldout.teacher[heldout.labels == label].mean(dim=0)
    measured = metrics.fidelity(heldout.mechanism, heldout.teacher, means)
    run.log_metrics("baseline", {f"{heldout.mechanism}_{name}": value for name, value in measured.items()})


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
