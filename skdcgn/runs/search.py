"""Searches of hyperparameters: Optuna in process, over typed configs, with its studies in the run store.

A study is an MLflow run and its trials are runs below that one, into which the trials log what every training logs:
there is no second record of a trial. Any number of processes, on any number of machines that reach the store, work
on a study at the same time and may die at any time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import optuna
import pandas as pd
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from skdcgn.errors import InputError
from skdcgn.runs.loop import Diverged
from skdcgn.runs.provenance import process_state, this_process
from skdcgn.runs.run import Run
from skdcgn.runs.store import Store
from skdcgn.runs.studies import Direction, study_storage, table

Space = Mapping[str, BaseDistribution]
"""Dotted field of a config, such as `loss.lambda_1`, to what it may be."""

Params = Mapping[str, Any]
"""Dotted field of a config to a value."""

Report = Callable[[int, float], None]
"""Takes a step and the objective's value there, and raises optuna.TrialPruned where the trial is hopeless."""

Objective = Callable[[Run, Params, Report | None], Sequence[float]]

Config = TypeVar("Config")

_RETRIES = 2  # of a trial whose process died: parameters that kill every process must not hold the study up for ever

_NAME = "mlflow.runName"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class SearchConfig:
    """How a study searches; what its trials train is said elsewhere."""

    study: str | None = None
    """Name of the study to begin or to go on with; by default one for each setting."""
    trials: int = 30
    """Trials of the study in all, whoever runs them, the pruned ones included."""
    sampler: Literal["tpe", "random", "gp", "qmc"] = "tpe"
    """What proposes trials: Parzen estimators, chance, a Gaussian process, or a low-discrepancy sequence."""
    pruner: Literal["median", "none"] = "median"
    """What stops trials early: being below the median of the earlier ones at the same step, or nothing."""
    seed: int = 0
    """Of the sampler."""
    dead_after: float = 60.0
    """Minutes after which a trial of another machine that has not ended is taken for dead."""


class Sweep:
    """One worker's hold of a study."""

    def __init__(
        self,
        store: Store,
        experiment: str,
        name: str,
        space: Space,
        first: Sequence[Params],
        directions: Mapping[str, Direction],
        search: SearchConfig,
        identity: str,
        prune_from: int = 0,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a study, creating it where it does not exist yet.

        Args:
            store: the run store.
            experiment: the MLflow experiment of the study.
            name: of the study.
            space: what to search.
            first: parameters of the first trials, in this order.
            directions: the objectives by their names; trials are pruned where there is only one.
            search: how to search.
            identity: what all trials of the study have in common, as a hash: see `tracking.config_hash`.
            prune_from: the first step at which a trial may be stopped.
            attributes: shown with each trial in `table`.

        Raises:
            InputError: the name cannot be one, or a study of this name searches something else.
        """
        if not name or "'" in name:
            raise InputError(f"a study cannot be called {name!r}: give --search.study a name without quotes.")
        self.name, self.space, self.directions = name, space, directions
        self._store, self._experiment, self._search, self._attributes = store, experiment, search, attributes or {}
        # One worker of a machine at a time opens the study, looks for dead ones, and takes a trial: two would take
        # the same. Across machines, where no lock reaches, a waiting trial taken twice costs its time only.
        self._lock = FileLock(store.folder / f".{experiment}.lock")
        with self._lock:
            self._storage = study_storage(store, experiment)
            if self._find() is None:
                study = optuna.create_study(
                    study_name=name, storage=self._storage, directions=list(directions.values())
                )
                study.set_user_attr("identity", identity)
                study.set_user_attr("objectives", list(directions))
                for params in first:
                    study.enqueue_trial(dict(params))
                self._storage.flush_all_batches()
            self.run = Run(store, self._find())
        pruner = optuna.pruners.MedianPruner(5, prune_from) if search.pruner == "median" else optuna.pruners.NopPruner()
        self.study = optuna.load_study(study_name=name, storage=self._storage, pruner=pruner)
        if self.study.user_attrs.get("identity") != identity:
            raise InputError(
                f"the study {name!r} was begun with another config than this one: give --search.study another name, "
                "or leave it out."
            )

    def _find(self) -> str | None:
        """Return the id of the study's run."""
        runs = self._store.runs(self._experiment)
        return next((run.run_id for run in runs if run.name == self.name and run.parent is None), None)

    def work(self, objective: Objective, say: Callable[[str], object] | None = None) -> bool:
        """Run trials until every one of the study has been run, or is being run by another worker.

        Args:
            objective: trains with some parameters and returns the objectives. It gets the trial's run to log to,
                and what to report to at its evaluations (None with several objectives).
            say: told of every trial's end.

        Returns:
            Whether the study is complete: False while other workers are still at it.
        """
        self._store.set_status(self.run.run_id, "RUNNING")
        while (trial := self._next()) is not None:
            line = self._try(trial, objective)
            if say is not None:
                say(line)
        with self._lock:
            self._retry_lost_trials()
            return not self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))

    def _next(self) -> optuna.Trial | None:
        """Take a trial that waits, or else a new one, if the study wants more."""
        with self._lock:
            self._retry_lost_trials()
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and sum("lost" not in trial.user_attrs for trial in trials) >= self._search.trials:
                return None
            self.study.sampler = _sampler(self._search, len(trials))
            trial = self.study.ask(dict(self.space))
            process = {"process": this_process(), "started": time.time()}
            for key, value in {**process, **self._attributes}.items():
                trial.set_user_attr(key, value)
            self._storage.flush_all_batches()
            return trial

    def _try(self, trial: optuna.Trial, objective: Objective) -> str:
        """Run one trial to whatever end, and tell that in a line."""
        run = Run(self._store, trial._trial_id)  # MLflow's storage calls trials by their runs
        run.set_tags({_NAME: f"{self.name}: trial {trial.number}", "kind": "trial", "trial": trial.number})
        start = time.perf_counter()

        def report(step: int, value: float) -> None:
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        values = None
        try:
            values = list(objective(run, trial.params, report if len(self.directions) == 1 else None))
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Diverged as error:  # a property of these parameters: not tried again
            state = TrialState.FAIL
            run.set_tags({"error": str(error)[:500]})
        except BaseException as error:
            run.flush()
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
            with self._lock:
                self._retry(self._storage.get_trial(trial._trial_id))
            raise
        run.flush()
        run.set_tags({"state": state.name.lower()})
        run.checkpoint.unlink(missing_ok=True)
        trial.set_user_attr("seconds", round(time.perf_counter() - start, 2))
        self.study.tell(trial, values, state)
        shown = "" if values is None else " ".join(f"{value:.4g}" for value in values)
        return f"trial {trial.number}: {state.name.lower()} {shown} {_shown(trial.params)}"

    def _retry_lost_trials(self) -> None:
        """Have the trials run again whose process has died: a killed process cannot do so itself."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            process, started = trial.user_attrs.get("process"), trial.user_attrs.get("started")
            state = process_state(process) if process else "elsewhere"
            minutes = (time.time() - (started or trial.datetime_start.timestamp())) / 60
            if state == "gone" or (state == "elsewhere" and minutes > self._search.dead_after):
                self._retry(trial)

    def _retry(self, trial: FrozenTrial) -> None:
        """End a trial as failed and, unless that happens again and again, put its parameters into the queue."""
        retry = trial.user_attrs.get("retry", 0) + 1
        if retry <= _RETRIES:
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            self.study.enqueue_trial(params, user_attrs={"retry": retry, "retry_of": trial.number})
            self._storage.set_trial_user_attr(trial._trial_id, "lost", True)
        self._storage.flush_all_batches()
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        run = Run(self._store, trial._trial_id)
        run.set_tags({"state": "lost" if retry <= _RETRIES else "fail"})
        run.checkpoint.unlink(missing_ok=True)

    def table(self) -> pd.DataFrame:
        """Return the study so far, see `table`."""
        return table(self.study)

    def best(self) -> FrozenTrial:
        """Return the completed trial that is best in the first objective.

        Raises:
            InputError: no trial was completed.
        """
        completed = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not completed:
            raise InputError(f"no trial of the study {self.name!r} came to its end: give it more with --search.trials.")
        sign = -1 if next(iter(self.directions.values())) == "maximize" else 1
        return min(completed, key=lambda trial: (sign * trial.values[0], trial.number))

    def end(self) -> None:
        """Mark the study's run as finished; it can be gone on with nevertheless."""
        self._storage.flush_all_batches()
        self._store.set_status(self.run.run_id, "FINISHED")


def _sampler(search: SearchConfig, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial: its draws depend on seed and number, whichever process asks."""
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    if search.sampler == "qmc":  # keeps its place in the sequence in the study
        return optuna.samplers.QMCSampler(seed=search.seed, scramble=True, warn_asynchronous_seeding=False)
    return optuna.samplers.RandomSampler(seed=seed)


def apply(config: Config, params: Params) -> Config:
    """Return a config with dotted fields replaced: {"loss.kl": 0.5} replaces `config.loss.kl`."""
    for name, value in params.items():
        head, _, rest = name.partition(".")
        config = replace(config, **{head: apply(getattr(config, head), {rest: value}) if rest else value})
    return config


def _shown(params: Params) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
