"""Every figure and every table of numbers of the report, by name: what the notebooks show and `export` keeps."""

from collections.abc import Callable, Mapping
from functools import partial

from matplotlib.figure import Figure

from analysis import (
    ablation_losses,
    baseline_cgn_tinygan,
    imagenet_kd,
    imagenet_ood,
    kl_convergence,
    mnist_kd,
    noise_pairing,
    ood_robustness,
    sweep_kl,
    sweep_lambdas,
    table1_shape_im,
    train_cgn_mnist,
)
from analysis.frame.table import Listing, Table
from analysis.frame.view import View
from analysis.report import claims

Draw = Callable[[View], Mapping[str, Figure]]
"""Draws the runs of a view: figures by file name, gaps where there is no run."""


def _named(name: str, draw: Callable[..., Figure], *arguments: object) -> Draw:
    return lambda view: {name: draw(view, *arguments)}


FIGURES: Mapping[str, Draw] = {
    "2": imagenet_kd.figure_2,
    "3": _named("figure_3", table1_shape_im.figure_3),
    "6": imagenet_kd.figure_6,
    "6 on MNIST": _named("figure_6_mnist", mnist_kd.figure_6_mnist),
    "7": mnist_kd.figure_7,
    "8": baseline_cgn_tinygan.figure_8,
    "9": _named("figure_9", baseline_cgn_tinygan.figure_9),
    "10": _named("figure_10", baseline_cgn_tinygan.figure_10),
    "11": _named("figure_11", mnist_kd.figure_11),
    "12": _named("figure_12_cross_entropy", ablation_losses.figure_over_training, 12, "cross_entropy"),
    "13": _named("figure_13_d1", ablation_losses.figure_over_training, 13, "d1_kl_layers"),
    "14": _named("figure_14_d2", ablation_losses.figure_14),
    "15": imagenet_kd.figure_15,
    "15 on MNIST": _named("figure_15_mnist", kl_convergence.figure_15_mnist),
    "16": _named("figure_16_d3", ablation_losses.figure_over_training, 16, "d3_mse"),
    "transparency": _named("transparency_curve", table1_shape_im.transparency_curve),
    "robustness": _named("robustness_by_source", ood_robustness.figure),
    "robustness by class": _named("robustness_by_class", ood_robustness.class_figure),
    "training images": _named("training_images", ood_robustness.image_sheet),
    "ImageNet robustness": _named("imagenet_ood", imagenet_ood.figure),
    "teachers": train_cgn_mnist.figure,
    "learning curves": mnist_kd.learning_curves,
    "noise pairing": _named("noise_pairing", noise_pairing.pairing_figure),
    "objectives": partial(ablation_losses.curves, experiment="ablation_losses"),
    "convergence": partial(ablation_losses.curves, experiment="kl_convergence"),
    "sweep of lambdas": sweep_lambdas.figures,
    "sweep of KL": sweep_kl.figures,
}
"""The paper's figures by their numbers, then the studies'."""

TABLES: Mapping[str, Callable[[View], Table | Listing]] = {
    "claims": claims.claims,
    "table_1": table1_shape_im.table_1,
    "table_1_in_words": table1_shape_im.verdicts,
    "robustness": ood_robustness.table,
    "teachers": train_cgn_mnist.table,
    "compression": mnist_kd.compression,
    "convergence": kl_convergence.convergence,
    "baseline": baseline_cgn_tinygan.comparison,
    "imagenet_robustness": imagenet_ood.table,
    "imagenet_fidelity": imagenet_ood.fidelity,
    "ablation_verdicts": ablation_losses.ablation_verdicts,
}
"""The tables drawn from runs, by file name."""
