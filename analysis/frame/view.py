"""One view of a run store: its runs as pandas tables, and the choice of those that a figure or table shows."""

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import cache

import pandas as pd
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.runs.provenance import COMMIT
from skdcgn.runs.store import RunRecord, Store

PROFILES = ("full", "paper", "quick", "smoke")
"""Profiles in the order in which a figure prefers them: our best answer, the published setting, a first look, tests."""

EPOCHS = 30
"""Of the paper's trainings, by which its figures count."""

_DATASETS = {
    "double_colored": "double-colored MNIST",
    "colored": "colored MNIST",
    "wildlife": "Wildlife MNIST",
    "digits": "scikit-learn digits",
    "imagenet": "ImageNet",
    "miniature": "miniature",
}

_IMAGENET = {"imagenet", "miniature"}

_DEFAULT_DATASETS = ("double_colored", "miniature", "imagenet")  # of scripts, depending on the profile

_SEVERAL = "ood_robustness"  # takes several datasets, at the wider profiles by default

_TAGS = ("kind", "profile", "overrides", "dataset", "mechanism", "seed")
_ORIGIN_TAGS = ("teacher", "teacher_sha256", "stand_in", "hardware")

# Parameters that make a setting: all but the seeds, the teacher (known by its hash), and where and how a run executes.
_SETTING = re.compile(r"param/(?!teacher|runtime\.|(.*\.)?seed$)")


class View:
    """The runs of a store, read once, and the choice of those that stand for something."""

    def __init__(self, store: Store, profile: str | None = None, dataset: str | None = None) -> None:
        """Describe what to look at.

        Args:
            store: the run store.
            profile: of the runs; by default, for each choice, the first of `PROFILES` that has any.
            dataset: of the experiments; by default the paper's, or a stand-in where nothing else was run. One of MNIST
                does not apply to experiments that were run on ImageNet or its miniature, nor the other way round.

        Raises:
            InputError: there is no such profile or dataset.
        """
        if profile not in (None, *PROFILES):
            raise InputError(f"there is no profile {profile!r}: choose one of {', '.join(PROFILES)}.")
        if dataset is not None:
            dataset_title(dataset)
        self.store, self.profile = store, profile
        self._dataset = dataset
        # Reading a store takes seconds, and many figures ask for the same experiment.
        self.finished = cache(self._finished)
        self.dataset = cache(self._shown_dataset)

    def experiments(self) -> list[str]:
        """Return the names of the experiments that have a finished run, sorted."""
        return [name for name in self.store.experiments() if not self.finished(name).empty]

    def _shown_dataset(self, experiment: str) -> str:
        """Return the dataset that figures and tables of an experiment show."""
        present = set(self.finished(experiment)["dataset"].dropna())
        if self._dataset and (not present or (self._dataset in _IMAGENET) == (present <= _IMAGENET)):
            return self._dataset
        if present in ({"digits"}, {"miniature"}):
            return present.pop()
        return "imagenet" if "imagenet" in present else "double_colored"

    def _finished(self, experiment: str) -> pd.DataFrame:
        """Return the finished runs of an experiment, newest first: one run, one row.

        Columns: `run_id`, `name`, `start_time`; `commit` of the code, blank where the working tree differed from it;
        every tag under its own name, `seed` as an integer and `stand_in` as a boolean; metrics `final/*` and `cost/*`
        as floats; parameters as text under `param/*`. The columns that choices are made by exist even without runs.
        """
        rows = [
            {"run_id": run.run_id, "name": run.name, "start_time": run.start_time, "commit": commit(run.tags)}
            | {key: value for key, value in run.tags.items() if not key.startswith("mlflow.")}
            | {key: value for key, value in run.metrics.items() if key.startswith(("final/", "cost/"))}
            | {f"param/{key}": value for key, value in run.params.items()}
            for run in self.store.runs(experiment, status="FINISHED")
        ]
        columns = ["run_id", "name", "start_time", "commit", *_TAGS, *_ORIGIN_TAGS]
        frame = pd.DataFrame(rows)
        frame = frame.reindex(columns=[*columns, *(column for column in frame.columns if column not in columns)])
        frame["seed"] = pd.to_numeric(frame["seed"]).astype("Int64")
        frame["stand_in"] = frame["stand_in"] == "true"
        # As one block of objects: pandas keeps each column of text apart, and rows of a hundred take long to choose.
        return frame.astype(dict.fromkeys(frame.select_dtypes("str"), object)).copy()

    def results(self, experiment: str) -> pd.DataFrame:
        """Return the finished runs that measured something, trials of a search included; see `finished`."""
        runs = self.finished(experiment)
        return runs[runs.filter(like="final/").notna().any(axis=1)].reset_index(drop=True)

    def chosen(
        self,
        experiment: str,
        by: Mapping[str, Iterable[str] | None] | None = None,
        alike: str = "",
        **tags: str,
    ) -> pd.DataFrame:
        """Choose the runs that a figure or table shows: for each case the newest finished one of each seed.

        All cases are of one profile. All runs of a case are of one setting: where a script was run with several (other
        steps, other loss weights, another teacher), only those count that agree with the newest run at the profile's
        own settings, so that no interval is taken over unlike things.

        Args:
            experiment: whose runs.
            by: columns that tell cases apart, with their values in order; None stands for all values that there are.
            alike: pattern of the names of those parameters that cases must share if only the last column of `by` tells
                them apart.
            tags: what all runs have in common, such as `kind` and `mechanism`; `dataset` is that of `self.dataset`.

        Returns:
            Rows of `finished`, ordered by case, then by seed; none where no run fits.
        """
        finished, by = self.finished(experiment), by or {}
        tags = {"dataset": self.dataset(experiment), **tags}
        if not {*tags, *by} <= set(finished.columns):
            return finished.iloc[:0].reindex(columns=list(dict.fromkeys([*finished.columns, *tags, *by])))
        found = where(finished, tags)
        cases = {
            column: list(found[column].dropna().unique() if names is None else names) for column, names in by.items()
        }
        for column, names in cases.items():
            found = found[found[column].isin(names)]
        found = self._widest(found)
        if alike and len(found):
            outer = list(cases)[:-1]
            groups = [rows for _, rows in found.groupby(outer, sort=False)] if outer else [found]
            found = pd.concat([_alike(rows, alike) for rows in groups])
        of_case = dict(list(found.groupby(list(cases), sort=False))) if cases else {(): found}
        parts = [of_case[case] for case in itertools.product(*cases.values()) if case in of_case]
        parts = [_of_one_setting(rows).drop_duplicates("seed").sort_values("seed") for rows in parts if len(rows)]
        return pd.concat(parts, ignore_index=True) if parts else found.iloc[:0]

    def only(self, experiment: str, **tags: str) -> pd.Series | None:
        """Return the one run of a case that a sheet of images shows: that of the lowest seed, not the best one."""
        shown = self.chosen(experiment, **tags)
        return None if shown.empty else shown.iloc[0]

    def records(self, experiment: str, **tags: str) -> list[RunRecord]:
        """Return runs of any status, such as searches, all of the widest profile.

        Those at their profile's own settings come before those that override some; then newest first.
        """
        runs = self.store.runs(experiment, **tags)
        wanted = [self.profile] if self.profile else PROFILES
        for profile in wanted:
            found = [run for run in runs if run.tags.get("profile") == profile]
            if found:
                return sorted(found, key=lambda run: run.tags.get("overrides", "none") != "none")
        return []

    def _widest(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return the runs of the view's profile, or of the first of `PROFILES` that has any."""
        wanted = [self.profile] if self.profile else [name for name in PROFILES if (runs["profile"] == name).any()]
        return runs[runs["profile"] == wanted[0]] if wanted else runs.iloc[:0]

    def history(self, shown: pd.DataFrame, *keys: str) -> pd.DataFrame:
        """Return the logged values of some metrics, ordered by run, key and step.

        Args:
            shown: runs, from `chosen`.
            keys: metric names; one that ends in `/` stands for all metrics of that prefix.

        Returns:
            Columns `key`, `step`, `value`, and those of `shown` that are tags of the run, `run_id` and `seed` included.
        """
        rows = []
        for run_id in shown["run_id"]:
            logged = sorted(self.store.record(run_id).metrics)
            wanted = [key for key in logged if key in keys or key.startswith(tuple(k for k in keys if k.endswith("/")))]
            rows += [(run_id, key, step, value) for key in wanted for step, value in self.store.history(run_id, key)]
        history = pd.DataFrame(rows, columns=["run_id", "key", "step", "value"])
        return history.merge(shown[[column for column in shown if "/" not in column]], on="run_id", how="left")

    def kept(self, run: pd.Series, name: str) -> dict[int, str]:
        """Return, by step, the names `<name>_<step>` of the tensors that a run kept over its training."""
        found = [re.fullmatch(rf"({name}_(\d+))\.safetensors", file) for file in self.store.files(run["run_id"])]
        return {int(match[2]): match[1] for match in found if match}

    def held_out(self, run: pd.Series, epoch: int) -> tuple[Tensor, Tensor]:
        """Return teacher's and student's held-out images, as a student's run kept them nearest to an epoch of 30.

        Args:
            run: a row of `chosen`.
            epoch: of the paper's 30; the training may have had another number, or none.

        Returns:
            Teacher's and student's images (N, C, H, W) in [-1, 1].

        Raises:
            InputError: the run kept no such images.
        """
        kept = self.kept(run, "heldout")
        if not kept:
            raise InputError(f"run {run['run_id']} kept no held-out images: run its experiment again.")
        wanted = steps(run) * epoch / EPOCHS
        images = self.store.load_tensors(run["run_id"], kept[min(kept, key=lambda step: (abs(step - wanted), step))])
        return to_float(images["teacher"]), to_float(images["student"])

    def command(self, experiment: str, **flags: str | None) -> str:
        """Return the command that makes missing runs; flags that are the script's defaults are left out.

        Args:
            experiment: the script's stem.
            flags: of the script beside profile and dataset, or in place of the view's; None leaves one out.
        """
        profile, dataset = self.profile, self.dataset(experiment)
        by_default = dataset in _DEFAULT_DATASETS and not (experiment == _SEVERAL and profile in ("full", "paper"))
        given = {
            "profile": profile,
            "datasets" if experiment == _SEVERAL else "dataset": None if by_default else dataset,
        }
        given |= flags
        if given["profile"] == "quick":
            given["profile"] = None
        options = [f"--{flag.replace('_', '-')} {value}" for flag, value in given.items() if value is not None]
        return " ".join([f"python experiments/{experiment}.py", *options])


def _of_one_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that agree with the newest one at the profile's own settings, newest first."""
    # A trial with other settings does not take the place of the profile's own ones.
    changed = runs["overrides"].notna() & (runs["overrides"] != "none")
    ordered = runs.assign(changed=changed).sort_values(
        ["changed", "start_time"], ascending=[True, False], kind="stable"
    )
    settings = [column for column in runs if _SETTING.match(column)]
    compared = ordered[["teacher_sha256", *settings]]
    same = compared.eq(compared.iloc[0]) | (compared.isna() & compared.iloc[0].isna())
    return ordered[same.all(axis=1)].drop(columns="changed")


def _alike(runs: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Return the runs that share some parameters, and the teacher, with the newest at the profile's own settings."""
    settings = [column for column in runs if column.startswith("param/") and re.match(f"param/({pattern})", column)]
    settings.append("teacher_sha256")
    first = _of_one_setting(runs).drop_duplicates("seed").sort_values("seed")[settings].iloc[0]
    return runs[(runs[settings].eq(first) | runs[settings].isna()).all(axis=1)]


def where(runs: pd.DataFrame, tags: Mapping[str, str]) -> pd.DataFrame:
    """Return the runs that have some tags."""
    return runs[(runs[list(tags)] == pd.Series(tags)).all(axis=1)]


def split(shown: pd.DataFrame, column: str, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Return the rows of each case by its name, in the order of the names; no rows where there is no run."""
    return {name: shown[shown[column] == name] for name in names}


def values(shown: pd.DataFrame, metric: str) -> list[float]:
    """Return the values of a metric that was measured, in the order of the runs."""
    return shown[metric].dropna().astype(float).tolist() if metric in shown else []


def commit(tags: Mapping[str, str]) -> str:
    """Return the commit of the code that made a run, by the run's tags; blank where the working tree differed."""
    return tags.get(COMMIT, "") if tags.get("git_dirty") == "false" else ""


def steps(run: pd.Series) -> int:
    """Return the number of training steps of a run that trains a student."""
    own = run.get("param/distill.texture_steps", "None")
    return int(run["param/distill.steps"] if own == "None" or run["mechanism"] == "shape" else own)


def dataset_title(dataset: str) -> str:
    """Return what a title calls a dataset.

    Raises:
        InputError: there is no such dataset.
    """
    if dataset not in _DATASETS:
        raise InputError(f"there is no dataset {dataset!r}: choose one of {', '.join(_DATASETS)}.")
    return _DATASETS[dataset]
