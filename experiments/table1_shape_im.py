"""Train classifiers on counterfactuals of modified shape masks (paper Sec. 4.5, Table 1, Fig. 3; claim of Sec. 4.4).

    python experiments/table1_shape_im.py                                        a first look, minutes
    python experiments/table1_shape_im.py --profile full                         CGNs trained from scratch: hours
    python experiments/table1_shape_im.py --when training --init scratch         one reading of the paper
    python experiments/table1_shape_im.py --when sampling --strengths 0.25 0.5 0.9      transparency alone
    python experiments/table1_shape_im.py --dataset digits                       no network, no data

Masks are modified while the CGN is trained, while it is sampled, or both; texture and background have permuted labels
or the digit's own: the paper leaves both open. Each CGN is trained once, whatever is drawn from it afterwards.
"""

from dataclasses import replace
from itertools import product

from experiments.cases import Study, style_inputs, teacher_of
from experiments.presets import PROFILES
from skdcgn.commands.experiments import experiment
from skdcgn.configs.cgn import PUBLISHED, CGNTrainingConfig
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.recipes.configs.table1_shape_im import ModifiedCGNConfig, ShapeStudyConfig
from skdcgn.runs.identity import overrides
from skdcgn.runs.plan import Case, Plan

EXPERIMENT = "table1_shape_im"
DESCRIPTION = """Classifiers trained on counterfactuals with modified masks. `final/valid_accuracy`: of digits, on the
last 10,000 of MNIST-train, the original's test set; `final/test_accuracy`: on MNIST-test; `final/two_way_*`: of real
and counterfactual images, the task of the caption. Feeds **Table 1**, **Figure 3** and the curve over transparency."""

_PAPER = ("none", "noise", "rotation", "transparency")
_ALL = (*_PAPER, "rotation_transparency")
_EVER = ("sampling", "training", "both")
_SCALES = {
    "smoke": dict(interventions=("none", "noise"), when=_EVER[:2], init=("pretrained",), strengths=(0.5,), seeds=(0,)),
    "quick": dict(interventions=_PAPER, when=_EVER[:2], init=("pretrained",), strengths=(0.5,)),
    "full": dict(interventions=_ALL, when=_EVER, init=("scratch",), strengths=(0.25, 0.5, 0.9), strengths_when=_EVER),
    "paper": dict(
        interventions=_ALL, when=("training", "both", "sampling"), init=("scratch",), strengths=(), strengths_when=()
    ),
}
_CGNS = {
    "smoke": dict(training=CGNTrainingConfig(steps=4), finetune=CGNTrainingConfig(steps=3, texture_warmup=0)),
    # Quicker than from new weights, at a high learning rate: far enough to tell what each modification does.
    "quick": dict(
        training=CGNTrainingConfig(steps=3000), finetune=CGNTrainingConfig(steps=300, lr=5e-4, texture_warmup=0)
    ),
    "full": dict(training=CGNTrainingConfig(steps=10_000), finetune=CGNTrainingConfig(steps=3000, texture_warmup=0)),
    "paper": dict(training=replace(PUBLISHED, steps=46_000), finetune=replace(PUBLISHED, steps=46_000)),
}
_SMOKE_CLASSIFIER = ClassifierConfig(epochs=1, batch_size=60)
_QUICK_CLASSIFIER = ClassifierConfig(epochs=10, batch_size=32, gamma=0.85)
_CLASSIFIERS = {
    "smoke": dict(images=60, per_mask=2, classifier=_SMOKE_CLASSIFIER, unpermuted_epochs=1, test_images=50),
    "quick": dict(images=2700, per_mask=2, classifier=_QUICK_CLASSIFIER, unpermuted_epochs=2, test_images=1000),
    "full": dict(images=20_000, per_mask=4, classifier=ClassifierConfig(epochs=8), unpermuted_epochs=2),
    "paper": dict(images=100_000, per_mask=10, classifier=ClassifierConfig(precision="fp32"), unpermuted_epochs=10),
}
_TWO_WAY = {"smoke": (30, 1), "quick": (300, 3), "full": (5000, 3), "paper": (30_000, 10)}
DEFAULTS = {
    profile: ShapeStudyConfig(
        profile,
        two_way_images=_TWO_WAY[profile][0],
        two_way_epochs=_TWO_WAY[profile][1],
        **{**_SCALES[profile], **_CGNS[profile], **_CLASSIFIERS[profile]},
    )
    for profile in PROFILES
}


def plan(config: ShapeStudyConfig) -> Plan:
    """Return a case for each reading and seed; those of a CGN that is trained here need its case."""
    from skdcgn.data.mnist import check_available
    from skdcgn.recipes.table1_shape_im import CGN, make_modified_cgn, make_reading

    check_available(config.dataset)
    scope = ("interventions", "when", "init", "labels", "strengths", "strengths_when", "seeds", "dataset", "teacher")
    changed = overrides(config, DEFAULTS[config.profile], scope)
    tags = {"dataset": config.dataset, "overrides": changed, "paper": "Sec. 4.5, Table 1"}
    teacher = teacher_of(config.teacher_config, config.profile, config.runtime)
    study = Study(EXPERIMENT, DESCRIPTION, tags).with_teacher(teacher)
    cases, cgns = [], dict[ModifiedCGNConfig, Case]()
    for seed, reading in product(config.seeds, config.readings()):
        cgn, source, told = config.cgn(reading, seed), teacher.tags["teacher"], study
        if cgn is not None:
            name, seconds = f"{cgn}, seed {seed}", 0.03 * cgn.training.steps
            inputs = style_inputs(cgn.training.perceptual)
            made = study.case("cgn", name, cgn, make_modified_cgn, None, inputs, seconds, **cgn.tags, seed=seed)
            trained = cgns.setdefault(cgn, made)
            source, told = trained.name, replace(study, needs={CGN: trained}, inputs={})
        own = config.reading(reading, seed)
        images = own.images * own.classifier.epochs + 2 * own.two_way_images * own.two_way.epochs
        tags = {**reading.tags, "seed": seed, "source": source}
        name = f"{reading}, seed {seed}"
        cases.append(told.case("classifier", name, own, make_reading, seconds=2 + 4.5e-4 * images, **tags))
    shown = ("train_accuracy", "valid_accuracy", "test_accuracy", "two_way_accuracy")
    return Plan(cases, ("intervention", "strength", "when", "init", "labels", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
