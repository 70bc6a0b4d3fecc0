"""Ask whether KL makes students converge faster (paper Appendix D.2, Fig. 15), on MNIST with the real teacher.

    python experiments/kl_convergence.py                    without KL, with the paper's, with the released module's
    python experiments/kl_convergence.py --mechanism shape --target-iou 0.7
    python experiments/kl_convergence.py --profile paper --kl paper

Runs of one seed and mechanism differ in nothing but the KL term: same initial weights, same order of the data.
`final/steps_to_target` is the step at which held-out fidelity first reaches the target; a run that never does has none.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from experiments import train_cgn_mnist
from skdcgn import cli, runtime
from skdcgn.measure import fidelity
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.profiles import MNIST
from skdcgn.recipes.student import distil
from skdcgn.recipes.study import Study, StudyConfig
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.tinygan.variants import KL_TERMS

DESCRIPTION = """Steps to a fixed held-out fidelity with and without KL, seed by seed. Feeds the MNIST counterpart of
**Figure 15**."""


@dataclass(frozen=True)
class Config(StudyConfig):
    """Convergence with and without KL; `loss` is the objective without it, to which a KL term is added."""

    evaluations: int | tuple[float, ...] = 30
    """Held-out evaluations during a training: one for each of the paper's epochs."""
    kl: Literal["none", "paper", "published_module", "all"] = "all"
    """The KL term, see `skdcgn.variants.KL_TERMS`."""
    target_iou: float = 0.5
    """The held-out mask IoU to reach (shape)."""
    target_l1: float = 0.05
    """The held-out L1 to reach (texture, background)."""


DEFAULTS = {
    name: Config(
        name, scale.student, scale.ablation, scale.ablation_loss, scale.seeds, scale.ablation_heldout_per_class
    )
    for name, scale in MNIST.items()
}


def main(config: Config) -> pd.DataFrame:
    """Train every student that is not there yet; return final metrics, a row for each (mechanism, kl, seed)."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    teacher = train_cgn_mnist.load_teacher(config.dataset, config.profile, config.teacher, config.runtime, store)
    kls = list(KL_TERMS) if config.kl == "all" else [config.kl]
    tags = {"source": "skdcgn", "paper": "Appendix D.2, Fig. 15"}
    default = DEFAULTS[config.profile]
    with Study("kl_convergence", config, default, teacher, store, tags, DESCRIPTION, varies="kl") as study:
        for seed, mechanism, kl in itertools.product(config.seeds, config.mechanisms, kls):
            with study.student(mechanism, seed, kl, loss=KL_TERMS[kl].loss(config.loss)) as (run, child):
                if not run.finished:
                    distil(run, teacher, mechanism, child, seed, device)
                    log_steps_to_target(run, mechanism, child)
    print(study)
    return study.results()


def log_steps_to_target(run: run_module.Run, mechanism: Mechanism, config: Config) -> None:
    """Note when the student's held-out fidelity reached the target."""
    shape = mechanism is Mechanism.SHAPE
    logged = run.store.client.get_metric_history(run.run_id, "heldout/iou" if shape else "heldout/l1")
    history = sorted((metric.step, metric.value) for metric in logged)
    steps = fidelity.steps_to(history, config.target_iou if shape else config.target_l1, rising=shape)
    if math.isfinite(steps):
        run.log_metrics("final", {"steps_to_target": steps})


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
