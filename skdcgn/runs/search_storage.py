"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

from typing import Any

import mlflow
from mlflow.entities import Metric, RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID


class _StudyClient(mlflow.MlflowClient):
    """What `MlflowStorage` reads a study with; it could not read trials with metrics of their own otherwise."""

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
        if not is_active(run.info.status) and MLFLOW_PARENT_RUN_ID in run.data.tags:
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


def is_active(status: str) -> bool:
    """Whether an MLflow run status means that the run has not ended."""
    return not RunStatus.is_terminated(RunStatus.from_string(status))
