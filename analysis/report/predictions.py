"""What each claim of the paper predicts about the numbers of runs, and what the runs say to that."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from analysis import ablation_losses, mnist_kd, sweeps, table1_shape_im
from analysis.frame import caption
from analysis.frame.judge import Finding, Side, difference, found, judge, paired, resting_on
from analysis.frame.view import View, steps, values
from analysis.report import paper
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism
from skdcgn.tinygan.networks import PUBLISHED_IMAGENET, TinyGANGenerator

Prediction = Callable[[View], list[Finding]]
"""Asks a store; says what its runs say."""


def _missing(view: View, name: str, experiment: str, mechanism: str | None = None) -> Finding:
    """Say that there is no run to decide a prediction, and what makes one."""
    return Finding(f"{name}: no finished run", None, command=view.command(experiment, mechanism=mechanism))


# --- kinds of predictions


def _level(name: str, experiment: str, metric: str, side: Side, bound: float, **tags: str) -> Prediction:
    """Predict that a metric lies above or below a bound."""

    def predict(view: View) -> list[Finding]:
        shown = view.chosen(experiment, **tags)
        if shown.empty:
            return [_missing(view, name, experiment, tags.get("mechanism"))]
        return [found(name, judge(values(shown, metric), side, bound), shown)]

    return predict


def _levels(
    name: str, experiment: str, metric: str, side: Side, bound: float, mechanisms: Iterable[Mechanism], **tags: str
) -> tuple[Prediction, ...]:
    """Predict a metric's side for several mechanisms, which `name` has a place for."""
    return tuple(
        _level(name.format(each), experiment, metric, side, bound, mechanism=each.value, **tags) for each in mechanisms
    )


def _gain(
    name: str,
    experiment: str,
    metric: str,
    side: Side,
    arm: str,
    baseline: str,
    bound: float = 0.0,
    **tags: str,
) -> Prediction:
    """Predict how a metric from one source of images stands to that from another, seed by seed."""

    def predict(view: View) -> list[Finding]:
        pair = _pair(view, experiment, {**tags, "source": arm}, {**tags, "source": baseline})
        if pair is None:
            return [_missing(view, name, experiment)]
        return [found(name, judge(paired(*pair, metric), side, bound, "+.3g"), pd.concat(pair))]

    return predict


def _pair(
    view: View, experiment: str, arm: Mapping[str, str], baseline: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Choose the runs of two cases, both of the first one's profile; None where a case has none."""
    ours = view.chosen(experiment, **arm)
    if ours.empty:
        return None
    theirs = view.chosen(experiment, **baseline, profile=ours["profile"].iloc[0])
    return None if theirs.empty else (ours, theirs)


def _arms(
    experiment: str, mechanisms: Iterable[Mechanism], arm: str, baseline: str, metric: str, side: Side
) -> Prediction:
    """Predict that one arm of an ablation has a higher or a lower metric than another, paired by seed."""
    tag, titles = ablation_losses.ARMS[experiment]

    def predict(view: View) -> list[Finding]:
        chosen, findings = ablation_losses.chosen(view, experiment), []
        for mechanism in mechanisms:
            name = f"{mechanism} {caption.name(metric)}, {titles[arm]} − {titles[baseline]}"
            shown = chosen[(chosen["mechanism"] == mechanism) & chosen[tag].isin([arm, baseline])]
            if shown[tag].nunique() < 2:
                findings.append(_missing(view, name, experiment, mechanism))
            else:
                gains = difference(shown, tag, arm, baseline, f"final/{metric}")
                findings.append(found(name, judge(gains, side, 0.0, "+.3g"), shown))
        return findings

    return predict


def _better(
    experiment: str, arm: str, baseline: str, *mechanisms: Mechanism, worse: bool = False
) -> tuple[Prediction, ...]:
    """Predict that an arm is better than another, or worse: by IoU for masks, by L1 for the rest."""
    sides: tuple[Side, Side] = ("below", "above") if worse else ("above", "below")
    return tuple(
        _arms(experiment, [each], arm, baseline, *(("iou", sides[0]) if each is Mechanism.SHAPE else ("l1", sides[1])))
        for each in mechanisms
    )


def _from_images(source: str, other: str, side: Side, bound: float = 0.0) -> Prediction:
    """Predict how classifiers that learned from one source of images stand to those of another, in test accuracy."""
    name = f"test accuracy of a classifier from {source} images − from {other}"
    return _gain(name, "ood_robustness", "final/test_accuracy", side, source, other, bound)


# --- predictions about single claims


def _lightweight(view: View) -> list[Finding]:
    """Parameters are counted: for the published students from their architecture, whatever was trained."""
    published = mnist_kd.published_size()["final/parameters"]
    with torch.device("meta"):
        imagenet = cost.parameters(TinyGANGenerator(PUBLISHED_IMAGENET))
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
    ratios = [
        f"{student / teacher:.1f} times larger" if student > teacher else f"{teacher / student:.1f} times smaller"
        for student, teacher in zip(students, teachers, strict=True)
    ]
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
    shown = shown.assign(run_id=[search.run_id, *search.confirmed["run_id"]])
    return [found(name, judge(search.gains["the paper's values"], "below", 0.0, "+.3g"), shown)]


def _overfits(intervention: str) -> Prediction:
    """Predict high accuracy in training and little in test, with masks modified so (Table 1).

    Each reading of the protocol is a finding. With the digit's own labels, color gives the digit away, whatever the
    mask: those are shown for comparison. Nothing counts against the prediction where not even the unmodified masks were
    learned: there the classifiers saw too little to tell.
    """

    def predict(view: View) -> list[Finding]:
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
            rows = _of(shown, protocol, intervention)
            finding = resting_on(rows, train.interval.n, text, holds)
            findings.append(replace(finding, decides=protocol.labels == "permuted"))
        return findings or [_missing(view, f"masks with {intervention}", table1_shape_im.EXPERIMENT)]

    return predict


def _transparency(*others: str) -> Prediction:
    """Predict that 3/4 transparency trains a better classifier than other masks, whatever the reading."""

    def predict(view: View) -> list[Finding]:
        shown, findings = table1_shape_im.chosen(view), []
        for protocol in table1_shape_im.protocols(shown):
            for other in others:
                pair = [
                    table1_shape_im.values(shown, protocol, name, "valid_accuracy") for name in ("transparency", other)
                ]
                gains = judge(pair[0] - pair[1], "above", 0.0, "+.3g")
                if gains.interval is not None:
                    rows = _of(shown, protocol, "transparency", other)
                    finding = found(f"{protocol}: test accuracy over {other}", gains, rows)
                    findings.append(replace(finding, decides=protocol.labels == "permuted"))
        return findings or [_missing(view, "transparent masks", table1_shape_im.EXPERIMENT)]

    return predict


def _of(shown: pd.DataFrame, protocol: table1_shape_im.Protocol, *interventions: str) -> pd.DataFrame:
    """Return the runs of some modifications in one reading of the protocol."""
    rows = shown[(shown[list(protocol._fields)] == pd.Series(protocol._asdict())).all(axis=1)]
    return rows[rows["intervention"].isin(interventions) & (rows["strength"] == "paper")]


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


ALL = tuple(Mechanism)
RENDERED = (Mechanism.TEXTURE, Mechanism.BACKGROUND)

IMAGENET, BASELINE = "imagenet_kd", "baseline_cgn_tinygan"
ABLATION, CONVERGENCE, PAIRING = "ablation_losses", "kl_convergence", "noise_pairing"

_IMAGENET_MASKS = _level("mask IoU", IMAGENET, "final/iou", "above", paper.CLOSE_IOU, mechanism="shape")

PREDICTIONS: Mapping[str, Sequence[Prediction]] = {
    "mechanisms": (
        _level("mask IoU", "mnist_kd", "final/iou", "above", paper.CLOSE_IOU, mechanism="shape"),
        *_levels("{} L1", "mnist_kd", "final/l1", "below", paper.CLOSE_L1, RENDERED),
    ),
    "lightweight": (_lightweight,),
    # The students of the paper learned from noise as the released scripts stored it.
    "random_noise": _levels(
        "noise response of a {} student trained as released",
        PAIRING,
        "final/noise_response",
        "below",
        paper.FREE_RESPONSE,
        ALL,
        pairing="published",
    ),
    # Masks were stored with their own noise: what the pairing does shows in the other two.
    "capacity": (_arms(PAIRING, RENDERED, "exact", "published", "noise_response", "below"),),
    "teacher_noise": _levels(
        "noise energy of the {} student over its teacher's", "mnist_kd", "final/noise_energy", "below", 1.0, ALL
    ),
    "kl_better": _better(CONVERGENCE, "paper", "none", *ALL),
    "kl_faster": (_arms(CONVERGENCE, ALL, "paper", "none", "steps_to_target", "below"),),
    "cross_entropy": _better(ABLATION, "cross_entropy", "tinygan", Mechanism.SHAPE, worse=True),
    "d1": _better(ABLATION, "d1_kl_layers", "tinygan", Mechanism.SHAPE, worse=True),
    "d2_images": _better(ABLATION, "d2_kl_outputs", "tinygan", *RENDERED),
    "d2_masks": _better(ABLATION, "d2_kl_outputs", "tinygan", Mechanism.SHAPE, worse=True),
    "d3": (_arms(ABLATION, ALL, "d3_mse", "tinygan", "noise_energy", "above"),),
    "lambdas": (_lambdas,),
    "imagenet_mechanisms": (
        _IMAGENET_MASKS,
        *_levels("{} L1", IMAGENET, "final/l1", "below", paper.CLOSE_L1_IMAGENET, RENDERED),
    ),
    "masks_directly": (_IMAGENET_MASKS,),
    "imagenet_kl_faster": (_imagenet_kl_faster,),
    "imagenet_tinygan": (_imagenet_tinygan,),
    # Counterfactuals nearer to the CGN's are better ones.
    "imagenet_baseline": (
        _gain(
            "Fréchet distance to the CGN's counterfactuals, SKDCGN − baseline",
            BASELINE,
            "final/frechet_counterfactual",
            "below",
            "skdcgn",
            "baseline",
            kind="counterfactuals",
        ),
    ),
    "imagenet_robustness": tuple(
        _gain(f"{name}, SKDCGN − CGN", "imagenet_ood", f"final/{metric}", "above", "skdcgn", "cgn", -paper.EQUIVALENT)
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
    "counterfactuals": (_from_images("skdcgn", "cgn", "above", -paper.EQUIVALENT),),
    "robustness": tuple(
        _from_images(source, "cgn", "above", -paper.EQUIVALENT) for source in ("skdcgn", "skdcgn_published")
    ),
    "baseline": (_from_images("skdcgn", "baseline", "above"),),
    "invariance": (_from_images("cgn", "original", "above", paper.FAR_ABOVE),),
}
"""What each claim of `paper.CLAIMS` predicts that an experiment can decide, by its id."""
