"""The run store as pandas tables, and the choice of the runs that a figure or table shows."""

from collections.abc import Mapping, Sequence

import pandas as pd

from skdcgn.errors import InputError
from skdcgn.runs.store import Store

MNIST_KD = "mnist_kd"
"""The experiment that distils the MNIST mechanisms."""

PROFILES = ("full", "paper", "quick", "smoke")
"""Profiles in the order in which a figure prefers them: our best answer, the published setting, a first look, tests."""

_DATASETS = {
    "double_colored": "double-colored MNIST",
    "colored": "colored MNIST",
    "wildlife": "Wildlife MNIST",
    "digits": "scikit-learn digits",
    "imagenet": "ImageNet",
    "miniature": "miniature",
}

_DEFAULT_DATASETS = ("double_colored", "miniature", "imagenet")  # scripts take them of themselves, by profile
_DATASET_FLAGS = {"ood_robustness": "--datasets"}

_TAGS = (
    "profile",
    "overrides",
    "dataset",
    "mechanism",
    "seed",
    "teacher",
    "teacher_sha256",
    "stand_in",
    "hardware",
    "code_version",
)
_PARENT = "mlflow.parentRunId"
_COMMIT = "mlflow.source.git.commit"


# Parameters that may differ between runs of one setting: the seed, and where and how a run executes.
_NO_SETTING = ("param/seed", "param/training.seed", "param/teacher", "param/runtime.")


def finished_runs(store: Store, experiment: str) -> pd.DataFrame:
    """Return the finished child runs of an experiment, newest first: one run, one row.

    Columns: `run_id`, `name`, `start_time`, `parent` (a run id); `commit` of the code, blank where the working tree
    differed from it; every tag under its own name, `seed` as an integer and `stand_in` as a boolean; metrics `final/*`
    and `cost/*` as floats; parameters as text under `param/*`. The columns that choices are made by exist even where
    there are no runs.
    """
    runs = _finished(store, experiment)
    return runs[runs["parent"].notna()].reset_index(drop=True)


def finished_groups(store: Store, experiment: str) -> pd.DataFrame:
    """Return the finished parent runs, each of which stands for one start of a script; see `finished_runs`."""
    runs = _finished(store, experiment)
    return runs[runs["parent"].isna()].reset_index(drop=True)


def results(store: Store, experiment: str) -> pd.DataFrame:
    """Return the finished runs that measured something: those with none below them; see `finished_runs`."""
    runs = _finished(store, experiment)
    measured = runs.filter(like="final/").notna().any(axis=1)
    return runs[measured & ~runs["run_id"].isin(runs["parent"])].reset_index(drop=True)


def experiments(store: Store) -> list[str]:
    """Return the names of the experiments that have a finished run, sorted."""
    names = sorted(experiment.name for experiment in store.client.search_experiments())
    return [name for name in names if store.search(name, "attributes.status = 'FINISHED'")]


def _finished(store: Store, experiment: str) -> pd.DataFrame:
    rows = []
    for run in store.search(experiment, "attributes.status = 'FINISHED'"):
        tags, metrics = run.data.tags, run.data.metrics
        rows.append(
            {"run_id": run.info.run_id, "name": run.info.run_name, "parent": tags.get(_PARENT)}
            | {"start_time": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC")}
            | {"commit": commit(tags)}
            | {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
            | {key: float(value) for key, value in metrics.items() if key.startswith(("final/", "cost/"))}
            | {f"param/{key}": value for key, value in run.data.params.items()}
        )
    columns = ["run_id", "name", "parent", "start_time", "commit", *_TAGS]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*columns, *(column for column in frame.columns if column not in columns)])
    frame["seed"] = pd.to_numeric(frame["seed"]).astype("Int64")
    frame["stand_in"] = frame["stand_in"] == "true"
    return frame


def commit(tags: Mapping[str, str]) -> str:
    """Return the commit of the code that made a run, by the run's tags; blank where the working tree differed."""
    return tags.get(_COMMIT, "") if tags.get("git_dirty") == "false" else ""


def metric_history(store: Store, run_id: str, keys: Sequence[str]) -> pd.DataFrame:
    """Return the logged values of some metrics of a run: columns `key`, `step`, `value`, ordered by key and step.

    Args:
        store: the run store.
        run_id: the run.
        keys: metric names; one that ends in `/` stands for all metrics of that prefix.
    """
    logged = sorted(store.client.get_run(run_id).data.metrics)
    rows = [
        (key, metric.step, metric.timestamp, metric.value)
        for key in logged
        if any(key == wanted or (wanted.endswith("/") and key.startswith(wanted)) for wanted in keys)
        for metric in store.client.get_metric_history(run_id, key)
    ]
    history = pd.DataFrame(rows, columns=["key", "step", "timestamp", "value"])
    history = history.sort_values(["key", "step", "timestamp"], kind="stable")
    # A run that was killed and continued may have logged a step twice: the later value is the one that counts.
    return history.drop_duplicates(["key", "step"], keep="last").drop(columns="timestamp").reset_index(drop=True)


def latest(runs: pd.DataFrame, dataset: str, mechanism: str, profile: str | None = None) -> pd.DataFrame:
    """Choose the runs of a dataset and mechanism that a figure or table shows; see `newest`."""
    return newest(runs, {"dataset": dataset, "mechanism": str(mechanism)}, profile)


def newest(runs: pd.DataFrame, tags: Mapping[str, str], profile: str | None = None) -> pd.DataFrame:
    """Choose the runs that a figure or table shows: the newest finished one for each seed, ordered by seed.

    All of them are runs of one setting: where a script was run with several (other steps, other loss weights, another
    teacher), only those count that agree with the newest run at the profile's own settings, so that no interval is
    taken over unlike things.

    Args:
        runs: from `finished_runs`.
        tags: what tells the case apart, such as dataset and mechanism.
        profile: value of the tag; by default the first of `PROFILES` that has a run.

    Returns:
        Rows of `runs`; none where no run fits.

    Raises:
        InputError: there is no such profile.
    """
    if not set(tags) <= set(runs.columns):
        return runs.iloc[:0]
    chosen = widest(runs[(runs[list(tags)] == pd.Series(tags)).all(axis=1)], profile)
    if chosen.empty:
        return chosen
    # A trial with other settings does not take the place of the profile's own ones.
    chosen = chosen.assign(changed=chosen["overrides"].notna() & (chosen["overrides"] != "none"))
    chosen = chosen.sort_values(["changed", "start_time"], ascending=[True, False], kind="stable")
    setting = ["teacher_sha256", *(c for c in chosen if c.startswith("param/") and not c.startswith(_NO_SETTING))]
    first = chosen[setting].iloc[0]
    same = chosen[setting].eq(first) | (chosen[setting].isna() & first.isna())
    return (
        chosen[same.all(axis=1)]
        .drop(columns="changed")
        .drop_duplicates("seed")
        .sort_values("seed")
        .reset_index(drop=True)
    )


def widest(runs: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """Return the runs of a profile, by default of the first of `PROFILES` that has any.

    Raises:
        InputError: there is no such profile.
    """
    if profile not in (None, *PROFILES):
        raise InputError(f"there is no profile {profile!r}: choose one of {', '.join(PROFILES)}.")
    present = [profile] if profile else [name for name in PROFILES if (runs["profile"] == name).any()]
    return runs[runs["profile"] == present[0]] if present else runs.iloc[:0]


def main_dataset(store: Store, experiment: str = MNIST_KD) -> str:
    """Return the dataset that the notebooks show: the paper's, unless an experiment was run on a stand-in only."""
    finished = store.search(experiment, "attributes.status = 'FINISHED'")
    datasets = {run.data.tags["dataset"] for run in finished if "dataset" in run.data.tags}
    if datasets in ({"digits"}, {"miniature"}):
        return datasets.pop()
    return "imagenet" if "imagenet" in datasets else "double_colored"


def steps(run: pd.Series) -> int:
    """Return the number of training steps of a run that trains a student."""
    own = run.get("param/distill.texture_steps", "None")
    return int(run["param/distill.steps"] if own == "None" or run["mechanism"] == "shape" else own)


def command(
    script: str, dataset: str = "double_colored", mechanism: str | None = None, profile: str | None = None
) -> str:
    """Return the command that makes missing runs; flags that are the script's defaults are left out."""
    flags = {
        "--profile": profile if profile != "quick" else None,
        _DATASET_FLAGS.get(script, "--dataset"): dataset if dataset not in _DEFAULT_DATASETS else None,
        "--mechanism": mechanism,
    }
    given = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
    return " ".join([f"python experiments/{script}.py", *given])


def dataset_title(dataset: str) -> str:
    """Return what a title calls a dataset of `mnist_kd`.

    Raises:
        InputError: there is no such dataset.
    """
    if dataset not in _DATASETS:
        raise InputError(f"there is no dataset {dataset!r}: choose one of {', '.join(_DATASETS)}.")
    return _DATASETS[dataset]


def stand_in_note(run: pd.Series) -> str:
    """Say, for a title, in what way a run is less than the paper's experiment; empty where it is not."""
    notes = []
    if run["dataset"] == "digits":
        notes.append("stand-in: not MNIST, and a teacher trained here")
    elif run["dataset"] == "miniature":
        notes.append("stand-in: a miniature at 32x32, not ImageNet")
    elif run["stand_in"]:
        notes.append("stand-in teacher")
    if run["profile"] == "smoke":
        notes.append("smoke test, a few training steps")
    return "; ".join(notes)
