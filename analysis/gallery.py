"""Every figure and every table of numbers of the report, by name: what the notebooks show and `export` keeps."""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from analysis import (
    ablations,
    baseline,
    figures,
    imagenet,
    imagenet_ood,
    report,
    robustness,
    runs,
    shape_study,
    sweeps,
    tables,
    teachers,
)
from analysis.tables import Listing, Table
from analysis.verdicts import Evidence
from skdcgn.mechanisms import Mechanism
from skdcgn.tracking import Store

Draw = Callable[[Store], Mapping[str, Figure]]
"""Takes a store; returns figures by file name, gaps where there is no run."""


def _of(experiment: str, draw: Callable[[Store, str], Figure | Mapping[str, Figure]], name: str, *names: str) -> Draw:
    """Name what a function draws of the data set that an experiment was run on."""

    def named(store: Store) -> Mapping[str, Figure]:
        drawn = draw(store, runs.main_dataset(store, experiment))
        figures = [drawn] if isinstance(drawn, Figure) else drawn.values()
        return dict(zip((name, *names), figures, strict=True))

    return named


def _own_cgns(store: Store) -> dict[str, Figure]:
    drawn = teachers.figure(store, runs.main_dataset(store, teachers.EXPERIMENTS["ours"]))
    return {"our_teacher": drawn["teacher"], "our_baseline": drawn["baseline"]}


def _over_training(number: int, variant: str) -> Callable[[Store, str], Figure]:
    return lambda store, dataset: ablations.figure_over_training(store, number, variant, dataset)


def _curves(experiment: str) -> Draw:
    names = {mechanism: f"{experiment}_{mechanism}" for mechanism in Mechanism}
    return lambda store: {
        name: ablations.curves(store, experiment, mechanism, runs.main_dataset(store, experiment))
        for mechanism, name in names.items()
    }


def _search(experiment: str, response: Callable[[Store], Figure]) -> Draw:
    return lambda store: {
        f"{experiment}_history": sweeps.history(store, experiment),
        f"{experiment}_importance": sweeps.importance(store, experiment),
        f"{experiment}_response": response(store),
        f"{experiment}_fresh_seeds": sweeps.fresh_seeds(store, experiment),
    }


_MECHANISMS = [mechanism.value for mechanism in Mechanism]

FIGURES: Mapping[str, Draw] = {
    "2": imagenet.figure_2,
    "3": _of(shape_study.EXPERIMENT, shape_study.figure_3, "figure_3"),
    "6": imagenet.figure_6,
    "6 on MNIST": _of(runs.MNIST_KD, figures.figure_6_mnist, "figure_6_mnist"),
    "7": _of(runs.MNIST_KD, figures.figure_7, "figure_7a_shape", "figure_7b_texture", "figure_7c_background"),
    "8": lambda store: {f"figure_8{letter}": figure for letter, figure in baseline.figure_8(store).items()},
    "9": lambda store: {"figure_9": baseline.figure_9(store)},
    "10": lambda store: {"figure_10": baseline.figure_10(store)},
    "11": _of(runs.MNIST_KD, figures.figure_11, "figure_11"),
    "12": _of(ablations.ABLATION, _over_training(12, "cross_entropy"), "figure_12_cross_entropy"),
    "13": _of(ablations.ABLATION, _over_training(13, "d1_kl_layers"), "figure_13_d1"),
    "14": _of(ablations.ABLATION, ablations.figure_14, "figure_14_d2"),
    "15": imagenet.figure_15,
    "15 on MNIST": _of(ablations.CONVERGENCE, ablations.figure_15_mnist, "figure_15_mnist"),
    "16": _of(ablations.ABLATION, _over_training(16, "d3_mse"), "figure_16_d3"),
    "transparency": _of(shape_study.EXPERIMENT, shape_study.transparency_curve, "transparency_curve"),
    "robustness": _of(robustness.EXPERIMENT, robustness.figure, "robustness_by_source"),
    "robustness by class": _of(robustness.EXPERIMENT, robustness.class_figure, "robustness_by_class"),
    "training images": _of(robustness.EXPERIMENT, robustness.image_sheet, "training_images"),
    "ImageNet robustness": lambda store: {"imagenet_ood": imagenet_ood.figure(store)},
    "teachers": _own_cgns,
    "learning curves": _of(runs.MNIST_KD, figures.learning_curves, *(f"learning_curve_{m}" for m in _MECHANISMS)),
    "noise pairing": _of(ablations.PAIRING, ablations.pairing_figure, "noise_pairing"),
    "objectives": _curves(ablations.ABLATION),
    "convergence": _curves(ablations.CONVERGENCE),
    "sweep of lambdas": _search("sweep_lambdas", sweeps.lambda_response),
    "sweep of KL": _search("sweep_kl", sweeps.kl_response),
}
"""The paper's figures by their numbers, then the studies'."""

TABLES: Mapping[str, Callable[[Store], Table | Listing]] = {
    "claims": lambda store: report.claims(Evidence(store)),
    "table_1": lambda store: shape_study.table_1(store, runs.main_dataset(store, shape_study.EXPERIMENT)),
    "table_1_in_words": lambda store: shape_study.verdicts(store, runs.main_dataset(store, shape_study.EXPERIMENT)),
    "robustness": lambda store: robustness.table(store, runs.main_dataset(store, robustness.EXPERIMENT)),
    "teachers": lambda store: teachers.table(store, runs.main_dataset(store, teachers.EXPERIMENTS["ours"])),
    "compression": lambda store: tables.compression(store, runs.main_dataset(store)),
    "convergence": lambda store: tables.convergence(store, runs.main_dataset(store, ablations.CONVERGENCE)),
    "baseline": baseline.comparison,
    "imagenet_robustness": imagenet_ood.table,
    "imagenet_fidelity": imagenet_ood.fidelity,
    "ablation_verdicts": lambda store: tables.ablation_verdicts(store, runs.main_dataset(store, ablations.ABLATION)),
}
"""The tables drawn from runs, by file name."""
