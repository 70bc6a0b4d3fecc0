"""The runs of CGN's invariant ensemble: trained on real and counterfactual images, tested for what its heads look at.

The measures are those of CGN's ImageNet experiments: accuracy on ImageNet-val; on IN-9, accuracy with backgrounds of
the same and of random classes, whose difference is the background gap (BG gap); and on cue-conflict stimuli the shape
bias, the share of shape among the decisions for shape or texture.
"""

from pathlib import Path

from safetensors.torch import save_file

from skdcgn.classifiers.ensemble import EnsembleTrainer, draw_counterfactuals
from skdcgn.classifiers.ensemble_measures import imagenet_accuracy, measure
from skdcgn.classifiers.networks import RESNET50_ADDRESS, invariant_ensemble
from skdcgn.data import miniature
from skdcgn.data.imagenet import RobustnessSets, robustness_sets
from skdcgn.errors import InputError
from skdcgn.files import sha256
from skdcgn.mechanisms import Source
from skdcgn.randomness import seeded
from skdcgn.recipes.baseline_cgn_tinygan import load_counterfactual_source
from skdcgn.recipes.configs.imagenet_ood import EnsembleRecipe, EnsembleRunConfig
from skdcgn.recipes.students import Needs
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runtime import setup


def run_inputs(config: EnsembleRecipe, teacher: Source) -> tuple[dict[str, str], str]:
    """Return what identifies weights and images, and in one line which images they are, without writing any.

    Raises:
        InputError: a path is missing, the images are not of the teacher's classes, or they are fewer than a batch.
    """
    paths = (config.imagenet, config.in9, config.cue_conflict)
    if teacher.stand_in and not any(paths):
        scenery, reason = miniature.scenery(lambda: teacher)
        identity, classes = f"{scenery.name} {scenery.sha256}", scenery.num_classes
        count = config.images * classes
    elif all(paths):
        sets, reason = robustness_sets(*paths), f"pictures: {', '.join(map(str, paths))}"
        identity, classes, count = sets.identity, len(sets.train.classes), len(sets.train)
    else:
        raise InputError(
            "--imagenet, --in9 and --cue-conflict go together: give the folders of all three, or none and "
            "--profile quick, which makes miniature pictures."
        )
    if classes != teacher.num_classes:
        raise InputError(
            f"the images are of {classes} classes, and {teacher.name} has {teacher.num_classes}: give an --imagenet "
            "with all of them."
        )
    if config.training.batch_size > count:
        raise InputError(f"batch_size is {config.training.batch_size}: give no more than the {count} training images.")
    inputs = {"teacher": teacher.sha256, "images": identity}
    if config.backbone is not None:
        if not config.backbone.is_file():
            raise InputError(f"There is no file {config.backbone}: correct --backbone.")
        inputs["backbone"] = sha256(config.backbone)
    elif config.training.pretrained:
        raise InputError(
            f"--backbone is missing: give the file of {RESNET50_ADDRESS}, or start from nothing with "
            "--training.no-pretrained."
        )
    return inputs, reason


def load_sets(config: EnsembleRecipe, teacher: Source, folder: Path) -> RobustnessSets:
    """Return the images; miniature pictures, which go with a miniature teacher, are written to `folder` once."""
    if config.imagenet is not None:
        return robustness_sets(config.imagenet, config.in9, config.cue_conflict)
    scenery, _ = miniature.scenery(lambda: teacher)
    return robustness_sets(*miniature.write_all(folder, scenery, per_class=config.images), miniature.CATEGORIES)


def make_ensemble(run: Run, config: EnsembleRunConfig, needs: Needs) -> None:
    """Train an invariant ensemble and measure what its heads look at.

    Args:
        run: gets the losses, validation accuracies by step, the final metrics of `measure`, and the model itself as
            `ensemble.safetensors`.
        config: see `EnsembleRunConfig`.
        needs: what draws the counterfactuals, if it is trained here, as `source`. The counterfactuals of a source are
            the same for all seeds.
    """
    device, training = setup(config.runtime), config.training
    teacher = config.teacher.load(device)
    sets = load_sets(config, teacher, run.store.folder / "miniature_data")
    counterfactuals = None
    if config.source != "original":
        source = load_counterfactual_source(config.source, teacher, run.store, needs.get("source"), device)
        counterfactuals = draw_counterfactuals(run.store.folder / "counterfactuals", source, training)
    with seeded(config.seed, "ensemble"):
        model = invariant_ensemble(training.backbone, len(sets.train.classes), config.backbone)
    trainer = EnsembleTrainer(model, sets.train, counterfactuals, training, config.seed, device)

    def evaluate(step: int) -> None:
        run.log_metrics("heldout", imagenet_accuracy(model, sets.validation, training, device), step)

    steps = evaluation_steps(trainer.steps, config.evaluations)
    train(trainer, run, config.runtime, evaluate, steps, f"ensemble (seed {config.seed})")
    run.log_metrics("final", measure(model, sets, training, device), trainer.step)
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    run.log_file("ensemble.safetensors", lambda path: save_file(state, path))
