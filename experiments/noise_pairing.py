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
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from experiments import train_cgn_mnist
from skdcgn import cli, runtime
from skdcgn.measure import fidelity
from skdcgn.measure.heldout import HeldOut
from skdcgn.recipes.profiles import MNIST
from skdcgn.recipes.student import distil
from skdcgn.recipes.study import Study, StudyConfig
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store

DESCRIPTION = """Students of exact teacher sets against students of sets drawn as the published scripts did, seed by
seed, on seen and unseen noise (Sec. 4.3). `baseline/*` of the group: the teacher's class means as a student."""


@dataclass(frozen=True)
class Config(StudyConfig):
    """Exact noise against the published pipeline's."""

    pairing: Literal["exact", "published", "all"] = "all"
    """Teacher set: each image with its own noise, or as the published scripts drew it."""


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
    store = run_store.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    pairings = ["exact", "published"] if config.pairing == "all" else [config.pairing]
    tags = {"source": "skdcgn", "paper": "Sec. 4.3"}
    default = DEFAULTS[config.profile]
    with Study("noise_pairing", config, default, teacher, store, tags, DESCRIPTION, varies="pairing") as study:
        for mechanism in config.mechanisms:
            heldout = HeldOut.unseen(teacher, mechanism, config.heldout_per_class, device=device)
            if not study.group.finished:
                log_class_means(study.group, heldout)
            for seed, pairing in itertools.product(config.seeds, pairings):
                distill = replace(config.distill, published_code=pairing == "published")
                with study.student(mechanism, seed, pairing, distill=distill) as (run, child):
                    if not run.finished:
                        distil(run, teacher, mechanism, child, seed, device)
                        images = heldout.render(store.load_student(run.run_id).to(device))
                        response = fidelity.noise_response(heldout.teacher, images, heldout.labels)
                        run.log_metrics("final", {"noise_response": response})
    print(study)
    return study.results()


def log_class_means(run: run_module.Run, heldout: HeldOut) -> None:
    """Measure what a student gets that ignores its noise: each class's mean of the teacher's held-out images."""
    means = heldout.teacher.clone()
    for label in heldout.labels.unique():
        means[heldout.labels == label] = heldout.teacher[heldout.labels == label].mean(dim=0)
    measured = fidelity.fidelity(heldout.mechanism, heldout.teacher, means)
    run.log_metrics("baseline", {f"{heldout.mechanism}_{name}": value for name, value in measured.items()})


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
