"""Compare the objectives of Appendix D (paper Sec. 4.4, D.1-D.3, Figs. 12, 13, 14, 16).

    python experiments/ablation_losses.py                                      all variants, mechanisms and seeds
    python experiments/ablation_losses.py --variant d3_mse --mechanism shape   one of them
    python experiments/ablation_losses.py --profile paper --variant d2_kl_outputs

Runs of one seed and mechanism differ in nothing but the variant: same initial weights, same order of the data.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from experiments import train_cgn_mnist
from skdcgn import cli, runtime
from skdcgn.classifiers.features import digit_features
from skdcgn.recipes.profiles import MNIST
from skdcgn.recipes.student import distil
from skdcgn.recipes.study import Study, StudyConfig
from skdcgn.runs import store as run_store
from skdcgn.tinygan.variants import APPENDIX_D

DESCRIPTION = """The objectives of Appendix D against the plain one, seed by seed: held-out fidelity and noise energy
(high-frequency content against the teacher's) by step. Feeds **Figures 12, 13, 14 and 16**."""

EPOCHS = (2, 5, 10, 15, 20, 30)
"""Epochs to evaluate after, of the paper's 30: its figures show 2, 10 and 30."""


@dataclass(frozen=True)
class Config(StudyConfig):
    """Ablation of the students' objective; `loss` is the plain one, to which each variant makes its changes."""

    evaluations: int | tuple[float, ...] = tuple(epoch / EPOCHS[-1] for epoch in EPOCHS)
    """Held-out evaluations during a training: how many, or at which fractions of it."""
    variant: Literal["tinygan", "cross_entropy", "d1_kl_layers", "d2_kl_outputs", "d3_mse", "published_code", "all"] = (
        "all"
    )
    """The objective, see `skdcgn.variants.APPENDIX_D`."""


# Masks are drawn as grey RGB, as the published students do: the published teacher set holds them so.
DEFAULTS = {
    name: Config(
        name,
        replace(scale.student, mask_channels=3),
        scale.ablation,
        scale.ablation_loss,
        scale.seeds,
        scale.ablation_heldout_per_class,
    )
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return final metrics, a row for each (mechanism, variant, seed)."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    variants = list(APPENDIX_D) if config.variant == "all" else [config.variant]
    tags = {"source": "skdcgn", "paper": "Sec. 4.4, Appendix D"}
    default = DEFAULTS[config.profile]
    with Study("ablation_losses", config, default, teacher, store, tags, DESCRIPTION, varies="variant") as study:
        for seed, mechanism, variant in itertools.product(config.seeds, config.mechanisms, variants):
            preset = APPENDIX_D[variant]
            objective = {
                "loss": preset.loss(config.loss),
                "distill": replace(config.distill, published_code=preset.published_data),
            }
            with study.student(mechanism, seed, variant, {"paper": preset.paper}, **objective) as (run, child):
                if not run.finished:
                    distil(run, teacher, mechanism, child, seed, device, digit_features)
    print(study)
    return study.results()


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
