"""Every figure and every table of numbers of the report, by name: what the notebooks show and `export` keeps."""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from analysis import ablation_losses as ablation_losses_figures
from analysis import baseline_cgn_tinygan as baseline_cgn_tinygan_figures
from analysis import imagenet_kd as imagenet_kd_figures
from analysis import imagenet_ood, sweeps
from analysis import kl_convergence as kl_convergence_figures
from analysis import mnist_kd as mnist_kd_figures
from analysis import noise_pairing as noise_pairing_figures
from analysis import ood_robustness as ood_robustness_figures
from analysis import table1_shape_im as table1_shape_im_figures
from analysis import train_cgn_mnist as train_cgn_mnist_figures
from analysis.frame import view
from analysis.frame.table import Listing, Table
from analysis.report import claims
from analysis.report.verdicts import Evidence
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store

Draw = Callable[[Store], Mapping[str, Figure]]
"""Takes a store; returns figures by file name, gaps where there is no run."""


def _of(experiment: str, draw: Callable[[Store, str], Figure | Mapping[str, Figure]], name: str, *names: str) -> Draw:
    """Name what a function draws of the data set that an experiment was run on."""

    def named(store: Store) -> Mapping[str, Figure]:
        drawn = draw(store, view.main_dataset(store, experiment))
        mnist_kd_figures = [drawn] if isinstance(drawn, Figure) else drawn.values()
        return dict(zip((name, *names), mnist_kd_figures, strict=True))

    return named


def _own_cgns(store: Store) -> dict[str, Figure]:
    drawn = train_cgn_mnist_figures.figure(store, view.main_dataset(store, train_cgn_mnist_figures.EXPERIMENTS["ours"]))
    return {"our_teacher": drawn["teacher"], "our_baseline": drawn["baseline"]}


def _over_training(number: int, variant: str) -> Callable[[Store, str], Figure]:
    return lambda store, dataset: ablation_losses_figures.figure_over_training(store, number, variant, dataset)


def _curves(experiment: str) -> Draw:
    names = {mechanism: f"{experiment}_{mechanism}" for mechanism in Mechanism}
    return lambda store: {
        name: ablation_losses_figures.curves(store, experiment, mechanism, view.main_dataset(store, experiment))
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
    "2": imagenet_kd_figures.figure_2,
    "3": _of(table1_shape_im_figures.EXPERIMENT, table1_shape_im_figures.figure_3, "figure_3"),
    "6": imagenet_kd_figures.figure_6,
    "6 on MNIST": _of(view.MNIST_KD, mnist_kd_figures.figure_6_mnist, "figure_6_mnist"),
    "7": _of(view.MNIST_KD, mnist_kd_figures.figure_7, "figure_7a_shape", "figure_7b_texture", "figure_7c_background"),
    "8": lambda store: {
        f"figure_8{letter}": figure for letter, figure in baseline_cgn_tinygan_figures.figure_8(store).items()
    },
    "9": lambda store: {"figure_9": baseline_cgn_tinygan_figures.figure_9(store)},
    "10": lambda store: {"figure_10": baseline_cgn_tinygan_figures.figure_10(store)},
    "11": _of(view.MNIST_KD, mnist_kd_figures.figure_11, "figure_11"),
    "12": _of(ablation_losses_figures.ABLATION, _over_training(12, "cross_entropy"), "figure_12_cross_entropy"),
    "13": _of(ablation_losses_figures.ABLATION, _over_training(13, "d1_kl_layers"), "figure_13_d1"),
    "14": _of(ablation_losses_figures.ABLATION, ablation_losses_figures.figure_14, "figure_14_d2"),
    "15": imagenet_kd_figures.figure_15,
    "15 on MNIST": _of(ablation_losses_figures.CONVERGENCE, kl_convergence_figures.figure_15_mnist, "figure_15_mnist"),
    "16": _of(ablation_losses_figures.ABLATION, _over_training(16, "d3_mse"), "figure_16_d3"),
    "transparency": _of(
        table1_shape_im_figures.EXPERIMENT, table1_shape_im_figures.transparency_curve, "transparency_curve"
    ),
    "robustness": _of(ood_robustness_figures.EXPERIMENT, ood_robustness_figures.figure, "robustness_by_source"),
    "robustness by class": _of(
        ood_robustness_figures.EXPERIMENT, ood_robustness_figures.class_figure, "robustness_by_class"
    ),
    "training images": _of(ood_robustness_figures.EXPERIMENT, ood_robustness_figures.image_sheet, "training_images"),
    "ImageNet robustness": lambda store: {"imagenet_ood": imagenet_ood.figure(store)},
    "teachers": _own_cgns,
    "learning curves": _of(
        view.MNIST_KD, mnist_kd_figures.learning_curves, *(f"learning_curve_{m}" for m in _MECHANISMS)
    ),
    "noise pairing": _of(ablation_losses_figures.PAIRING, noise_pairing_figures.pairing_figure, "noise_pairing"),
    "objectives": _curves(ablation_losses_figures.ABLATION),
    "convergence": _curves(ablation_losses_figures.CONVERGENCE),
    "sweep of lambdas": _search("sweep_lambdas", sweeps.lambda_response),
    "sweep of KL": _search("sweep_kl", sweeps.kl_response),
}
"""The paper's figures by their numbers, then the studies'."""

TABLES: Mapping[str, Callable[[Store], Table | Listing]] = {
    "claims": lambda store: claims.claims(Evidence(store)),
    "table_1": lambda store: table1_shape_im_figures.table_1(
        store, view.main_dataset(store, table1_shape_im_figures.EXPERIMENT)
    ),
    "table_1_in_words": lambda store: table1_shape_im_figures.verdicts(
        store, view.main_dataset(store, table1_shape_im_figures.EXPERIMENT)
    ),
    "robustness": lambda store: ood_robustness_figures.table(
        store, view.main_dataset(store, ood_robustness_figures.EXPERIMENT)
    ),
    "teachers": lambda store: train_cgn_mnist_figures.table(
        store, view.main_dataset(store, train_cgn_mnist_figures.EXPERIMENTS["ours"])
    ),
    "compression": lambda store: mnist_kd_figures.compression(store, view.main_dataset(store)),
    "convergence": lambda store: kl_convergence_figures.convergence(
        store, view.main_dataset(store, ablation_losses_figures.CONVERGENCE)
    ),
    "baseline": baseline_cgn_tinygan_figures.comparison,
    "imagenet_robustness": imagenet_ood.table,
    "imagenet_fidelity": imagenet_ood.fidelity,
    "ablation_verdicts": lambda store: ablation_losses_figures.ablation_verdicts(
        store, view.main_dataset(store, ablation_losses_figures.ABLATION)
    ),
}
"""The tables drawn from runs, by file name."""
