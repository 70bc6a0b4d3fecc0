"""Compare the objectives of Appendix D (paper Sec. 4.4, D.1-D.3, Figs. 12, 13, 14, 16).

    python experiments/ablation_losses.py                                      all variants, mechanisms and seeds
    python experiments/ablation_losses.py --variant d3_mse --mechanism shape   one of them
    python experiments/ablation_losses.py --profile paper --variant d2_kl_outputs

Runs of one seed and mechanism differ in nothing but the variant: same initial weights, same order of the data.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from experiments import train_cgn_mnist
from skdcgn import cli, runtime, tracking
from skdcgn.distill import DistillConfig
from skdcgn.losses import LossConfig
from skdcgn.mechanisms import Mechanism
from skdcgn.metrics import digit_features
from skdcgn.models.tinygan import TinyGANConfig
from skdcgn.profiles import MNIST, Profile
from skdcgn.runtime import Runtime
from skdcgn.training import distil, teacher_tags
from skdcgn.variants import APPENDIX_D

DESCRIPTION = """The objectives of Appendix D against the plain one, seed by seed: held-out fidelity and noise energy
(high-frequency content against the teacher's) by step. Feeds **Figures 12, 13, 14 and 16**."""

EPOCHS = (2, 5, 10, 15, 20, 30)
"""Epochs to evaluate after, of the paper's 30: its figures show 2, 10 and 30."""


@dataclass(frozen=True)
class Config:
    """Ablation of the students' objective."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    """The plain objective, to which each variant makes its changes."""
    seeds: tuple[int, ...]
    """One student for each seed, mechanism and variant."""
    heldout_per_class: int
    """Held-out images of each class."""
    evaluations: int | tuple[float, ...] = tuple(epoch / EPOCHS[-1] for epoch in EPOCHS)
    """Held-out evaluations during a training: how many, or at which fractions of it."""
    dataset: Literal["double_colored", "colored", "wildlife", "digits"] = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distil."""
    variant: Literal["tinygan", "cross_entropy", "d1_kl_layers", "d2_kl_outputs", "d3_mse", "published_code", "all"] = (
        "all"
    )
    """The objective, see `skdcgn.variants.APPENDIX_D`."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    runtime: Runtime = field(default_factory=Runtime)


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
    store = tracking.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    mechanisms = list(Mechanism) if config.mechanism == "all" else [Mechanism(config.mechanism)]
    variants = list(APPENDIX_D) if config.variant == "all" else [config.variant]
    identity = {"teacher": teacher.sha256}
    tags = {**teacher_tags(config.profile, config.dataset, teacher), "source": "skdcgn"}
    scope = ("dataset", "mechanism", "variant", "seeds", "teacher")
    tags["overrides"] = tracking.overrides(config, DEFAULTS[config.profile], scope)
    name = f"{config.dataset} {config.profile}"
    group_tags = {**tags, "paper": "Sec. 4.4, Appendix D"}
    rows = []
    with store.start(
        "ablation_losses", config, name, {**identity, "level": "group"}, group_tags, None, DESCRIPTION
    ) as parent:
        for seed, mechanism, variant in itertools.product(config.seeds, mechanisms, variants):
            preset = APPENDIX_D[variant]
            child = replace(
                config,
                mechanism=mechanism.value,
                variant=variant,
                seeds=(seed,),
                loss=preset.loss(config.loss),
                distill=replace(config.distill, published_code=preset.published_data),
            )
            child_tags = {**tags, "mechanism": mechanism.value, "variant": variant, "seed": seed, "paper": preset.paper}
            child_name = f"{mechanism} {variant} seed {seed}"
            with store.start("ablation_losses", child, child_name, identity, child_tags, parent, DESCRIPTION) as run:
                if run.finished:
                    print(f"{name}, {child_name}: finished before (run {run.run_id}), skipped")
                else:
                    distil(run, teacher, mechanism, child, seed, device, digit_features)
            rows.append({"mechanism": mechanism.value, "variant": variant, "seed": seed, **run.final})
    results = pd.DataFrame(rows).set_index(["mechanism", "variant", "seed"])
    print(results.to_string(float_format="%.4g", na_rep=""))
    return results


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
