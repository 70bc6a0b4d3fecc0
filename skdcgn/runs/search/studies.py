"""Optuna's studies in the run store, to write and to read: a study is a run, its trials are runs below that one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import mlflow
import numpy as np
import optuna
import pandas as pd
from mlflow.entities import Metric, RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from skdcgn.errors import InputError
from skdcgn.runs.store import RunRecord, Store, environment

if TYPE_CHECKING:
    from mlflow.optuna.storage import MlflowStorage

Direction = Literal["maximize", "minimize"]

_DIRECTION = "optuna.study_direction"  # tag that MLflow's storage gives a study, and no other run


def study_storage(store: Store, experiment: str, description: str = "") -> "MlflowStorage":
    """Return Optuna's storage in an experiment.

    MLflow's storage is used with a client of our own: it reads every metric of a trial as a value of the objective,
    and asks for all trials of a study several times at each step of a search.
    """
    from mlflow.optuna.storage import MlflowStorage  # slow to import, and for searches only

    # The storage begins with a client of MLflow's default store, which would be made in the working directory.
    with environment(MLFLOW_TRACKING_URI=store.uri):
        storage = MlflowStorage(store.experiment_id(experiment, description))
    storage._mlflow_client = _StudyClient(store.uri)
    return storage


class _StudyClient(mlflow.MlflowClient):
    """What `MlflowStorage` reads a study with."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._ended: dict[str, mlflow.entities.Run] = {}
        self._histories: dict[tuple[str, str], list[Metric]] = {}

    def get_run(self, run_id: str) -> mlflow.entities.Run:
        """Get a run, of whose metrics only the objectives: the storage takes every metric for one."""
        if run_id in self._ended:
            return self._ended[run_id]
        run = super().get_run(run_id)
        for key in [key for key in run.data.metrics if not key.startswith("value")]:
            del run.data.metrics[key]
        # The storage asks for every trial of the study several times at each step of the search.
        if RunStatus.is_terminated(RunStatus.from_string(run.info.status)) and MLFLOW_PARENT_RUN_ID in run.data.tags:
            self._ended[run_id] = run
        return run

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        """Get all values of a metric."""
        if (run_id, key) in self._histories:
            return self._histories[run_id, key]
        history = super().get_metric_history(run_id, key)
        if run_id in self._ended:
            self._histories[run_id, key] = history
        return history

    def search_runs(self, experiment_ids: list[str], filter_string: str = "", **options: Any) -> Any:
        """Search runs, the oldest first: Optuna takes waiting trials in this order."""
        return super().search_runs(experiment_ids, filter_string, **{"order_by": ["attributes.start_time"], **options})


@dataclass(frozen=True)
class StudyRecord:
    """A study of the store, to read it."""

    run_id: str
    name: str
    tags: Mapping[str, str]
    objectives: tuple[str, ...]
    directions: tuple[Direction, ...]
    trials: pd.DataFrame
    """See `table`."""
    reports: Mapping[int, Mapping[int, float]]
    """By a trial's number, what it reported: step to value."""
    front: tuple[int, ...]
    """Numbers of the trials that no other one beats in all objectives."""
    best: Mapping[str, Any] | None
    """Parameters of the completed trial that is best in the first objective."""

    @property
    def ended(self) -> int:
        """The number of trials that have been run to whatever end."""
        return int(self.trials["state"].isin(["complete", "pruned", "fail"]).sum())

    def is_complete(self, trials: int) -> bool:
        """Whether so many trials have been run, and none is running or waiting."""
        states = list(self.trials["state"])
        return sum(state != "lost" for state in states) >= trials and not {"running", "waiting"} & {*states}


def find_study(store: Store, experiment: str, name: str) -> RunRecord | None:
    """Return the run of a study; None where there is no such study."""
    named = store.runs(experiment, **{MLFLOW_RUN_NAME: name})
    return next((run for run in named if _DIRECTION in run.tags), None)


def load_study(store: Store, experiment: str, name: str) -> StudyRecord:
    """Load a study of the store.

    Raises:
        InputError: there is no such study.
    """
    found = find_study(store, experiment, name)
    if found is None:
        raise InputError(f"the store {store.uri} holds no study {name!r} of {experiment}.")
    study = _open(store, experiment, name)
    trials = study.get_trials(deepcopy=False)
    best = best_trial(study)
    return StudyRecord(
        found.run_id,
        name,
        found.tags,
        tuple(study.user_attrs["objectives"]),
        tuple(direction.name.lower() for direction in study.directions),
        table(study),
        {trial.number: trial.intermediate_values for trial in trials},
        () if best is None else tuple(trial.number for trial in study.best_trials),
        best and best.params,
    )


def _open(store: Store, experiment: str, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=study_storage(store, experiment))


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the completed trial that is best in the first objective; None where no trial was completed."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return min(completed, key=lambda trial: (sign * trial.values[0], trial.number), default=None)


def table(study: optuna.Study) -> pd.DataFrame:
    """Return a study as a table, a row for each trial.

    Columns: number, state, the objectives by name (a pruned trial has its last report), the parameters by name,
    evaluations (how many it reported), seconds, what the study's attributes are, retry_of (the number of the trial
    that this one repeats, because its process died), run_id.
    """
    names = study.user_attrs["objectives"]
    rows = []
    for trial in sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number):
        attributes = {k: v for k, v in trial.user_attrs.items() if k != "retry"}
        lost = attributes.pop("lost", False)
        rows.append(
            {"number": trial.number, "state": "lost" if lost else trial.state.name.lower()}
            | dict(zip(names, trial.values or [None] * len(names), strict=True))
            | trial.params
            | {"evaluations": len(trial.intermediate_values), "seconds": None, "retry_of": None, **attributes}
            | {"run_id": trial._trial_id}
        )
    return pd.DataFrame(rows, columns=None if rows else ["number", "state", *names, "run_id"])


def importances(store: Store, experiment: str, name: str, resamples: int, seed: int = 0) -> pd.DataFrame:
    """Return parameter importances by bootstrap over the completed trials of a study.

    Every resample draws as many trials with replacement, and gives fANOVA another seed.

    Args:
        store: the run store.
        experiment: the study's.
        name: of the study.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        Columns method, resample, parameter, share.
    """
    study = _open(store, experiment, name)
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    random = np.random.default_rng(seed)
    rows = []
    for resample in range(resamples):
        drawn = optuna.create_study(direction=study.directions[0].name.lower())
        for index in random.integers(len(completed), size=len(completed)):
            trial = completed[index]
            drawn.add_trial(
                optuna.trial.create_trial(value=trial.values[0], params=trial.params, distributions=trial.distributions)
            )
        evaluators = {
            "fANOVA": FanovaImportanceEvaluator(n_trees=32, seed=resample),
            "PED-ANOVA": PedAnovaImportanceEvaluator(),
        }
        for method, evaluator in evaluators.items():
            shares = optuna.importance.get_param_importances(drawn, evaluator=evaluator)
            rows += [(method, resample, parameter, share) for parameter, share in shares.items()]
    return pd.DataFrame(rows, columns=["method", "resample", "parameter", "share"])
