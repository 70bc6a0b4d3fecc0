"""Regenerate the reference results from run stores: small CSV tables, a row a run, and the figures as PNG.

    python -m analysis.report.export                                     the local run store, into analysis/reference
    python -m analysis.report.export --store sqlite:////other/mlflow.db --output reference --only ood_robustness

Several stores go into one folder one after another: an export takes the place of the rows of the experiments, profiles
and data sets that its store has, and of the figures and tables that it can draw, and leaves all else. README.md of the
folder is rewritten and tells where every file comes from.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from analysis import sweeps
from analysis.frame import style, view
from analysis.frame.table import Listing
from analysis.frame.view import PROFILES, View
from analysis.report import gallery
from skdcgn import cli
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.runs.store import open_store

FOLDER = Path(__file__).resolve().parents[1] / "reference"

SCOPE = ("profile", "dataset")
"""Columns of every table that tell what one export replaces of it."""
PROVENANCE = ("teacher", "stand_in", "overrides", "hardware", "commit")
"""Columns of every table that say where a row comes from."""


# Tags that say how a run came about rather than what it is.
_NO_CASE = {"identity", "dependencies", "host", "lease", "heartbeat", "begun", "forced", "torch", "git_dirty", "paper"}
_NO_CASE |= {"teacher_sha256", "seed", "error"}
_NO_CASE |= {"images", "real_images", "origin_run", "origin_store"}

_SEARCHED = {"trial", "confirmation"}  # kinds of the runs of a search

_INTRODUCTION = """# Reference results

The results of our own runs, small enough to keep: one row for each run (or each trial of a search), and the figures
and tables drawn from them. `python -m analysis.report.export --store URI` writes this folder, this page included;
`python -m analysis.report.check` compares a run store of yours with it. The columns `final/*` are a run's final
metrics. `cost/train_seconds` is the wall time of its training, on machines that may have done other work meanwhile.
`commit` is the code that made it, and is blank where the working tree differed from every commit.

"""


@dataclass(frozen=True)
class Config:
    """What to export, and where to."""

    output: Path = FOLDER
    """Folder for the tables and figures."""
    store: str | None = None
    """MLflow tracking URI of the run store; by default MLFLOW_TRACKING_URI, or else the local store."""
    only: tuple[str, ...] = ()
    """Experiments to export; all of the store by default, with the figures."""
    figures: bool = True
    """Draw figures and tables too."""


def table(results: pd.DataFrame) -> pd.DataFrame:
    """Return results as rows to keep: the newest run for each case and seed.

    Args:
        results: from `View.results`.

    Returns:
        Columns profile, dataset, kind, the tags that tell cases apart, mechanism, steps (of a student's training),
        seed, `final/*`, `cost/train_seconds`, teacher, stand_in, overrides, hardware, commit; those with nothing in
        them are left out.
    """
    known = {"run_id", "name", "start_time", "kind", "mechanism", *SCOPE, *PROVENANCE, *_NO_CASE}
    cases = sorted(column for column in results if column not in known and "/" not in column)
    metrics = sorted(column for column in results if column.startswith("final/"))
    keys = [*SCOPE, "kind", *cases, "mechanism", "steps", "seed"]
    results = results.assign(steps=[_steps(run) for _, run in results.iterrows()])
    newest = results.sort_values("start_time", ascending=False, kind="stable")
    rows = newest.drop_duplicates([*keys, "teacher", "overrides"]).reindex(
        columns=[*keys, *metrics, "cost/train_seconds", *PROVENANCE]
    )
    rows[metrics] = rows[metrics].map(lambda value: value if value.is_integer() else float(f"{value:.6g}"))
    rows["cost/train_seconds"] = rows["cost/train_seconds"].round(2)
    return rows.sort_values(keys, kind="stable").reset_index(drop=True).dropna(axis="columns", how="all")


def _steps(run: pd.Series) -> int | None:
    """Return the number of training steps of a student; None for other runs."""
    return view.steps(run) if pd.notna(run.get("param/distill.steps")) and pd.notna(run["mechanism"]) else None


def search_tables(shown: View, experiment: str) -> dict[str, pd.DataFrame]:
    """Return what a search found, at every profile: its trials, and settings on fresh seeds, by file name.

    Args:
        shown: the runs.
        experiment: the search.
    """
    trials, confirmed, runs_by_id = [], [], shown.results(experiment).set_index("run_id")
    for profile in PROFILES:
        found = sweeps.find(View(shown.store, profile), experiment)
        if found is None:
            continue
        tags = found.study.tags
        scope = {"profile": profile, "dataset": tags["dataset"], "mechanism": tags["mechanism"]}
        origin = {**tags, "commit": view.commit(tags)}
        origin = {key: origin.get(key, "") for key in PROVENANCE}
        rows = found.trials.drop(columns=["response", "run_id"])
        trials.append(rows.assign(**scope, kind="trial", study=found.study.name, **origin))
        if found.confirmed is not None:
            rows = found.confirmed.rename(columns={found.metric: f"final/{found.metric}"})
            rows = rows[rows["run_id"].isin(runs_by_id.index)]  # without runs that were deleted since
            steps = [view.steps(runs_by_id.loc[run_id]) for run_id in rows.pop("run_id")]
            rows.insert(rows.columns.get_loc("seed"), "steps", steps)
            confirmed.append(rows.assign(**scope, kind="confirmation", **origin))
    first = [*SCOPE, "kind", "mechanism"]
    tables = {experiment: trials, f"{experiment}_confirmation": confirmed}
    joined = {name: pd.concat(parts) for name, parts in tables.items() if parts}
    return {name: rows[[*first, *rows.columns.difference(first, sort=False)]] for name, rows in joined.items()}


def rows_of(shown: View, experiment: str) -> dict[str, pd.DataFrame]:
    """Return an experiment's rows to keep, by file name; nothing where it has no results."""
    results = shown.results(experiment)
    if results.empty:
        return {}
    searched = results["kind"].isin(_SEARCHED).any()
    return search_tables(shown, experiment) if searched else {experiment: table(results)}


def export(shown: View, output: Path, only: Iterable[str] = (), figures: bool = True) -> list[Path]:
    """Write what a store has into a folder of reference results; return the files.

    Args:
        shown: the runs.
        output: the folder.
        only: experiments; all by default.
        figures: whether to draw figures and tables.

    Raises:
        InputError: the store has no finished run, or none of an experiment that is asked for.
    """
    present = shown.experiments()
    for name in only or ("any experiment",) * (not present):
        if name not in present:
            has = ", ".join(present) or "nothing"
            raise InputError(f"the store {shown.store.uri} has no finished run of {name} (it has {has}): run it first.")
    written = []
    for experiment in only or present:
        for name, rows in rows_of(shown, experiment).items():
            written.append(_merge(rows, output / f"{name}.csv"))
        written += _best(shown, experiment, output)
    if figures:
        written += _draw(shown, output)
    with atomic_path(output / "README.md") as temporary:
        temporary.write_text(readme(output), encoding="utf-8")
    return written


def _merge(rows: pd.DataFrame, path: Path) -> Path:
    """Write rows, and those of an older file whose profile and data set the new ones do not have."""
    if path.exists():
        old = read(path)
        kept = old.merge(rows[list(SCOPE)].drop_duplicates(), how="left", indicator=True)["_merge"] == "left_only"
        if kept.any():
            rows = pd.concat([rows, old[kept.to_numpy()]]).sort_values(list(SCOPE), kind="stable")
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)
    return path


def read(path: Path) -> pd.DataFrame:
    """Read a table of results: numbers in `seed` and where a column's name has a slash, text elsewhere.

    Raises:
        InputError: it is none.
    """
    try:
        rows = pd.read_csv(path, dtype=str)
        numbers = [column for column in rows if column == "seed" or "/" in column]
        rows[numbers] = rows[numbers].apply(pd.to_numeric)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a table ({error}): export it again with analysis.report.export."
        ) from None
    if not {*SCOPE} <= set(rows):
        raise InputError(f"{path} has no columns {' and '.join(SCOPE)}: it is no table of runs.")
    return rows


def _best(shown: View, experiment: str, output: Path) -> list[Path]:
    """Keep the best setting of a search, as the file that other experiments take."""
    found = sweeps.find(shown, experiment)
    if found is None or found.confirmed is None:
        return []
    path = output / f"{experiment}_best.yaml"
    with shown.store.artifact(found.study.run_id, "best.yaml") as best, atomic_path(path) as temporary:
        temporary.write_bytes(best.read_bytes())
    return [path]


def _draw(shown: View, output: Path) -> list[Path]:
    """Write every figure and table that the store has runs for."""
    written = []
    for draw in gallery.FIGURES.values():
        for name, figure in draw(shown).items():
            if not style.is_gap(figure):
                style.save_small(figure, output / f"{name}.png")
                written.append(output / f"{name}.png")
    for name, make in gallery.TABLES.items():
        made = make(shown)
        if not made.empty:
            with atomic_path(output / f"{name}.csv") as temporary:
                made.cells.to_csv(temporary, index=False)
            written.append(output / f"{name}.csv")
    return written


def readme(folder: Path) -> str:
    """Return the page of a folder of reference results: what each file is, and where its rows come from."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        if path.stem in gallery.TABLES:
            continue
        for (profile, dataset), part in read(path).groupby(list(SCOPE)):
            rows.append({"file": f"`{path.name}`", "profile": profile, "dataset": dataset, "rows": len(part)})
            rows[-1] |= {"seeds": _listed(part, "seed"), "teacher": _listed(part, "teacher")}
            rows[-1] |= {"hardware": _listed(part, "hardware"), "commit": _listed(part, "commit", 7)}
    others = {
        "Best settings of searches, for `--config`": folder.glob("*_best.yaml"),
        "Tables of the report, a row a cell": (folder / f"{name}.csv" for name in gallery.TABLES),
        "Figures": folder.glob("*.png"),
    }
    lists = [
        f"{title}: {', '.join(f'`{path.name}`' for path in sorted(paths) if path.exists())}."
        for title, paths in others.items()
    ]
    listing = Listing("", pd.DataFrame(rows)).to_markdown()
    return _INTRODUCTION + listing + "\n\n" + "\n\n".join(lists) + "\n"


def _listed(rows: pd.DataFrame, column: str, length: int | None = None) -> str:
    """Name the values of a column."""
    if column not in rows:
        return ""
    return ", ".join(sorted({str(value)[:length] for value in rows[column].dropna()}))


def main(config: Config) -> None:
    """Export, and say what was written."""
    written = export(View(open_store(config.store)), config.output, config.only, config.figures)
    print(f"{len(written)} files in {config.output}", file=sys.stderr)


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, prog="python -m analysis.report.export", description=__doc__)))
