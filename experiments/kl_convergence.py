"""Ask whether KL makes students converge faster (paper Appendix D.2, Fig. 15), on MNIST with the real teacher.

    python experiments/kl_convergence.py                    without KL, with the paper's, with the released module's
    python experiments/kl_convergence.py --mechanism shape --target-iou 0.7
    python experiments/kl_convergence.py --profile paper --kl paper

Runs of one seed and mechanism differ in nothing but the KL term: same initial weights, same order of the data.
`final/steps_to_target` is the step at which held-out fidelity first reaches the target; a run that never does has none.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from experiments import train_cgn_mnist
from skdcgn import cli, metrics, runtime, tracking
from skdcgn.distill import DistillConfig
from skdcgn.losses import LossConfig
from skdcgn.mechanisms import Mechanism
from skdcgn.models.tinygan import TinyGANConfig
from skdcgn.profiles import MNIST, Profile
from skdcgn.runtime import Runtime
from skdcgn.training import distil, teacher_tags
from skdcgn.variants import KL_TERMS

DESCRIPTION = """Steps to a fixed held-out fidelity with and without KL, seed by seed. Feeds the MNIST counterpart of
**Figure 15**."""


@dataclass(frozen=True)
class Config:
    """Convergence with and without KL."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    """The objective without KL, to which a KL term is added."""
    seeds: tuple[int, ...]
    """One student for each seed, mechanism and KL term."""
    heldout_per_class: int
    """Held-out images of each class."""
    evaluations: int | tuple[float, ...] = 30
    """Held-out evaluations during a training: one for each of the paper's epochs."""
    target_iou: float = 0.5
    """The held-out mask IoU to reach (shape)."""
    target_l1: float = 0.05
    """The held-out L1 to reach (texture, background)."""
    dataset: Literal["double_colored", "colored", "wildlife", "digits"] = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distil."""
    kl: Literal["none", "paper", "published_module", "all"] = "all"
    """The KL term, see `skdcgn.variants.KL_TERMS`."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {
    name: Config(
        name, scale.student, scale.ablation, scale.ablation_loss, scale.seeds, scale.ablation_heldout_per_class
    )
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return final metrics, a row for each (mechanism, kl, seed)."""
    device = runtime.setup(config.runtime)
    store = tracking.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    mechanisms = list(Mechanism) if config.mechanism == "all" else [Mechanism(config.mechanism)]
    kls = list(KL_TERMS) if config.kl == "all" else [config.kl]
    identity = {"teacher": teacher.sha256}
    tags = {
        **teacher_tags(config.profile, config.dataset, teacher),
        "source": "skdcgn",
        "paper": "Appendix D.2, Fig. 15",
    }
    scope = ("dataset", "mechanism", "kl", "seeds", "teacher")
    tags["overrides"] = tracking.overrides(config, DEFAULTS[config.profile], scope)
    name = f"{config.dataset} {config.profile}"
    rows = []
    with store.start("kl_convergence", config, name, {**identity, "level": "group"}, tags, None, DESCRIPTION) as parent:
        for seed, mechanism, kl in itertools.product(config.seeds, mechanisms, kls):
            loss = KL_TERMS[kl].loss(config.loss)
            child = replace(config, mechanism=mechanism.value, kl=kl, seeds=(seed,), loss=loss)
            child_tags = {**tags, "mechanism": mechanism.value, "kl": kl, "seed": seed}
            child_name = f"{mechanism} {kl} seed {seed}"
            with store.start("kl_convergence", child, child_name, identity, child_tags, parent, DESCRIPTION) as run:
                if run.finished:
                    print(f"{name}, {child_name}: finished before (run {run.run_id}), skipped")
                else:
                    distil(run, teacher, mechanism, child, seed, device)
                    log_steps_to_target(run, mechanism, child)
            rows.append({"mechanism": mechanism.value, "kl": kl, "seed": seed, **run.final})
    results = pd.DataFrame(rows).set_index(["mechanism", "kl", "seed"])
    print(results.to_string(float_format="%.4g", na_rep=""))
    return results


def log_steps_to_target(run: tracking.Run, mechanism: Mechanism, config: Config) -> None:
    """Note when the student's held-out fidelity reached the target."""
    shape = mechanism is Mechanism.SHAPE
    logged = run.store.client.get_metric_history(run.run_id, "heldout/iou" if shape else "heldout/l1")
    history = sorted((metric.step, metric.value) for metric in logged)
    steps = metrics.steps_to(history, config.target_iou if shape else config.target_l1, rising=shape)
    if math.isfinite(steps):
        run.log_metrics("final", {"steps_to_target": steps})


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
