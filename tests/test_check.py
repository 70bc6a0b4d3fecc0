"""Reference results: what is exported, how exports add up, and whether a store agrees with them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from record import add, read

from analysis.frame.view import View
from analysis.report import check, export
from skdcgn.errors import InputError
from skdcgn.runs.store import Store, open_store

RECORD = [
    run
    for run in read(Path(__file__).parent / "golden" / "runs.json")
    if run["experiment"] in ("mnist_kd", "noise_pairing")
]


def rows(values: dict[str, list[float]], metric: str = "final/iou") -> pd.DataFrame:
    """Values of cases by seed, in the form of `check.values`."""
    return pd.DataFrame(
        [
            {"experiment": "e", "profile": "quick", "dataset": "d", "case": case, "seed": seed, "metric": metric}
            | {"value": value}
            for case, each in values.items()
            for seed, value in enumerate(each)
        ]
    )


def outcomes(ours: pd.DataFrame, reference: pd.DataFrame) -> dict[str, str]:
    return check.compare(ours, reference).set_index("case")["outcome"].to_dict()


# --- the rule


def test_the_interval_by_hand() -> None:
    # One comparison, on a logarithmic scale: t(4; 0.975) = 2.776, s = 1, n = 5, m = 1.
    reference = rows({"a": np.exp([-1.2649, -0.6325, 0, 0.6325, 1.2649]).tolist()})
    row = check.compare(rows({"a": [1.0]}), reference).iloc[0]
    assert row["mean"] == pytest.approx(1, abs=1e-4)
    assert np.log(row["high"]) == pytest.approx(2.776 * np.sqrt(1 / 5 + 1), abs=1e-3)
    assert np.log(row["low"]) == pytest.approx(-2.776 * np.sqrt(1 / 5 + 1), abs=1e-3)
    assert outcomes(rows({"a": [20.8]}), reference) == {"a": "agree"}
    assert outcomes(rows({"a": [21.1]}), reference) == {"a": "disagree"}


def test_negative_values_are_compared_on_their_own_scale() -> None:
    reference = rows({"a": [-1.0, 0.0, 1.0]})  # s = 1, t(2; 0.975) = 4.303
    row = check.compare(rows({"a": [0.0, 0.0, 0.0]}), reference).iloc[0]
    assert [row["low"], row["high"]] == pytest.approx([-4.303 * np.sqrt(2 / 3), 4.303 * np.sqrt(2 / 3)], abs=1e-3)


def test_spread_is_pooled_over_cases_but_never_less_than_a_cases_own() -> None:
    calm, wild = [0.80, 0.81, 0.82], [0.3, 0.5, 0.8]
    pooled = check.compare(rows({"calm": calm, "wild": wild}), rows({"calm": calm, "wild": wild})).set_index("case")
    alone = check.compare(rows({"calm": calm}), rows({"calm": calm})).set_index("case")
    width = np.log(pooled["high"] / pooled["low"])
    assert width["calm"] > np.log(alone["high"] / alone["low"])["calm"]
    assert width["wild"] > width["calm"]


def test_more_comparisons_make_wider_intervals() -> None:
    reference = rows({"a": [0.8, 0.81, 0.82], "b": [0.8, 0.81, 0.82]})
    one = check.compare(rows({"a": [0.8]}), reference).set_index("case")
    two = check.compare(rows({"a": [0.8], "b": [0.8]}), reference).set_index("case")
    assert two.loc["a", "high"] > one.loc["a", "high"]
    assert one.loc["b", "outcome"] == "missing"


def test_a_correct_reproduction_is_rarely_called_wrong() -> None:
    """Of 60 checks of 20 normal cases each, one in twenty may find something wrong."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        draw = {f"{case}": random.normal(10, 1, 6) for case in range(20)}
        reference = rows({case: values[:3].tolist() for case, values in draw.items()})
        ours = rows({case: values[3:].tolist() for case, values in draw.items()})
        wrong += "disagree" in outcomes(ours, reference).values()
    assert wrong <= 8  # binomial: 3 on average, more than this with a chance of 0.3 %


def test_counts_must_be_equal_and_single_seeds_say_nothing() -> None:
    reference = rows({"a": [72137.0] * 3}, "final/parameters")
    assert outcomes(rows({"a": [72137.0]}, "final/parameters"), reference) == {"a": "agree"}
    assert outcomes(rows({"a": [72140.0]}, "final/parameters"), reference) == {"a": "disagree"}
    one = rows({"a": [0.8]})
    assert outcomes(rows({"a": [0.7]}), one) == {"a": "too few seeds"}
    assert outcomes(rows({"a": [0.8]}), one) == {"a": "agree"}


def test_what_a_script_trained_itself_is_one_case_for_all_seeds() -> None:
    table = pd.DataFrame(
        {
            "profile": "quick",
            "dataset": "d",
            "source": ["CGN from scratch, noise, seed 0", "CGN from scratch, noise, seed 1"],
            "teacher": ["SKDCGN (run 0a1b2c3d)", "SKDCGN (run ffffffff)"],
            "seed": [0, 1],
            "final/iou": [0.1, 0.2],
            "overrides": "none",
        }
    )
    assert check.values({"e": table})["case"].unique().tolist() == ["CGN from scratch, noise, SKDCGN"]
    changed = table.assign(overrides=["none", "loss.kl=3"])
    assert check.values({"e": changed})["seed"].tolist() == [0]


# --- from store to folder to verdict


@pytest.fixture
def fill(tmp_path: Path, empty_store: Path) -> Callable[[list[dict[str, Any]]], Store]:
    """Make stores of records."""
    made = []

    def make(record: list[dict[str, Any]]) -> Store:
        database = tmp_path / f"{len(made)}" / "mlflow.db"
        database.parent.mkdir()
        shutil.copy(empty_store, database)
        made.append(open_store(f"sqlite:///{database}"))
        add(made[-1], record)
        return made[-1]

    return make


def altered(name: str, **metrics: float) -> list[dict[str, Any]]:
    """The record, with other metrics in one run."""
    return [run if run["name"] != name else {**run, "metrics": {**run["metrics"], **metrics}} for run in RECORD]


def code(store: Store, folder: Path, out: Path | None = None) -> int:
    try:
        check.main(check.Config(store.uri, folder, out))
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_store_agrees_with_its_own_export_and_not_with_a_tampered_one(
    fill: Callable[[list[dict[str, Any]]], Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reference"
    store = fill(RECORD)
    written = export.export(View(store), folder, figures=False)
    assert {path.name for path in written} >= {"mnist_kd.csv", "noise_pairing.csv"}
    assert code(store, folder, tmp_path / "comparison.csv") == 0
    said = capsys.readouterr().out
    assert "0 disagree" in said
    compared = pd.read_csv(tmp_path / "comparison.csv")
    assert set(compared["outcome"]) == {"agree"}
    assert not compared["metric"].str.startswith("cost/").any()

    slower = fill(altered("mnist_kd shape 0", **{"cost/train_seconds": 9999.0, "cost/latency_ms_batch_1": 99.0}))
    assert code(slower, folder) == 0
    assert code(fill(altered("mnist_kd shape 0", **{"final/iou": 0.8641})), folder) == 0  # within the interval
    capsys.readouterr()
    assert code(fill(altered("mnist_kd shape 0", **{"final/iou": 0.5})), folder) == 1
    said = capsys.readouterr().out
    assert "mnist_kd, quick, double_colored, student, skdcgn, shape, 6000, a teacher: final/iou is 0.7" in said
    assert "1 disagree" in said


def test_a_part_of_the_reference_is_enough_and_nothing_is_too_little(
    fill: Callable[[list[dict[str, Any]]], Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reference"
    export.export(View(fill(RECORD)), folder, figures=False)
    only = fill([run for run in RECORD if run["experiment"] == "noise_pairing"])
    assert code(only, folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("mnist_kd")).split()[-1] != "0"  # missing
    with pytest.raises(InputError, match="no finished run of anything in"):
        check.check(View(fill([])), folder)
    with pytest.raises(InputError, match="is no folder"):
        check.check(View(only), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no table of final metrics"):
        check.check(View(only), tmp_path / "empty")
    (tmp_path / "empty" / "broken.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no columns profile and dataset"):
        check.check(View(only), tmp_path / "empty")


def test_exports_of_several_stores_add_up(fill: Callable[[list[dict[str, Any]]], Store], tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    full = [{**run, "tags": {**run["tags"], "profile": "full"}} for run in RECORD if run["experiment"] == "mnist_kd"]
    export.export(View(fill(RECORD)), folder, figures=False)
    export.export(View(fill(full)), folder, figures=False)
    kept = export.read(folder / "mnist_kd.csv")
    assert kept.groupby("profile").size().to_dict() == {"full": 9, "quick": 9}
    again = fill(altered("mnist_kd shape 0", **{"final/iou": 0.7}))
    export.export(View(again), folder, ["mnist_kd"], figures=False)
    kept = export.read(folder / "mnist_kd.csv")
    assert kept.groupby("profile").size().to_dict() == {"full": 9, "quick": 9}
    assert kept.query("profile == 'quick' and mechanism == 'shape' and seed == 0")["final/iou"].item() == 0.7
    page = (folder / "README.md").read_text()
    assert "| `mnist_kd.csv` | full | double_colored | 9 | 0, 1, 2 | a teacher | a machine | 0123456 |" in page
    assert "`noise_pairing.csv`" in page


def test_rows_to_keep_say_where_they_come_from(fill: Callable[[list[dict[str, Any]]], Store], tmp_path: Path) -> None:
    again = {**RECORD[0], "name": "the same again", "metrics": {"final/iou": 0.1}}
    dirty = {**RECORD[1], "tags": {**RECORD[1]["tags"], "git_dirty": "true"}}
    store = fill([RECORD[0], dirty, again])
    table = export.rows_of(View(store), "mnist_kd")["mnist_kd"]
    assert table["final/iou"].tolist() == [0.1, 0.866]  # the newest of a case and seed
    assert table["commit"].tolist() == ["0123456789abcdef0123456789abcdef01234567", ""]
    assert table.columns.tolist()[:6] == ["profile", "dataset", "kind", "source", "mechanism", "steps"]
    assert table["steps"].tolist() == [6000, 6000]
    with pytest.raises(InputError, match="no finished run of kl_convergence"):
        export.export(View(store), tmp_path / "reference", ["kl_convergence"])
    with pytest.raises(InputError, match="no finished run of any experiment"):
        export.export(View(fill([])), tmp_path / "reference")
