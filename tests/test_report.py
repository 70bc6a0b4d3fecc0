"""Claims and verdicts: the rule by hand, every claim on an empty store and on a small record of runs."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from record import add, read

from analysis.frame import style
from analysis.frame.judge import Finding, found, judge
from analysis.frame.table import Table
from analysis.frame.view import View
from analysis.report import claims, gallery, paper
from analysis.report.deviations import DEVIATIONS
from analysis.report.paper import Claim
from analysis.report.predictions import PREDICTIONS
from analysis.report.verdicts import Status, Verdict, verdicts
from skdcgn.runs.store import Store, open_store

CLAIM = Claim("id", "Sec. 0", "It holds.", "a number", "another", ("mnist_kd",))
SHOWN = pd.DataFrame(
    [{"run_id": "a" * 32, "profile": "quick", "teacher": "a teacher", "stand_in": False, "dataset": "double_colored"}]
)


def finding(holds: bool | None, **changes: object) -> Finding:
    return replace(Finding("a number", holds, ("run",), "quick, n=3"), **changes)


# --- the rule


def test_a_finding_says_its_number_and_what_it_rests_on() -> None:
    above = found("mask IoU", judge([0.8, 0.81, 0.82]), SHOWN)
    assert above.text == "mask IoU 0.81 [0.785, 0.835], n=3"
    assert above.holds
    assert above.run_ids == ("a" * 32,)
    assert above.scale == "quick, n=3, a teacher"
    nothing = found("steps", judge([math.nan]), SHOWN.assign(profile="smoke", teacher="none", dataset="digits"))
    assert nothing.text == "steps: not reached, or not measured"
    assert nothing.holds is None
    assert nothing.scale == "smoke, n=0"
    assert nothing.smoke
    assert nothing.stand_in


@pytest.mark.parametrize(
    ("holds", "status"),
    [
        ((True, True), Status.CONFIRMED),
        ((True, None), Status.PARTLY),
        ((True, False), Status.PARTLY),
        ((False, None), Status.REFUTED),
        ((False, False), Status.REFUTED),
        ((None, None), Status.OPEN),
    ],
)
def test_findings_make_a_status(holds: tuple[bool | None, ...], status: Status) -> None:
    assert Verdict(CLAIM, tuple(map(finding, holds))).status is status


def test_what_decides_nothing_makes_no_status() -> None:
    assert Verdict(CLAIM, (finding(True, smoke=True),)).status is Status.OPEN
    assert "no evidence" in Verdict(CLAIM, (finding(True, smoke=True),)).evidence
    assert Verdict(CLAIM, (finding(True), finding(False, decides=False))).status is Status.CONFIRMED
    assert Verdict(CLAIM, (finding(True, decides=False),)).status is Status.OPEN
    missing = Finding("none", None, command="python it.py")
    assert Verdict(CLAIM, (missing, missing)).status is Status.NO_RUN
    assert Verdict(CLAIM, (missing, missing)).commands == ["python it.py"]
    untestable = Claim("id", "Sec. 0", "It holds.", "a machine", "it", ())
    assert Verdict(untestable, ()).status is Status.NOT_TESTABLE
    assert "a machine" in Verdict(untestable, ()).evidence


def test_a_stand_in_says_no_more_than_it_can() -> None:
    assert Verdict(CLAIM, (finding(True, stand_in=True),)).label == "confirmed (on a stand-in)"
    imagenet = Claim("id", "Sec. 0", "It holds.", "a number", "another", ("imagenet_kd",), imagenet=True)
    labels = {holds: Verdict(imagenet, (finding(holds, stand_in=True),)).label for holds in (True, False, None)}
    assert labels == {
        True: "indicative on the miniature: points to it",
        False: "indicative on the miniature: points against it",
        None: "indicative on the miniature: open",
    }
    assert Verdict(imagenet, (finding(True),)).label == "confirmed"  # with the real weights


# --- the data


def test_every_claim_has_predictions_and_is_told_apart() -> None:
    ids = [claim.id for claim in paper.CLAIMS]
    assert len(set(ids)) == len(ids)
    assert set(PREDICTIONS) == {claim.id for claim in paper.CLAIMS if claim.experiments}
    experiments = {name for claim in paper.CLAIMS for name in claim.experiments}
    folder = Path(__file__).parents[1] / "experiments"
    assert all((folder / f"{name}.py").exists() for name in experiments)
    named = {claim for deviation in DEVIATIONS for claim in deviation.claims}
    assert named <= set(ids)


# --- stores


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> View:
    return View(_copy(empty_store, tmp_path_factory))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> View:
    """Reads each experiment once, for all tests."""
    store = _copy(empty_store, tmp_path_factory)
    add(store, read(Path(__file__).parent / "golden" / "runs.json"))
    return View(store)


def _copy(empty_store: Path, factory: pytest.TempPathFactory) -> Store:
    database = factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_store, database)
    return open_store(f"sqlite:///{database}")


def test_an_empty_store_has_a_command_for_every_claim(empty: View) -> None:
    for verdict in verdicts(empty):
        expected = Status.NO_RUN if verdict.claim.experiments else Status.NOT_TESTABLE
        assert verdict.status is expected, verdict.claim.id
        for experiment in verdict.claim.experiments:
            assert any(f"experiments/{experiment}.py" in command for command in verdict.commands), verdict.claim.id


def test_an_empty_store_draws_every_figure_as_a_gap_with_its_command(empty: View) -> None:
    drawn = {name: figure for draw in gallery.FIGURES.values() for name, figure in draw(empty).items()}
    for name, figure in drawn.items():
        assert style.is_gap(figure), name
        assert any("python experiments/" in text.get_text() for text in figure.axes[0].texts), name
        assert style.cited(figure) == []
    places = set(drawn) | set(gallery.TABLES)
    assert {name for claim in paper.CLAIMS for name in claim.figures} <= places


def test_an_empty_store_makes_every_table(empty: View) -> None:
    for name, make in gallery.TABLES.items():
        table = make(empty)
        assert table.to_latex().isascii(), name
        if isinstance(table, Table):
            assert table.empty, name
        assert "python experiments/" in table._repr_html_(), name


def test_verdicts_of_the_record_by_hand(recorded: View) -> None:
    found = {verdict.claim.id: verdict for verdict in verdicts(recorded)}
    status = {claim: verdict.status for claim, verdict in found.items()}
    assert status["mechanisms"] is Status.PARTLY  # the background's interval reaches over its bound
    assert status["capacity"] is Status.REFUTED
    assert status["counterfactuals"] is Status.CONFIRMED
    assert status["invariance"] is Status.CONFIRMED
    assert status["d2_masks"] is Status.REFUTED
    assert status["cross_entropy"] is Status.CONFIRMED
    assert status["d3"] is Status.OPEN
    assert status["lambdas"] is Status.NO_RUN
    assert status["imagenet_mechanisms"] is Status.CONFIRMED
    assert found["imagenet_mechanisms"].label == "indicative on the miniature: points to it"
    # -15, -14, -15: mean -14.67 ± 4.303 * 0.5774 / sqrt(3)
    assert "shape steps to target, KL of the paper − no KL -14.7 [-16.1, -13.2], n=3" in found["kl_faster"].evidence
    assert len(found["cross_entropy"].run_ids) == 6
    assert found["cross_entropy"].scale == "quick, n=3, a teacher"


@pytest.mark.parametrize("permuted", [(0.104, 0.11), (0.646, 0.261)])
@pytest.mark.parametrize(("control", "holds", "status"), [(0.95, False, Status.REFUTED), (0.6, None, Status.OPEN)])
def test_table_1_is_judged_in_each_reading(
    tmp_path: Path,
    empty_store: Path,
    control: float,
    holds: bool | None,
    status: Status,
    permuted: tuple[float, float],
) -> None:
    """Where unmodified masks were not learned, noise that is not learned, or that helps, says nothing."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    store = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tags = {"profile": "quick", "dataset": "double_colored", "teacher": "a teacher", "stand_in": "false"}
    tags |= {"kind": "classifier", "when": "sampling", "init": "none", "strength": "paper", "teacher_sha256": "abc"}
    accuracies = {
        ("noise", "permuted"): permuted,
        ("noise", "unpermuted"): (0.999, 0.1),
        ("none", "permuted"): (control, 0.8),
        ("transparency", "permuted"): (0.88, 0.79),
    }
    cases = [
        {
            "experiment": "table1_shape_im",
            "name": f"{intervention} {labels} {seed}",
            "tags": {**tags, "intervention": intervention, "labels": labels, "seed": seed},
            "metrics": {"final/train_accuracy": train + seed / 1e4, "final/valid_accuracy": test + seed / 1e4},
        }
        for (intervention, labels), (train, test) in accuracies.items()
        for seed in range(3)
    ]
    add(store, cases)
    found = {verdict.claim.id: verdict for verdict in verdicts(View(store))}
    noise = found["table1_noise"]
    assert noise.status is status
    assert [each.holds for each in noise.findings] == [holds, True]
    assert [each.decides for each in noise.findings] == [True, False]
    assert f"train {permuted[0]}" in noise.evidence
    assert found["transparency_better"].status is Status.REFUTED
    assert found["table1_transparency"].status is Status.CONFIRMED
    assert found["table1_rotation"].status is Status.NO_RUN


def test_masks_with_kl_early_are_compared_with_those_without_it_late(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    store = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tags = {"profile": "quick", "dataset": "miniature", "teacher": "the miniature", "stand_in": "true"}
    tags |= {"kind": "student", "mechanism": "shape", "teacher_sha256": "abc"}
    masks = [
        {
            "experiment": "imagenet_kd",
            "name": f"{objective} {seed}",
            "tags": {**tags, "objective": objective, "seed": seed},
            "params": {"distill.steps": 300, "distill.texture_steps": "None"},
            "metrics": {"final/iou": 0.9},
            "history": {"heldout/iou": [[10, early + seed / 1e3], [230, late], [300, 0.9]]},
        }
        for objective, early, late in (("kl", 0.5, 0.8), ("no_kl", 0.1, 0.4))
        for seed in range(3)
    ]
    add(store, masks)
    found = {verdict.claim.id: verdict for verdict in verdicts(View(store))}["imagenet_kl_faster"]
    assert found.status is Status.CONFIRMED  # 0.5 after epoch 1 against 0.4 after epoch 23
    assert "+0.101 [" in found.evidence
    assert found.label == "indicative on the miniature: points to it"


# --- tables


def test_costs_sum_what_the_runs_took(recorded: View) -> None:
    costs = claims.costs(recorded).cells.set_index("experiment")
    assert costs.loc["mnist_kd", ["finished runs", "training", "hardware"]].tolist() == [9, "9.0 min", "a machine"]
    assert costs.loc["ood_robustness", "finished runs"] == 12


def test_markdown_links_what_is_there(recorded: View, tmp_path: Path) -> None:
    (tmp_path / "figure_11.png").touch()
    tally, blank, *lines = claims.markdown(recorded, tmp_path).splitlines()
    kinds = [verdict.label.split(":")[0] for verdict in verdicts(recorded)]
    assert tally.startswith(f"{len(paper.CLAIMS)} claims: ")
    assert f"{kinds.count('confirmed')} confirmed" in tally
    assert not blank
    assert len(lines) == len(paper.CLAIMS) + 2
    assert {line.count(" | ") for line in lines} == {4}
    noise = next(line for line in lines if "own outputs are noisy" in line)
    assert f"[figure 11]({tmp_path.as_posix()}/figure_11.png)" in noise
    assert "**✔ confirmed**" in noise
    assert not any("figure_12" in line for line in lines)


def test_html_marks_verdicts_and_links_places(recorded: View) -> None:
    page = claims.claims(recorded)._repr_html_()
    assert '<span class="verdict refuted">✘ refuted</span>' in page
    assert '<a href="#figure_11">figure 11</a>' in page
    assert "<code>python experiments/sweep_lambdas.py</code>" in page
    assert '<span class="verdict indicative-on-the-miniature">' in page


def test_criteria_and_deviations_are_complete() -> None:
    assert len(claims.criteria().cells) == len(paper.CLAIMS)
    assert claims.deviations().cells.notna().all(axis=None)
    for listing in (claims.criteria(), claims.deviations()):
        assert listing.to_latex().isascii()
