"""Compare a run store with the reference results: does a reproduction agree with ours?

    python -m analysis.report.check                                  the local run store, against analysis/reference
    python -m analysis.report.check --store sqlite:////other/mlflow.db --out comparison.csv

Compared are the final metrics of finished runs, averaged over seeds, for each experiment, profile, data set, teacher
and case, where both sides ran the script at its profile's own settings. Costs are not.

The rule: a mean agrees where it lies in the prediction interval of the reference, mean ± t s √(1/n + 1/m), with n and
m the seeds of reference and store. Three seeds say little about their own spread, so s is the larger of the case's own
and of that pooled over all cases of the experiment, profile and metric, on a logarithmic scale where all values are
positive; t has the pooled degrees of freedom. All K comparisons are made at once, each at the level 0.05 / K: a correct
reproduction is called a disagreement in one of twenty checks, not in one of twenty numbers. The intervals are wide, and
find what is wrong, not what is a little different. A metric that never varies, such as a number of parameters, must be
equal.

Exit code: 0 all that can be compared agrees; 1 something disagrees; 2 there is nothing to compare, or bad input.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from scipy import stats

from analysis.frame.view import View
from analysis.report import export, gallery
from skdcgn import cli
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.runs.store import open_store

LEVEL = 0.05
"""Of the whole check."""

_OWN = r",? seed \d+| \(run \w+\)"  # in names of what a script trained itself
_COSTS = ("per_second", "seconds", "latency", "megabytes")  # in the names of final metrics that depend on the machine
_ROUNDING = 1e-5  # relative: what six digits in the tables leave
_NO_CASE = ("seed", "hardware", "commit", "stand_in", "overrides", "run_id")
_GROUP = ["experiment", *export.SCOPE]
_OUTCOMES = ["agree", "disagree", "too few seeds", "missing"]


@dataclass(frozen=True)
class Config:
    """What to compare with what."""

    store: str | None = None
    """MLflow tracking URI of the run store; by default MLFLOW_TRACKING_URI, or else the local store."""
    reference: Path = export.FOLDER
    """Folder of reference results, as `analysis.report.export` writes them."""
    out: Path | None = None
    """CSV file for every single comparison."""


def values(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return final metrics in the long form: columns experiment, profile, dataset, case, metric, seed, value.

    Runs that override settings of their profile are left out.

    Args:
        tables: rows as `export.table` makes them, by experiment.
    """
    parts = []
    for name, rows in tables.items():
        metrics = [c for c in rows if c.startswith("final/") and not any(cost in c for cost in _COSTS)]
        if not metrics or "seed" not in rows:
            continue
        if "overrides" in rows:
            rows = rows[rows["overrides"].fillna("none").isin(["none", ""])]
        keys = [c for c in rows if "/" not in c and c not in (*export.SCOPE, *_NO_CASE)]
        case = rows[keys].fillna("").astype(str).agg(lambda row: ", ".join(filter(None, row)), axis=1)
        case = case.str.replace(_OWN, "", regex=True)
        long = rows.assign(experiment=name, case=case).melt([*_GROUP, "case", "seed"], metrics, "metric")
        parts.append(long.dropna(subset="value"))
    columns = [*_GROUP, "case", "seed", "metric", "value"]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def compare(ours: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Compare the means of a store with those of the reference; see the module's docstring for the rule.

    Args:
        ours: from `values`.
        reference: likewise.

    Returns:
        A row for each case and metric of the reference: its n, mean, low, high (what a mean of ours should lie in),
        our n and mean (`ours_n`, `ours`), and the outcome. Means are geometric where all values are positive.
    """
    metric = [*_GROUP, "metric"]
    cases = ours.groupby([*metric, "case"]).groups.keys() & reference.groupby([*metric, "case"]).groups.keys()
    level = LEVEL / max(1, len(cases))
    mine = dict(list(ours.groupby(metric)))
    rows = [
        dict(zip(metric, key, strict=True)) | row
        for key, theirs in reference.groupby(metric)
        for row in _compare_metric(theirs, mine.get(key, ours.iloc[:0]), level)
    ]
    columns = [*metric, "case", "n", "mean", "low", "high", "ours_n", "ours", "outcome"]
    return pd.DataFrame(rows, columns=columns)


def _compare_metric(theirs: pd.DataFrame, ours: pd.DataFrame, level: float) -> Iterator[dict[str, object]]:
    """Compare the cases of one metric of an experiment, profile and data set."""
    positive = bool((theirs["value"] > 0).all() and (ours["value"] > 0).all())
    forth, back = (np.log, np.exp) if positive else (np.asarray, np.asarray)
    reference, found = ({case: forth(rows["value"]) for case, rows in side.groupby("case")} for side in (theirs, ours))
    freedom = sum(len(values) - 1 for values in reference.values())
    squares = sum(((values - values.mean()) ** 2).sum() for values in reference.values())
    pooled = np.sqrt(squares / freedom) if freedom else np.nan
    quantile = stats.t.isf(level / 2, freedom) if freedom else np.nan
    for case, values in reference.items():
        n, mean = len(values), values.mean()
        row = {"case": case, "n": n, "mean": float(back(mean)), "ours_n": 0, "outcome": "missing"}
        if case in found:
            m, difference = len(found[case]), abs(found[case].mean() - mean)
            spread = max(pooled, values.std(ddof=1)) if n > 1 else pooled
            half = quantile * spread * np.sqrt(1 / n + 1 / m)
            rounding = _ROUNDING * (1 if positive else abs(mean))
            if difference <= rounding:
                outcome = "agree"
            elif not freedom:
                outcome = "too few seeds"
            else:
                outcome = "agree" if difference <= half + rounding else "disagree"
            row |= {"low": float(back(mean - half)), "high": float(back(mean + half)), "ours_n": m}
            row |= {"ours": float(back(found[case].mean())), "outcome": outcome}
        yield row


def check(shown: View, folder: Path) -> pd.DataFrame:
    """Compare a store with a folder of reference results; see `compare`.

    Raises:
        InputError: the folder holds no reference results, or the store nothing of what they hold.
    """
    if not folder.is_dir():
        raise InputError(f"--reference {folder} is no folder: make one with analysis.report.export.")
    kept = {path.stem: export.read(path) for path in sorted(folder.glob("*.csv")) if path.stem not in gallery.TABLES}
    reference = values(kept)
    if reference.empty:
        raise InputError(
            f"--reference {folder} holds no table of final metrics: make some with analysis.report.export."
        )
    tables: dict[str, pd.DataFrame] = {}
    for experiment in shown.experiments():
        tables |= export.rows_of(shown, experiment)
    compared = compare(values(tables), reference)
    if (compared["outcome"] == "missing").all():
        raise InputError(
            f"the store {shown.store.uri} has no finished run of anything in {folder}: run an experiment first."
        )
    return compared


def report(compared: pd.DataFrame) -> str:
    """Say what agrees, in lines: counts for each experiment, profile and data set, then every disagreement."""
    counts = compared.groupby(_GROUP)["outcome"].value_counts().unstack(fill_value=0)
    lines = [counts.reindex(columns=_OUTCOMES, fill_value=0).rename_axis(columns=None).to_string()]
    wrong = compared[compared["outcome"] == "disagree"]
    for _, row in wrong.iterrows():
        where = ", ".join(filter(None, [row["experiment"], row["profile"], row["dataset"], row["case"]]))
        lines.append(
            f"{where}: {row['metric']} is {row['ours']:.4g} (n={row['ours_n']}), the reference {row['mean']:.4g} "
            f"(n={row['n']}), which allows {row['low']:.4g} to {row['high']:.4g}"
        )
    compared_count = compared["outcome"].isin(["agree", "disagree"]).sum()
    lines.append(
        f"{compared_count} means compared: {len(wrong)} disagree, with a chance of {LEVEL:.0%} that any would where "
        "nothing is wrong."
    )
    return "\n".join(lines)


def main(config: Config) -> None:
    """Compare, print, and exit with 1 where something disagrees."""
    compared = check(View(open_store(config.store)), config.reference)
    if config.out is not None:
        with atomic_path(config.out) as temporary:
            compared.to_csv(temporary, index=False)
    print(report(compared))
    if (compared["outcome"] == "disagree").any():
        raise SystemExit(1)


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, prog="python -m analysis.report.check", description=__doc__)))
