"""The paper's baseline: a CGN whose BigGANs are TinyGANs, trained without a teacher (Sec. 4.2, A.3, C; Fig. 8-10).

    python experiments/baseline_cgn_tinygan.py                         all stages on the miniature, two minutes
    python experiments/baseline_cgn_tinygan.py --stage cgn             that stage, and what it needs of earlier ones
    python experiments/baseline_cgn_tinygan.py --profile paper --real-images IMAGENET/train
    python experiments/baseline_cgn_tinygan.py --profile paper --tinygan-checkpoint model_18.tar

Stages: `tinygan` distills a TinyGAN from the unconstrained BigGAN, beside real images; `cgn` trains a CGN of three such
TinyGANs with CGN's own losses; `counterfactuals` measures its images beside those of CGN and of imagenet_kd's students.
Each is a run of its own. A finished one is not repeated, a killed one resumes; students that are missing are trained.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments.cases_imagenet import baseline, baseline_study, skdcgn_of
from experiments.presets_imagenet import BASELINE, BaselineConfig
from skdcgn.commands.experiments import experiment
from skdcgn.configs.fields import PositiveInt, Some
from skdcgn.errors import InputError
from skdcgn.recipes.configs.baseline_cgn_tinygan import ALL_SOURCES, CounterfactualRunConfig, CounterfactualSource
from skdcgn.runs.identity import derive
from skdcgn.runs.plan import Case, Plan

if TYPE_CHECKING:
    from skdcgn.cgn.baseline import Parts

STAGES = ("tinygan", "cgn", "counterfactuals")


@dataclass(frozen=True)
class Config(BaselineConfig):
    """The baseline for ImageNet."""

    counterfactuals: PositiveInt = 10_000
    """Counterfactuals of each source that are measured."""
    sources: Some[CounterfactualSource] = ALL_SOURCES
    """What composes them; cgn and skdcgn are left out where there is no whole CGN, but --biggan and --u2net alone."""
    stage: Literal[*STAGES, "all"] = "all"
    """The last stage to run; what it needs of earlier ones is run first where that was not done before."""


_COUNTS = {"smoke": 20, "quick": 500}
DEFAULTS = {
    profile: Config(**{**vars(recipe), "counterfactuals": _COUNTS.get(profile, Config.counterfactuals)})
    for profile, recipe in BASELINE.items()
}


def plan(config: Config) -> Plan:
    """Return the cases of the stages up to the last one: for counterfactuals one for each source."""
    parts = config.parts.load()
    stages = baseline(config, parts, STAGES if config.stage == "all" else (config.stage,))
    if config.stage == "tinygan" and "tinygan" not in stages:
        raise InputError("--tinygan-checkpoint takes the place of stage tinygan: give another --stage.")
    cases = list(stages.values())
    if config.stage == "tinygan":
        cases = [stages["tinygan"]]
    elif config.stage != "cgn":
        known = config.sources if parts.teacher is not None else ("baseline",)
        cases += [counterfactuals(config, parts, source, stages["cgn"]) for source in known]
    return Plan(cases, ("kind", "source"), runtime=config.runtime)


def counterfactuals(config: Config, parts: "Parts", source: CounterfactualSource, cgn: Case) -> Case:
    """Return the case that measures the counterfactuals of a source."""
    from skdcgn.recipes.baseline_cgn_tinygan import make_counterfactuals

    needs = {}
    if source == "baseline":
        needs = {"source": cgn}
    elif source == "skdcgn":
        needs = {"source": skdcgn_of(config.profile, config.teacher, config.runtime)}
    inputs = {"reference": parts.reference.sha256}
    if parts.teacher is not None:
        inputs["teacher"] = parts.teacher.sha256
    scope = ("stage", "sources")
    return baseline_study(config, DEFAULTS[config.profile], parts, scope).case(
        "counterfactuals",
        f"counterfactuals {source}",
        derive(CounterfactualRunConfig, config, source=source, count=config.counterfactuals),
        make_counterfactuals,
        needs,
        inputs,
        seconds=5 + 0.02 * config.counterfactuals,
        source=source,
        paper="Sec. 4.2, Fig. 10",
    )


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
