"""Search the KL term of the student's objective: weight, temperature, direction, what it compares (paper Eq. 6).

    python experiments/sweep_kl.py                          30 trials, the paper's Eq. 6 and the published module first
    python experiments/sweep_kl.py --mechanism background
    python experiments/sweep_kl.py --search.study mine --search.trials 60          begin the study "mine", or go on

Start it several times, also on other machines that share MLFLOW_TRACKING_URI: the processes share the work. The best
trial is trained again on fresh seeds beside Eq. 6, the published module, and no KL at all; `best.yaml` then goes to
any script with `--config`.
"""

from typing import TYPE_CHECKING, Any

from experiments.presets import PROFILES, SEARCHES, SweepConfig
from experiments.searches import search_of
from skdcgn.commands.experiments import experiment

if TYPE_CHECKING:
    from skdcgn.recipes.sweep import DistillationSearch
    from skdcgn.runs.search.sweep import Space

DESCRIPTION = """A search of the KL term, its weight, temperature, direction and what it compares (Eq. 6): a study, its
trials below it, and a confirmation: the best trial beside Eq. 6, the published module and no KL, on seeds that no trial
saw. Feeds the notebook **sweeps**."""

DEFAULTS = {profile: SweepConfig(profile, **SEARCHES[profile]) for profile in PROFILES}


def _fields(kl: Any, kl_on: Any, direction: Any, temperature: Any) -> dict[str, Any]:
    return {"loss.kl": kl, "loss.kl_on": kl_on, "loss.kl_direction": direction, "loss.temperature": temperature}


# The paper gives no lambda_KL: 1, the weight that every other unscaled term has. Eq. 6 does not say either whether
# its distributions are over each pixel's values or over an image's pixels.
PAPER = _fields(1.0, "pixels", "teacher_student", 1.0)
OVER_IMAGE = _fields(1.0, "image", "teacher_student", 1.0)
PUBLISHED_MODULE = _fields(1.0, "activations", "student_teacher", 8.0)
REFERENCES = {"Eq. 6": PAPER, "the published module": PUBLISHED_MODULE, "no KL": {"loss.kl": 0.0}}


def space() -> "Space":
    """Return what is searched."""
    from skdcgn.runs.search.sweep import CategoricalDistribution, FloatDistribution

    return _fields(
        FloatDistribution(0.01, 30.0, log=True),
        CategoricalDistribution(("pixels", "image", "activations")),
        CategoricalDistribution(("teacher_student", "student_teacher")),
        FloatDistribution(0.5, 16.0, log=True),
    )


def plan(config: SweepConfig) -> "DistillationSearch":
    """Return the study, and what its best trial is compared with."""
    first = [PAPER, PUBLISHED_MODULE, OVER_IMAGE]
    return search_of("sweep_kl", config, DEFAULTS, space(), first, REFERENCES, "Sec. 4.4, Eq. 6", DESCRIPTION)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
