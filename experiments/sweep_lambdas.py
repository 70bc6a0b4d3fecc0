"""Search lambda_1 and lambda_2, the weights of the pixel distance and of the adversarial term (paper Eq. 2, 3 and 7).

    python experiments/sweep_lambdas.py                                     30 trials around the paper's 0.2 and 0.01
    python experiments/sweep_lambdas.py --mechanism texture --decay --n-critic
    python experiments/sweep_lambdas.py --search.study mine --search.trials 60     begin the study "mine", or go on
    python experiments/sweep_lambdas.py --widths 8 12 16 24                 fidelity against size: a Pareto front

Start it several times, also on other machines that share MLFLOW_TRACKING_URI: the processes share the work. The best
trial and the paper's values are trained again on fresh seeds; `best.yaml` then goes to any script with `--config`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.presets import PROFILES, SEARCHES, SweepConfig
from experiments.searches import search_of
from skdcgn.commands.experiments import experiment
from skdcgn.configs.fields import PositiveInt

if TYPE_CHECKING:
    from skdcgn.recipes.sweep import DistillationSearch
    from skdcgn.runs.search.sweep import Params, Space

DESCRIPTION = """A search of λ1 and λ2, the weights of pixel distance and adversarial term (Eq. 7): a study, its trials
below it, and a confirmation: the best trial beside the paper's values, on seeds that no trial saw. Feeds the notebook
**sweeps**."""


@dataclass(frozen=True)
class Config(SweepConfig):
    """Search of lambda_1 and lambda_2."""

    decay: bool = False
    """Search the decay of lambda_1 by epoch too."""
    n_critic: bool = False
    """Search how often the adversarial term enters the student's objective too."""
    widths: tuple[PositiveInt, ...] = ()
    """Search the student's width among these too; its size is then a second objective."""


DEFAULTS = {profile: Config(profile, **SEARCHES[profile]) for profile in PROFILES}


def space(config: Config) -> "tuple[Space, Params]":
    """Return what is searched, and the paper's values of it."""
    from skdcgn.runs.search.sweep import CategoricalDistribution, FloatDistribution, IntDistribution

    searched = {
        "loss.lambda_1": (FloatDistribution(0.01, 30.0, log=True), 0.2),
        "loss.lambda_2": (FloatDistribution(1e-4, 1.0, log=True), 0.01),
    }
    if config.decay:
        searched["loss.lambda_1_decay"] = (FloatDistribution(0.0, 0.05), 0.01)
    if config.n_critic:
        searched["loss.n_critic"] = (IntDistribution(1, 10), 5)
    if config.widths:
        searched["student.width"] = (CategoricalDistribution(config.widths), config.widths[-1])
    return {name: pair[0] for name, pair in searched.items()}, {name: pair[1] for name, pair in searched.items()}


def plan(config: Config) -> "DistillationSearch":
    """Return the study, and what its best trial is compared with."""
    searched, paper = space(config)
    references = {"the paper's values": paper}
    return search_of("sweep_lambdas", config, DEFAULTS, searched, [paper], references, "Sec. 4.2, Eq. 7", DESCRIPTION)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
