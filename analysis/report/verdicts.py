"""The claims of the paper, held against the run store.

How a verdict is reached. A claim comes down to predictions about numbers: a mean lies above or below a bound, or a
difference, paired by seed, above or below 0. A prediction holds where the whole 95 % Student-t interval over seeds lies
on its side, fails where it lies on the other, and is undecided otherwise: with one seed always. All hold: confirmed.
Some do: partly. None does, and one fails: refuted. Otherwise: not shown. A smoke test decides nothing.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import pandas as pd
import torch

from analysis import ablation_losses as ablation_losses_figures
from analysis import mnist_kd as mnist_kd_figures
from analysis import sweeps
from analysis import table1_shape_im as table1_shape_im_figures
from analysis.frame import style, view
from analysis.frame.judge import Finding, Side, Status, _column, _holds, _origin, judge
from analysis.report import paper
from analysis.report.paper import Claim
from skdcgn.measure import cost
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store
from skdcgn.tinygan.networks import PUBLISHED_IMAGENET, TinyGANGenerator

_INDICATIVE = {
    Status.CONFIRMED: "points to it",
    Status.PARTLY: "points both ways",
    Status.REFUTED: "points against it",
    Status.OPEN: "open",
}


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim, and why."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """See the module's docstring for the rule."""
        if not self.claim.experiments:
            return Status.NOT_TESTABLE
        if not self.run_ids:
            return Status.NO_RUN
        holds = [None if finding.smoke else finding.holds for finding in self.findings if finding.decides]
        if holds and all(holds):
            return Status.CONFIRMED
        if any(holds):
            return Status.PARTLY
        return Status.REFUTED if False in holds else Status.OPEN

    @property
    def label(self) -> str:
        """The status in words, no stronger than what it rests on."""
        if not self.run_ids or not any(finding.stand_in for finding in self.findings):
            return self.status.value
        if self.claim.imagenet:
            return f"indicative on the miniature: {_INDICATIVE[self.status]}"
        return f"{self.status.value} (on a stand-in)"

    @property
    def evidence(self) -> str:
        """The findings in a sentence."""
        if not self.claim.experiments:
            return f"no experiment here decides it: it takes {self.claim.confirms}"
        smoke = "smoke test, no evidence: " if any(finding.smoke for finding in self.findings) else ""
        return smoke + "; ".join(dict.fromkeys(finding.text for finding in self.findings))

    @property
    def scale(self) -> str:
        """What the findings rest on."""
        return "; ".join(dict.fromkeys(finding.scale for finding in self.findings if finding.scale))

    @property
    def commands(self) -> list[str]:
        """The commands that fill what is missing."""
        return list(dict.fromkeys(finding.command for finding in self.findings if finding.command))

    @property
    def run_ids(self) -> list[str]:
        """The runs that the findings rest on."""
        return list(dict.fromkeys(run_id for finding in self.findings for run_id in finding.run_ids))


class Evidence:
    """The finished runs of a store, asked one prediction at a time."""

    def __init__(self, store: Store, dataset: str | None = None, profile: str | None = None) -> None:
        """Describe where to look.

        Args:
            store: the run store.
            dataset: of the MNIST experiments; by default `runs.main_dataset` of each.
            profile: of the runs; by default, for each experiment, the first of `runs.PROFILES` that has any.
        """
        self.store, self.profile = store, profile
        # Reading a store takes seconds, and many claims ask for the same experiment.
        self.results = cache(lambda experiment: view.results(store, experiment))
        self.dataset = cache(lambda experiment: dataset or view.main_dataset(store, experiment))
        self._compared = cache(
            lambda experiment: ablation_losses_figures.chosen(store, experiment, self.dataset(experiment), profile)
        )

    @cached_property
    def shape_study(self) -> pd.DataFrame:
        """The runs of Table 1, see `analysis.shape_study.chosen`."""
        return table1_shape_im_figures.chosen(
            self.store, self.dataset(table1_shape_im_figures.EXPERIMENT), self.profile
        )

    def case(self, experiment: str, tags: Mapping[str, str], profile: str | None = None) -> pd.DataFrame:
        """Choose the runs of one case, a row a seed; see `runs.newest`."""
        where = {"dataset": self.dataset(experiment), **tags}
        return view.newest(self.results(experiment), where, profile or self.profile)

    def level(self, name: str, experiment: str, metric: str, side: Side, bound: float, **tags: str) -> Finding:
        """Ask whether a metric lies above or below a bound."""
        shown = self.case(experiment, tags)
        if shown.empty:
            return self.missing(name, experiment, tags.get("mechanism"))
        return judge(name, _column(shown, metric), shown, side, bound)

    def ratio(
        self, name: str, experiment: str, metric: str, other: str, side: Side, bound: float, **tags: str
    ) -> Finding:
        """Ask whether the ratio of two metrics of a run lies above or below a bound."""
        shown = self.case(experiment, tags)
        if shown.empty:
            return self.missing(name, experiment, tags.get("mechanism"))
        return judge(name, _column(shown, metric) / _column(shown, other), shown, side, bound)

    def gain(
        self,
        name: str,
        experiment: str,
        metric: str,
        side: Side,
        arm: Mapping[str, str],
        baseline: Mapping[str, str],
        bound: float = 0.0,
        **tags: str,
    ) -> Finding:
        """Ask whether a metric of one case minus that of another, seed by seed, lies above or below a bound."""
        ours = self.case(experiment, {**tags, **arm})
        theirs = self.case(experiment, {**tags, **baseline}, None if ours.empty else ours["profile"].iloc[0])
        if ours.empty or theirs.empty:
            return self.missing(name, experiment, tags.get("mechanism"))
        gains = _column(ours, metric) - _column(theirs, metric)
        return judge(name, gains, pd.concat([ours, theirs]), side, bound, "+.3g")

    def compared(
        self, experiment: str, mechanism: Mechanism, arm: str, baseline: str, metric: str, side: Side
    ) -> Finding:
        """Ask whether one arm of an ablation has a higher or a lower metric than another, paired by seed."""
        tag, titles = ablation_losses_figures.ARMS[experiment]
        name = f"{mechanism} {ablation_losses_figures.METRICS[metric].strip(' ↑↓')}, {titles[arm]} − {titles[baseline]}"
        shown = self._compared(experiment)
        shown = shown[(shown["mechanism"] == mechanism) & shown[tag].isin([arm, baseline])]
        if shown[tag].nunique() < 2:
            return self.missing(name, experiment, mechanism)
        return judge(
            name, ablation_losses_figures.difference(shown, tag, arm, baseline, metric), shown, side, 0.0, "+.3g"
        )

    def missing(self, name: str, experiment: str, mechanism: str | None = None) -> Finding:
        """Say that there is no run to decide a prediction, and what makes one."""
        command = view.command(experiment, self.dataset(experiment), mechanism, self.profile)
        return Finding(f"{name}: no finished run", None, command=command)


# --- the rules: claim to predictions

Rule = Callable[[Evidence], list[Finding]]

IMAGENET, BASELINE = "imagenet_kd", "baseline_cgn_tinygan"


def _mechanisms(evidence: Evidence) -> list[Finding]:
    found = [evidence.level("mask IoU", "mnist_kd", "final/iou", "above", paper.CLOSE_IOU, mechanism="shape")]
    for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND):
        name = f"{mechanism} L1"
        found.append(evidence.level(name, "mnist_kd", "final/l1", "below", paper.CLOSE_L1, mechanism=mechanism.value))
    return found


def _lightweight(evidence: Evidence) -> list[Finding]:
    """Parameters are counted: for the published students from their architecture, whatever was trained."""
    published = mnist_kd_figures.published_size()["final/parameters"]
    with torch.device("meta"):
        imagenet = cost.parameters(TinyGANGenerator(PUBLISHED_IMAGENET))
    shown = [evidence.case("mnist_kd", {"mechanism": mechanism.value}) for mechanism in Mechanism]
    if any(case.empty for case in shown):
        return [evidence.missing("sizes", "mnist_kd")]
    origin = {**_origin(pd.concat(shown), len(shown[0])), "smoke": False}  # sizes and times are what they are
    teachers, ours = ([case[f"final/{key}"].iloc[0] for case in shown] for key in ("teacher_parameters", "parameters"))
    students = {"published MNIST student": [published] * len(teachers), "MNIST student trained here": ours}
    found = [
        Finding(_sizes(name, sizes, teachers), all(map(operator.lt, sizes, teachers)), **origin)
        for name, sizes in students.items()
    ]
    latency = ("cost/latency_ms_batch_1", "cost/teacher_latency_ms_batch_1")
    for mechanism in Mechanism:
        name = f"time for one image over the teacher's, {mechanism}"
        ratio = evidence.ratio(name, "mnist_kd", *latency, "below", 1.0, mechanism=mechanism.value)
        found.append(ratio._replace(smoke=False))
    biggan, shape = paper.BIGGAN_PARAMETERS, paper.BIGGAN_PARAMETERS + paper.U2NET_PARAMETERS
    text = f"the published ImageNet student is {biggan / imagenet:.1f} times smaller than one BigGAN-deep-256, "
    text += f"{shape / imagenet:.1f} times smaller than BigGAN and U²-Net together"
    return [*found, Finding(text, imagenet < biggan)]


def _sizes(name: str, students: Sequence[float], teachers: Sequence[float]) -> str:
    """Say how a student's parameters stand to each of its teachers'."""
    ratios = [
        f"{student / teacher:.1f} times larger" if student > teacher else f"{teacher / student:.1f} times smaller"
        for student, teacher in zip(students, teachers, strict=True)
    ]
    return f"the {name} is {', '.join(ratios)} than shape, texture, background"


def _random_noise(evidence: Evidence) -> list[Finding]:
    """The students of the paper learnt from noise as the released scripts stored it."""
    return [
        evidence.level(
            f"noise response of a {mechanism} student trained as released",
            ablation_losses_figures.PAIRING,
            "final/noise_response",
            "below",
            paper.FREE_RESPONSE,
            mechanism=mechanism.value,
            pairing="published",
        )
        for mechanism in Mechanism
    ]


def _capacity(evidence: Evidence) -> list[Finding]:
    """Masks were stored with their own noise: what the pairing does shows in the other two."""
    return [
        evidence.compared(ablation_losses_figures.PAIRING, mechanism, "exact", "published", "noise_response", "below")
        for mechanism in (Mechanism.TEXTURE, Mechanism.BACKGROUND)
    ]


def _teacher_noise(evidence: Evidence) -> list[Finding]:
    return [
        evidence.level(
            f"noise energy of the {mechanism} student over its teacher's",
            "mnist_kd",
            "final/noise_energy",
            "below",
            1.0,
            mechanism=mechanism.value,
        )
        for mechanism in Mechanism
    ]


def _better(experiment: str, arm: str, baseline: str, *mechanisms: Mechanism, worse: bool = False) -> Rule:
    """Predict that an arm is better than another, or worse: by IoU for masks, by L1 for the rest."""

    def rule(evidence: Evidence) -> list[Finding]:
        found = []
        for mechanism in mechanisms:
            shape = mechanism is Mechanism.SHAPE
            side: Side = "above" if shape != worse else "below"
            found.append(evidence.compared(experiment, mechanism, arm, baseline, "iou" if shape else "l1", side))
        return found

    return rule


def _everywhere(experiment: str, arm: str, baseline: str, metric: str, side: Side) -> Rule:
    """Predict one metric's side for every mechanism."""
    return lambda evidence: [evidence.compared(experiment, m, arm, baseline, metric, side) for m in Mechanism]


def _lambdas(evidence: Evidence) -> list[Finding]:
    experiment = "sweep_lambdas"
    found = sweeps.find(evidence.store, experiment, evidence.profile)
    if found is None or found.confirmed is None:
        return [evidence.missing("search", experiment)]
    by_setting = found.confirmed.pivot(index="seed", columns="setting", values=found.metric)
    sign = 1 if found.direction == "maximize" else -1
    gains = sign * (by_setting["best"] - by_setting["the paper's values"])
    best = found.completed.sort_values(found.metric, ascending=sign < 0).iloc[0]
    name = f"{found.metric} of the best trial (λ1 = {best['loss.lambda_1']:.3g}, λ2 = {best['loss.lambda_2']:.3g}) "
    name += "over the paper's values, on fresh seeds:"
    tags = {**found.tags, "stand_in": found.tags["stand_in"] == "true"}
    shown = pd.DataFrame([{**tags, "run_id": run_id} for run_id in (found.run_id, *found.confirmed["run_id"])])
    return [judge(name, gains, shown, "below", 0.0, "+.3g")]


def _sources(source: str, other: str, side: Side, bound: float = 0.0) -> Rule:
    """Predict how classifiers that learnt from one source of images stand to those of another, in test accuracy."""
    name = f"test accuracy of a classifier from {source} images − from {other}"
    arms = ({"source": source}, {"source": other})
    return lambda evidence: [evidence.gain(name, "ood_robustness", "final/test_accuracy", side, *arms, bound)]


def _as_good(*sources: str) -> Rule:
    """Predict that classifiers that learnt from some sources are no worse than the CGN's, but for a margin."""
    rules = [_sources(source, "cgn", "above", -paper.EQUIVALENT) for source in sources]
    return lambda evidence: [finding for rule in rules for finding in rule(evidence)]


def _overfits(intervention: str) -> Rule:
    """Predict high accuracy in training and little in test, with masks modified so (Table 1).

    Each reading of the protocol is a finding. With the digit's own labels colour gives the digit away, whatever the
    mask: those are shown for comparison. Nothing counts against the prediction where not even the unmodified masks were
    learnt: there the classifiers saw too little to tell.
    """

    def rule(evidence: Evidence) -> list[Finding]:
        shown, found = evidence.shape_study, []
        for protocol in table1_shape_im_figures.protocols(shown):
            train, test = (
                table1_shape_im_figures.values(shown, protocol, intervention, f"{key}_accuracy").tolist()
                for key in ("train", "valid")
            )
            if not train:
                continue
            sides = [_holds(train, "above", paper.LEARNT), _holds(test, "below", paper.NEAR_CHANCE)]
            holds = False if False in sides else True if all(sides) else None
            control = table1_shape_im_figures.values(shown, protocol, "none", "train_accuracy").tolist()
            learnt = bool(control) and _holds(control, "above", paper.LEARNT)
            if holds is False and not learnt:
                holds = None
            text = f"{protocol}: train {style.interval_text(train)}, test {style.interval_text(test)}"
            origin = _origin(_of(shown, protocol, intervention), len(train))
            found.append(Finding(text, holds, decides=protocol.labels == "permuted", **origin))
        return found or [evidence.missing(f"masks with {intervention}", table1_shape_im_figures.EXPERIMENT)]

    return rule


def _transparency(*others: str) -> Rule:
    """Predict that 3/4 transparency trains a better classifier than other masks, whatever the reading."""

    def rule(evidence: Evidence) -> list[Finding]:
        shown, found = evidence.shape_study, []
        for protocol in table1_shape_im_figures.protocols(shown):
            for other in others:
                pair = [
                    table1_shape_im_figures.values(shown, protocol, name, "valid_accuracy")
                    for name in ("transparency", other)
                ]
                gains = (pair[0] - pair[1]).dropna()
                if len(gains):
                    name = f"{protocol}: test accuracy over {other}"
                    rows = _of(shown, protocol, "transparency", other)
                    finding = judge(name, gains, rows, "above", 0.0, "+.3g")
                    found.append(finding._replace(decides=protocol.labels == "permuted"))
        return found or [evidence.missing("transparent masks", table1_shape_im_figures.EXPERIMENT)]

    return rule


def _of(shown: pd.DataFrame, protocol: table1_shape_im_figures.Protocol, *interventions: str) -> pd.DataFrame:
    """Return the runs of some modifications in one reading of the protocol."""
    rows = shown[(shown[list(protocol._fields)] == pd.Series(protocol._asdict())).all(axis=1)]
    return rows[rows["intervention"].isin(interventions) & (rows["strength"] == "paper")]


def _imagenet_mechanisms(evidence: Evidence) -> list[Finding]:
    return [
        *_imagenet_masks(evidence),
        *(
            evidence.level(f"{m} L1", IMAGENET, "final/l1", "below", paper.CLOSE_L1_IMAGENET, mechanism=m.value)
            for m in (Mechanism.TEXTURE, Mechanism.BACKGROUND)
        ),
    ]


def _imagenet_masks(evidence: Evidence) -> list[Finding]:
    return [evidence.level("mask IoU", IMAGENET, "final/iou", "above", paper.CLOSE_IOU, mechanism="shape")]


def _imagenet_kl_faster(evidence: Evidence) -> list[Finding]:
    """Compare masks with KL after the first of 30 epochs with those without it after the 23rd."""
    name = "mask IoU with KL after 1/30 of the training − without it after 23/30"
    arms = []
    for objective, epoch in (("kl", 1), ("no_kl", 23)):
        shown = evidence.case(IMAGENET, {"mechanism": "shape", "objective": objective})
        if shown.empty:
            return [evidence.missing(name, IMAGENET, "shape")]
        arms.append(shown.assign(reached=[_after(evidence.store, run, epoch / 30) for _, run in shown.iterrows()]))
    gains = _column(arms[0], "reached") - _column(arms[1], "reached")
    return [judge(name, gains, pd.concat(arms), "above", 0.0, "+.3g")]


def _after(store: Store, run: pd.Series, fraction: float) -> float:
    """Return a mask student's held-out IoU, as measured nearest to a fraction of its training."""
    history = view.metric_history(store, run["run_id"], ["heldout/iou"])
    distance = (history["step"] - fraction * view.steps(run)).abs()
    return float(history.loc[distance.idxmin(), "value"]) if len(history) else float("nan")


def _imagenet_tinygan(evidence: Evidence) -> list[Finding]:
    """Compare the baseline's TinyGAN after its first epoch with the same one at the end."""
    shown = evidence.case(BASELINE, {"stage": "tinygan"})
    if shown.empty:
        return [evidence.missing("TinyGAN", BASELINE)]
    gains = []
    for run_id in shown["run_id"]:
        history = view.metric_history(evidence.store, run_id, ["heldout/l1"])["value"]
        gains.append(float(history.iloc[-1] - history.iloc[0]))
    return [judge("L1 to BigGAN's images, at the end − after the first epoch", gains, shown, "below", 0.0, "+.3g")]


def _imagenet_baseline(evidence: Evidence) -> list[Finding]:
    """Counterfactuals nearer to the CGN's are better ones."""
    name = "Fréchet distance to the CGN's counterfactuals, SKDCGN − baseline"
    pair = ({"source": "skdcgn"}, {"source": "baseline"})
    return [evidence.gain(name, BASELINE, "final/frechet_counterfactual", "below", *pair, stage="counterfactuals")]


def _imagenet_robustness(evidence: Evidence) -> list[Finding]:
    measured = {
        "final/top1_ensemble": "accuracy",
        "final/shape_bias_shape": "shape bias",
        "final/in9_mixed_rand_ensemble": "accuracy on exchanged backgrounds",
    }
    pair = ({"source": "skdcgn"}, {"source": "cgn"})
    return [
        evidence.gain(f"{name}, SKDCGN − CGN", "imagenet_ood", metric, "above", *pair, -paper.EQUIVALENT)
        for metric, name in measured.items()
    ]


ALL = tuple(Mechanism)

RULES: Mapping[str, Rule] = {
    "mechanisms": _mechanisms,
    "lightweight": _lightweight,
    "random_noise": _random_noise,
    "capacity": _capacity,
    "teacher_noise": _teacher_noise,
    "kl_better": _better(ablation_losses_figures.CONVERGENCE, "paper", "none", *ALL),
    "kl_faster": _everywhere(ablation_losses_figures.CONVERGENCE, "paper", "none", "steps_to_target", "below"),
    "cross_entropy": _better(ablation_losses_figures.ABLATION, "cross_entropy", "tinygan", Mechanism.SHAPE, worse=True),
    "d1": _better(ablation_losses_figures.ABLATION, "d1_kl_layers", "tinygan", Mechanism.SHAPE, worse=True),
    "d2_images": _better(
        ablation_losses_figures.ABLATION, "d2_kl_outputs", "tinygan", Mechanism.TEXTURE, Mechanism.BACKGROUND
    ),
    "d2_masks": _better(ablation_losses_figures.ABLATION, "d2_kl_outputs", "tinygan", Mechanism.SHAPE, worse=True),
    "d3": _everywhere(ablation_losses_figures.ABLATION, "d3_mse", "tinygan", "noise_energy", "above"),
    "lambdas": _lambdas,
    "imagenet_mechanisms": _imagenet_mechanisms,
    "masks_directly": _imagenet_masks,
    "imagenet_kl_faster": _imagenet_kl_faster,
    "imagenet_tinygan": _imagenet_tinygan,
    "imagenet_baseline": _imagenet_baseline,
    "imagenet_robustness": _imagenet_robustness,
    "table1_noise": _overfits("noise"),
    "table1_rotation": _overfits("rotation"),
    "table1_transparency": _transparency("noise", "rotation"),
    "transparency_better": _transparency("none"),
    "counterfactuals": _as_good("skdcgn"),
    "robustness": _as_good("skdcgn", "skdcgn_published"),
    "baseline": _sources("skdcgn", "baseline", "above"),
    "invariance": _sources("cgn", "original", "above", paper.FAR_ABOVE),
}
"""What decides each claim of `paper.CLAIMS` that an experiment can decide, by its id."""


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Hold every claim of the paper against the runs, in the order of `paper.CLAIMS`."""
    return [Verdict(claim, tuple(RULES[claim.id](evidence)) if claim.experiments else ()) for claim in paper.CLAIMS]
