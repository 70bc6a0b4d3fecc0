"""What each claim of the paper predicts about the numbers of runs, and what the runs say to that."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from analysis import ablation_losses, sweeps, table1_shape_im
from analysis.ablation_losses import ABLATION, CONVERGENCE, PAIRING
from analysis.frame import caption
from analysis.frame.judge import Finding, Side, difference, found, judge, paired, resting_on
from analysis.frame.view import View, steps, values, where
from analysis.report import paper
from skdcgn.configs.tinygan import PUBLISHED_IMAGENET, PUBLISHED_MNIST
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism
from skdcgn.tinygan.networks import TinyGANGenerator

Prediction = Callable[[View], Iterable[Finding]]
"""Asks a store; says what its runs say."""

Mechanisms = Iterable[Mechanism]


def _missing(view: View, name: str, experiment: str, mechanism: str | None = None) -> Finding:
    """Say that there is no run to decide a prediction, and what makes one."""
    return Finding(f"{name}: no finished run", None, command=view.command(experiment, mechanism=mechanism))


# --- kinds of predictions


def _prediction(kind: Callable[..., Iterable[Finding]]) -> Callable[..., Prediction]:
    """Make a kind of predictions: called with all but the view, it returns the prediction that asks a view."""
    return lambda *what, **tags: lambda view: kind(view, *what, **tags)


@_prediction
def _levels(
    view: View, name: str, experiment: str, metric: str, side: Side, bound: float, which: Mechanisms, **tags: str
) -> Iterator[Finding]:
    """Predict that a metric of some mechanisms, which `name` may have a place for, lies above or below a bound."""
    for mechanism in which:
        named, shown = name.format(mechanism), view.chosen(experiment, mechanism=mechanism.value, **tags)
        if shown.empty:
            yield _missing(view, named, experiment, mechanism)
        else:
            yield found(named, judge(values(shown, f"final/{metric}"), side, bound), shown)


@_prediction
def _sources(
    view: View,
    name: str,
    experiment: str,
    metric: str,
    side: Side,
    arm: str,
    baseline: str,
    bound: float = 0.0,
    **tags: str,
) -> Iterator[Finding]:
    """Predict how a metric from one source of images stands to that from another, seed by seed."""
    pair = _pair(view, experiment, {**tags, "source": arm}, {**tags, "source": baseline})
    if pair is None:
        yield _missing(view, name, experiment)
    else:
        yield found(name, judge(paired(*pair, f"final/{metric}"), side, bound, "+.3g"), pd.concat(pair))


def _pair(
    view: View, experiment: str, arm: Mapping[str, str], baseline: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Choose the runs of two cases, both of the first one's profile; None where a case has none."""
    ours = view.chosen(experiment, **arm)
    if ours.empty:
        return None
    theirs = view.chosen(experiment, **baseline, profile=ours["profile"].iloc[0])
    return None if theirs.empty else (ours, theirs)


@_prediction
def _arms(
    view: View, experiment: str, arm: str, baseline: str, metric: str, side: Side, which: Mechanisms
) -> Iterator[Finding]:
    """Predict that one arm of an ablation has a higher or a lower metric than another, paired by seed."""
    tag, titles = ablation_losses.ARMS[experiment]
    chosen = ablation_losses.chosen(view, experiment)
    for mechanism in which:
        name = f"{mechanism} {caption.name(metric)}, {titles[arm]} − {titles[baseline]}"
        shown = chosen[(chosen["mechanism"] == mechanism) & chosen[tag].isin([arm, baseline])]
        if shown[tag].nunique() < 2:
            yield _missing(view, name, experiment, mechanism)
        else:
            gains = difference(shown, tag, arm, baseline, f"final/{metric}")
            yield found(name, judge(gains, side, 0.0, "+.3g"), shown)


def _from_images(source: str, other: str, bound: float = 0.0) -> Prediction:
    """Predict that classifiers that learned from one source of images beat those of another, in test accuracy."""
    name = f"test accuracy of a classifier from {source} images − from {other}"
    return _sources(name, "ood_robustness", "test_accuracy", "above", source, other, bound)


# --- predictions about single claims


def _lightweight(view: View) -> list[Finding]:
    """Parameters are counted: for the published students from their architecture, whatever was trained."""
    architectures = (PUBLISHED_MNIST, PUBLISHED_IMAGENET)
    published, imagenet = (cost.parameters(TinyGANGenerator(architecture)) for architecture in architectures)
    shown = [view.chosen("mnist_kd", mechanism=mechanism.value) for mechanism in Mechanism]
    if any(case.empty for case in shown):
        return [_missing(view, "sizes", "mnist_kd")]
    teachers, ours = ([case[f"final/{key}"].iloc[0] for case in shown] for key in ("teacher_parameters", "parameters"))
    students = {"published MNIST student": [published] * len(teachers), "MNIST student trained here": ours}
    findings = [
        resting_on(
            pd.concat(shown), len(shown[0]), _sizes(name, sizes, teachers), all(map(operator.lt, sizes, teachers))
        )
        for name, sizes in students.items()
    ]
    for mechanism, case in zip(Mechanism, shown, strict=True):
        times = case.reindex(columns=["cost/latency_ms_batch_1", "cost/teacher_latency_ms_batch_1"]).astype(float)
        ratio = times.iloc[:, 0] / times.iloc[:, 1]
        name = f"time for one image over the teacher's, {mechanism}"
        findings.append(found(name, judge(ratio, "below", 1.0), case))
    biggan, shape = paper.BIGGAN_PARAMETERS, paper.BIGGAN_PARAMETERS + paper.U2NET_PARAMETERS
    text = f"the published ImageNet student is {biggan / imagenet:.1f} times smaller than one BigGAN-deep-256, "
    text += f"{shape / imagenet:.1f} times smaller than BigGAN and U²-Net together"
    # Sizes and times are what they are, however short the training.
    return [*(replace(finding, smoke=False) for finding in findings), Finding(text, imagenet < biggan)]


def _sizes(name: str, students: Sequence[float], teachers: Sequence[float]) -> str:
    """Say how a student's parameters stand to each of its teachers'."""
    ratios = map(partial(caption.ratio, times=" times"), students, teachers)
    return f"the {name} is {', '.join(ratios)} than shape, texture, background"


def _lambdas(view: View) -> list[Finding]:
    experiment = "sweep_lambdas"
    search = sweeps.find(view, experiment)
    if search is None or search.confirmed is None:
        return [_missing(view, "search", experiment)]
    best = search.ranked.iloc[0]
    name = f"{search.metric} of the best trial (λ1 = {best['loss.lambda_1']:.3g}, λ2 = {best['loss.lambda_2']:.3g}) "
    name += "over the paper's values, on fresh seeds:"
    shown = pd.DataFrame([search.row] * (1 + len(search.confirmed)))
    shown = shown.assign(run_id=[search.study.run_id, *search.confirmed["run_id"]])
    return [found(name, judge(search.gains["the paper's values"], "below", 0.0, "+.3g"), shown)]


@_prediction
def _overfits(view: View, intervention: str) -> list[Finding]:
    """Predict high accuracy in training and little in test, with masks modified so (Table 1).

    Each reading of the protocol is a finding. With the digit's own labels, color gives the digit away, whatever the
    mask: those are shown for comparison. Nothing counts against the prediction where not even the unmodified masks were
    learned: there the classifiers saw too little to tell.
    """
    shown, findings = table1_shape_im.chosen(view), []
    for protocol in table1_shape_im.protocols(shown):
        accuracies = [
            table1_shape_im.values(shown, protocol, intervention, metric)
            for metric in ("train_accuracy", "valid_accuracy")
        ]
        train, test = judge(accuracies[0], "above", paper.LEARNED), judge(accuracies[1], "below", paper.NEAR_CHANCE)
        if train.interval is None:
            continue
        holds = False if False in (train.holds, test.holds) else True if train.holds and test.holds else None
        control = table1_shape_im.values(shown, protocol, "none", "train_accuracy")
        if holds is False and not judge(control, "above", paper.LEARNED).holds:
            holds = None
        text = f"{protocol}: train {train.text}, test {test.text}"
        finding = resting_on(_of(shown, protocol, intervention), train.interval.n, text, holds)
        findings.append(replace(finding, decides=protocol.labels == "permuted"))
    return findings or [_missing(view, f"masks with {intervention}", table1_shape_im.EXPERIMENT)]


@_prediction
def _transparency(view: View, *others: str) -> list[Finding]:
    """Predict that 3/4 transparency trains a better classifier than other masks, whatever the reading."""
    shown, findings = table1_shape_im.chosen(view), []
    for protocol, other in itertools.product(table1_shape_im.protocols(shown), others):
        ours, theirs = (
            table1_shape_im.values(shown, protocol, name, "valid_accuracy") for name in ("transparency", other)
        )
        gains = judge(ours - theirs, "above", 0.0, "+.3g")
        if gains.interval is not None:
            runs = _of(shown, protocol, "transparency", other)
            finding = found(f"{protocol}: test accuracy over {other}", gains, runs)
            findings.append(replace(finding, decides=protocol.labels == "permuted"))
    return findings or [_missing(view, "transparent masks", table1_shape_im.EXPERIMENT)]


def _of(shown: pd.DataFrame, protocol: table1_shape_im.Protocol, *interventions: str) -> pd.DataFrame:
    """Return the runs of some modifications in one reading of the protocol."""
    rows = where(shown, {**protocol._asdict(), "strength": "paper"})
    return rows[rows["intervention"].isin(interventions)]


def _imagenet_kl_faster(view: View) -> list[Finding]:
    """Compare masks with KL after the first of 30 epochs with those without it after the 23rd."""
    name = "mask IoU with KL after 1/30 of the training − without it after 23/30"
    tags = {"mechanism": "shape"}
    pair = _pair(view, IMAGENET, {**tags, "objective": "kl"}, {**tags, "objective": "no_kl"})
    if pair is None:
        return [_missing(view, name, IMAGENET, "shape")]
    arms = [
        shown.assign(reached=[_after(view, run, epoch / 30) for _, run in shown.iterrows()])
        for shown, epoch in zip(pair, (1, 23), strict=True)
    ]
    return [found(name, judge(paired(*arms, "reached"), "above", 0.0, "+.3g"), pd.concat(arms))]


def _after(view: View, run: pd.Series, fraction: float) -> float:
    """Return a mask student's held-out IoU, as measured nearest to a fraction of its training."""
    history = view.store.history(run["run_id"], "heldout/iou")
    wanted = fraction * steps(run)
    return min(history, key=lambda logged: abs(logged[0] - wanted))[1] if history else float("nan")


def _imagenet_tinygan(view: View) -> list[Finding]:
    """Compare the baseline's TinyGAN after its first epoch with the same one at the end."""
    shown = view.chosen(BASELINE, kind="tinygan")
    if shown.empty:
        return [_missing(view, "TinyGAN", BASELINE)]
    logged = [view.store.history(run_id, "heldout/l1") for run_id in shown["run_id"]]
    gains = judge([history[-1][1] - history[0][1] for history in logged if history], "below", 0.0, "+.3g")
    return [found("L1 to BigGAN's images, at the end − after the first epoch", gains, shown)]


SHAPE, RENDERED = (Mechanism.SHAPE,), (Mechanism.TEXTURE, Mechanism.BACKGROUND)

IMAGENET, BASELINE = "imagenet_kd", "baseline_cgn_tinygan"

_IMAGENET_MASKS = _levels("mask IoU", IMAGENET, "iou", "above", paper.CLOSE_IOU, SHAPE)

_RELEASED = "noise response of a {} student trained as released"
_DISTANCE = "Fréchet distance to the CGN's counterfactuals, SKDCGN − baseline"

PREDICTIONS: Mapping[str, Sequence[Prediction]] = {
    "mechanisms": (
        _levels("mask IoU", "mnist_kd", "iou", "above", paper.CLOSE_IOU, SHAPE),
        _levels("{} L1", "mnist_kd", "l1", "below", paper.CLOSE_L1, RENDERED),
    ),
    "lightweight": (_lightweight,),
    # The students of the paper learned from noise as the released scripts stored it.
    "random_noise": (
        _levels(_RELEASED, PAIRING, "noise_response", "below", paper.FREE_RESPONSE, Mechanism, pairing="published"),
    ),
    # Masks were stored with their own noise: what the pairing does shows in the other two.
    "capacity": (_arms(PAIRING, "exact", "published", "noise_response", "below", RENDERED),),
    "teacher_noise": (
        _levels(
            "noise energy of the {} student over its teacher's", "mnist_kd", "noise_energy", "below", 1.0, Mechanism
        ),
    ),
    # Better is a higher IoU of masks, and a lower L1 of the other two.
    "kl_better": (
        _arms(CONVERGENCE, "paper", "none", "iou", "above", SHAPE),
        _arms(CONVERGENCE, "paper", "none", "l1", "below", RENDERED),
    ),
    "kl_faster": (_arms(CONVERGENCE, "paper", "none", "steps_to_target", "below", Mechanism),),
    "cross_entropy": (_arms(ABLATION, "cross_entropy", "tinygan", "iou", "below", SHAPE),),
    "d1": (_arms(ABLATION, "d1_kl_layers", "tinygan", "iou", "below", SHAPE),),
    "d2_images": (_arms(ABLATION, "d2_kl_outputs", "tinygan", "l1", "below", RENDERED),),
    "d2_masks": (_arms(ABLATION, "d2_kl_outputs", "tinygan", "iou", "below", SHAPE),),
    "d3": (_arms(ABLATION, "d3_mse", "tinygan", "noise_energy", "above", Mechanism),),
    "lambdas": (_lambdas,),
    "imagenet_mechanisms": (
        _IMAGENET_MASKS,
        _levels("{} L1", IMAGENET, "l1", "below", paper.CLOSE_L1_IMAGENET, RENDERED),
    ),
    "masks_directly": (_IMAGENET_MASKS,),
    "imagenet_kl_faster": (_imagenet_kl_faster,),
    "imagenet_tinygan": (_imagenet_tinygan,),
    # Counterfactuals nearer to the CGN's are better ones.
    "imagenet_baseline": (
        _sources(_DISTANCE, BASELINE, "frechet_counterfactual", "below", "skdcgn", "baseline", kind="counterfactuals"),
    ),
    "imagenet_robustness": tuple(
        _sources(f"{name}, SKDCGN − CGN", "imagenet_ood", metric, "above", "skdcgn", "cgn", -paper.EQUIVALENT)
        for metric, name in {
            "top1_ensemble": "accuracy",
            "shape_bias_shape": "shape bias",
            "in9_mixed_rand_ensemble": "accuracy on exchanged backgrounds",
        }.items()
    ),
    "table1_noise": (_overfits("noise"),),
    "table1_rotation": (_overfits("rotation"),),
    "table1_transparency": (_transparency("noise", "rotation"),),
    "transparency_better": (_transparency("none"),),
    "counterfactuals": (_from_images("skdcgn", "cgn", -paper.EQUIVALENT),),
    "robustness": tuple(_from_images(source, "cgn", -paper.EQUIVALENT) for source in ("skdcgn", "skdcgn_published")),
    "baseline": (_from_images("skdcgn", "baseline"),),
    "invariance": (_from_images("cgn", "original", paper.FAR_ABOVE),),
}
"""What each claim of `paper.CLAIMS` predicts that an experiment can decide, by its id."""
