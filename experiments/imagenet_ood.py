"""Do counterfactuals make an ImageNet classifier robust? CGN's invariant ensemble (announced in Sec. 1, not reported).

    python experiments/imagenet_ood.py                          the miniature at 32x32: a few minutes
    python experiments/imagenet_ood.py --profile full --imagenet ILSVRC --in9 bg_challenge --cue-conflict stimuli
        --backbone resnet50-0676ba61.pth
    python experiments/imagenet_ood.py --sources original cgn   without the students and the baseline

The ensemble learns from real images alone (original), or beside counterfactuals of the CGN, of SKDCGN, of the baseline.
It is tested on ImageNet-val, on IN-9 (background gap) and on cue-conflict stimuli (shape bias), each in its authors'
folders. Generators that are missing are trained first, as imagenet_kd and baseline_cgn_tinygan do.
"""

from dataclasses import replace
from itertools import product

from experiments.cases import Study
from experiments.cases_imagenet import baseline, checked_teacher, skdcgn_of
from experiments.presets_imagenet import BASELINE, DISTILLATION
from skdcgn.commands.experiments import experiment
from skdcgn.configs.classifiers import EnsembleConfig
from skdcgn.recipes.configs.imagenet_ood import EnsembleRunConfig, EnsemblesConfig, EnsembleSource
from skdcgn.runs.identity import derive, overrides
from skdcgn.runs.plan import Case, Plan

DESCRIPTION = """CGN's invariant ensemble, trained on real images and counterfactuals of one source.
`final/top1_*`, `final/top5_*`: ImageNet-val; `final/in9_*`, `final/bg_gap_*`: IN-9, mixed_same less mixed_rand;
`final/shape_bias_*`: cue conflict. Where `stand_in` is true, teacher and images are the miniature's."""

# A backbone that starts from nothing uses most of its few steps for the counterfactuals: shapes are learned last.
_MINIATURE = EnsembleConfig(
    backbone="small",
    pretrained=False,
    resolution=32,
    epochs=6,
    batch_size=16,
    counterfactual_ratio=6.0,
    optimizer="adamw",
    learning_rate=1e-2,
    schedule="cosine",
    weight_decay=0.05,
    random_crops=False,
    counterfactuals=3000,
    workers=0,
)
DEFAULTS = {
    "smoke": EnsemblesConfig("smoke", replace(_MINIATURE, epochs=1, counterfactuals=60), 1, images=8, seeds=(0,)),
    "quick": EnsemblesConfig("quick", _MINIATURE, 2),
    "full": EnsemblesConfig("full", EnsembleConfig(), 15),
    "paper": EnsemblesConfig("paper", EnsembleConfig(precision="fp32"), 45),
}


def plan(config: EnsemblesConfig) -> Plan:
    """Return a case for each source and seed; those need the cases of what draws their counterfactuals."""
    from skdcgn.recipes.imagenet_ood import make_ensemble, run_inputs
    from skdcgn.recipes.sources import teacher_tags

    students = replace(DISTILLATION[config.profile], teacher=config.teacher)
    teacher = checked_teacher(students)
    inputs, reason = run_inputs(config, teacher)
    scope = ("sources", "seeds", "teacher", "imagenet", "in9", "cue_conflict", "backbone")
    tags = {
        "dataset": students.dataset,
        **teacher_tags(teacher),
        "overrides": overrides(config, DEFAULTS[config.profile], scope),
        "images": reason,
        "paper": "Sec. 1",
    }
    study = Study("imagenet_ood", DESCRIPTION, tags, inputs=inputs)
    made = {source: made_by(config, source) for source in config.sources}
    cases = [
        study.case(
            "ensemble",
            f"{source} seed {seed}",
            derive(EnsembleRunConfig, config, teacher=students.teacher_config, source=source, seed=seed),
            make_ensemble,
            {"source": made[source]} if made[source] else {},
            seconds=5 + config.training.epochs * (900 if config.training.backbone == "resnet50" else 1),
            source=source,
            seed=seed,
        )
        for source, seed in product(config.sources, config.seeds)
    ]
    return Plan(cases, ("source", "seed"), runtime=config.runtime)


def made_by(config: EnsemblesConfig, source: EnsembleSource) -> Case | None:
    """Return the case that makes what draws a source's counterfactuals, if it is trained here."""
    if source == "skdcgn":
        return skdcgn_of(config.profile, config.teacher, config.runtime)
    if source == "baseline":
        own = replace(
            BASELINE[config.profile], teacher=config.teacher, real_images=config.imagenet, runtime=config.runtime
        )
        return baseline(own, own.parts.load())["cgn"]
    return None


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
