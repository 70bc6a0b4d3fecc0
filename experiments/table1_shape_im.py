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

from experiments.cases import teacher_of
from experiments.presets import PROFILES
from skdcgn.cgn.adversarial import PUBLISHED, CGNTrainingConfig
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.commands import experiment
from skdcgn.recipes.sources import MNISTTeacherConfig
from skdcgn.recipes.table1_shape_im import CGN, ShapeStudyConfig, make_modified_cgn, make_reading
from skdcgn.runs.identity import overrides
from skdcgn.runs.lifecycle import Case, Plan

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
    "full": dict(interventions=_ALL, when=_EVER, init=("scratch",), strengths=(0.25, 0.5, 0.9)),
    "paper": dict(interventions=_ALL, when=("training", "both", "sampling"), init=("scratch",), strengths=()),
}
_CGNS = {
    "smoke": (CGNTrainingConfig(steps=4), CGNTrainingConfig(steps=3, texture_warmup=0)),
    # Quicker than from new weights, at a high learning rate: far enough to tell what each modification does.
    "quick": (CGNTrainingConfig(steps=3000), CGNTrainingConfig(steps=300, lr=5e-4, texture_warmup=0)),
    "full": (CGNTrainingConfig(steps=10_000), CGNTrainingConfig(steps=3000, texture_warmup=0)),
    "paper": (replace(PUBLISHED, steps=46_000), replace(PUBLISHED, steps=46_000)),
}
_QUICK_CLASSIFIER = ClassifierConfig(epochs=10, batch_size=32, gamma=0.85)
_CLASSIFIERS = {
    "smoke": dict(images=60, per_mask=2, classifier=ClassifierConfig(epochs=1), unpermuted_epochs=1, test_images=50),
    "quick": dict(images=2700, per_mask=2, classifier=_QUICK_CLASSIFIER, unpermuted_epochs=2, test_images=1000),
    "full": dict(images=20_000, per_mask=4, classifier=ClassifierConfig(epochs=8), unpermuted_epochs=2),
    "paper": dict(images=100_000, per_mask=10, classifier=ClassifierConfig(precision="fp32"), unpermuted_epochs=10),
}
_TWO_WAY = {"smoke": (30, 1), "quick": (300, 3), "full": (5000, 3), "paper": (30_000, 10)}
DEFAULTS = {
    profile: ShapeStudyConfig(
        profile,
        strengths_when={"full": _EVER, "paper": ()}.get(profile, ("sampling",)),
        training=_CGNS[profile][0],
        finetune=_CGNS[profile][1],
        two_way_images=_TWO_WAY[profile][0],
        two_way_epochs=_TWO_WAY[profile][1],
        **_SCALES[profile],
        **_CLASSIFIERS[profile],
    )
    for profile in PROFILES
}


def plan(config: ShapeStudyConfig) -> Plan:
    """Return a case for each reading and seed; those of a CGN that is trained here need its case."""
    teacher = teacher_of(MNISTTeacherConfig(config.dataset, config.teacher), config.profile, config.runtime)
    scope = ("interventions", "when", "init", "labels", "strengths", "strengths_when", "seeds", "dataset", "teacher")
    changed = overrides(config, DEFAULTS[config.profile], scope)
    paper = {"overrides": changed, "paper": "Sec. 4.5, Table 1"}
    common = {"profile": config.profile, "dataset": config.dataset, **teacher.tags, **paper}
    cases, cgns = [], dict[tuple, Case]()
    for seed, reading in product(config.seeds, config.readings()):
        cgn, key = config.cgn(reading, seed), (reading.cgn, seed)
        if cgn is not None and key not in cgns:
            told = {"intervention": cgn.training.intervention, "init": cgn.init}
            strength = "" if cgn.training.intervention_strength is None else f" {cgn.training.intervention_strength:g}"
            name = f"CGN ({cgn.init}), {cgn.training.intervention}{strength}, seed {seed}"
            tags = {"kind": "cgn", **common, **told, "seed": seed}
            seconds = 0.03 * cgn.training.steps
            cgns[key] = Case(EXPERIMENT, name, cgn, make_modified_cgn, tags, teacher.needs, teacher.inputs, seconds)
        own = config.reading(reading, seed)
        trained = cgns.get(key)
        tags = {"kind": "classifier", **common, **reading.tags, "seed": seed}
        tags["source"] = trained.name if trained else teacher.tags["teacher"]
        needs = {CGN: trained} if trained else teacher.needs
        inputs, name = {} if trained else teacher.inputs, f"{reading}, seed {seed}"
        seconds = 2 + 4.5e-4 * (config.images * own.classifier.epochs + 2 * own.two_way_images * own.two_way.epochs)
        cases.append(Case(EXPERIMENT, name, own, make_reading, tags, needs, inputs, seconds, description=DESCRIPTION))
    shown = ("train_accuracy", "valid_accuracy", "test_accuracy", "two_way_accuracy")
    return Plan(cases, ("intervention", "strength", "when", "init", "labels", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
