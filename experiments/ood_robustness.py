"""Out-of-distribution robustness of classifiers trained on counterfactuals (announced in Sec. 1, never reported).

    python experiments/ood_robustness.py                                      double-colored MNIST, a few minutes
    python experiments/ood_robustness.py --datasets colored wildlife          the other variants
    python experiments/ood_robustness.py --datasets digits                    no network, no data
    python experiments/ood_robustness.py --sources cgn skdcgn_published       students of the published size (hours)
    python experiments/ood_robustness.py --profile full                       10^5 images, five seeds, all variants

The same classifier learns from as many images of each source: the original (biased) ones, a conditional GAN's, and
counterfactuals of the CGN, of SKDCGN (TinyGAN students, and slim ones) and of the baseline. It is tested where colors
or textures are random. Generators that are missing are trained first: students are those of mnist_kd.py, the baseline
is baseline_mnist.py's.
"""

from dataclasses import replace
from itertools import product

from experiments.cases import Study, generator_case, teacher_of
from skdcgn.commands.experiments import experiment
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.counterfactuals import GANConfig
from skdcgn.recipes.configs.ood_robustness import ALL_IMAGES, ClassifierRunConfig, RobustnessConfig
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.runs.identity import derive, overrides
from skdcgn.runs.plan import Plan

DESCRIPTION = """Classifiers trained on images of one source, tested where colors or textures are random.
`final/valid_accuracy`: last 10,000 of MNIST-train, the CGN authors' test set; `final/test_accuracy`: MNIST-test;
`final/*_drifted_accuracy`: with the wandering colors of the CGN authors' loader. Feeds the **robustness table**."""

_NATIVE = ("original", "gan", "cgn", "skdcgn", "baseline")
_FULL = RobustnessConfig("full", ("colored", "double_colored", "wildlife"), ALL_IMAGES, "full")
_QUICK = replace(_FULL, profile="quick", datasets=("double_colored",), sources=_NATIVE, generators=1, students="quick")
DEFAULTS = {
    "smoke": replace(
        _QUICK,
        profile="smoke",
        seeds=(0,),
        test_images=500,
        images=200,
        classifier=ClassifierConfig(epochs=1),
        gan=GANConfig(steps=6, batch_size=8),
        students="smoke",
        published_students="smoke",
    ),
    "quick": replace(
        _QUICK,
        sources=(*_NATIVE, "skdcgn_slim"),
        seeds=(0, 1, 2),
        images=8000,
        per_mask=2,  # at so few images, more of one mask are too few masks
        classifier=ClassifierConfig(epochs=4, batch_size=32),
        gan=GANConfig(steps=600),
    ),
    "full": _FULL,
    "paper": replace(_FULL, profile="paper", classifier=ClassifierConfig(precision="fp32")),
}


def plan(config: RobustnessConfig) -> Plan:
    """Return a case for each data set, source and seed; those need the cases of their generators."""
    from skdcgn.data.mnist import check_available
    from skdcgn.recipes.ood_robustness import GENERATOR, make_classifier

    for dataset in config.datasets:
        check_available(dataset)
    changed = overrides(config, DEFAULTS[config.profile], ("datasets", "sources", "seeds"))
    study = Study("ood_robustness", DESCRIPTION, {"overrides": changed, "paper": "Sec. 1"})
    cases = []
    for dataset, source, (position, seed) in product(config.datasets, config.sources, enumerate(config.seeds)):
        teacher_config = MNISTTeacherConfig(dataset)
        teacher = teacher_of(teacher_config, config.students, config.runtime)
        distilled = source == "cgn" or source.startswith("skdcgn")
        tags = teacher.tags if distilled else {"teacher": "none", "teacher_sha256": "none", "stand_in": False}
        generator = generator_case(study, config, dataset, source, config.generator_seed(source, position))
        generators = 1 if source == "skdcgn_published" else config.generators
        own = {"teacher": teacher_config, "source": source, "seed": seed, "generators": generators}
        cases.append(
            study.case(
                "classifier",
                f"{dataset} {source} seed {seed}",
                derive(ClassifierRunConfig, config, **own),
                make_classifier,
                {**(teacher.needs if source == "cgn" else {}), **({GENERATOR: generator} if generator else {})},
                teacher.inputs if source == "cgn" else {},
                seconds=10 + 4.3e-4 * config.images * config.classifier.epochs,
                **{"dataset": dataset, "source": source, "seed": seed, **tags},
            )
        )
    shown = ("train_accuracy", "valid_accuracy", "test_accuracy")
    return Plan(cases, ("dataset", "source", "seed"), shown, config.runtime)


if __name__ == "__main__":
    experiment.main(DEFAULTS, plan, __doc__)
