"""Searches of hyperparameters: Optuna in process, over typed configs, with its studies in the run store.

A study is an MLflow run and its trials are runs below that one, into which the trials log what every training logs:
there is no second record of a trial. Any number of processes, on any number of machines that reach the store, work
on a study at the same time and may die at any time.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import optuna
import pandas as pd
import yaml
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution as CategoricalDistribution
from optuna.distributions import FloatDistribution as FloatDistribution
from optuna.distributions import IntDistribution as IntDistribution
from optuna.trial import FrozenTrial, TrialState

from skdcgn.errors import InputError
from skdcgn.files import remove_checkpoint
from skdcgn.runs.identity import Identity
from skdcgn.runs.leases import Heartbeat, Lease, Watch
from skdcgn.runs.lifecycle import Terminal, identity_tags
from skdcgn.runs.loop import Diverged
from skdcgn.runs.provenance import provenance
from skdcgn.runs.run import Busy, Run
from skdcgn.runs.search.studies import Direction, best_trial, find_study, study_storage, table
from skdcgn.runs.store import RunRecord, Store

Space = Mapping[str, BaseDistribution]
"""Dotted field of a config, such as `loss.lambda_1`, to what it may be."""
Params = Mapping[str, Any]
"""Dotted field of a config to a value."""
Report = Callable[[int, float], None]
"""Takes a step and the objective's value there, and raises optuna.TrialPruned where the trial is hopeless."""
Objective = Callable[[Run, Params, Report | None], Sequence[float]]
Config = TypeVar("Config")

_RETRIES = 2  # of a trial whose process died: parameters that kill every process must not hold the study up for ever

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


@dataclass(frozen=True)
class Definition:
    """What a study searches, whoever works on it."""

    experiment: str
    """The MLflow experiment of the study."""
    name: str
    space: Space
    directions: Mapping[str, Direction]
    """The objectives by their names; trials are pruned where there is only one."""
    identity: Identity
    """What all trials of the study have in common."""
    first: Sequence[Params] = ()
    """Parameters of the first trials, in this order."""
    prune_from: int = 0
    """The first step at which a trial may be stopped."""
    tags: Mapping[str, object] = field(default_factory=dict)
    """Of the study's run and of those of its trials."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Shown with each trial in `table`."""
    description: str = ""
    """Markdown, shown in the UI."""

    def __post_init__(self) -> None:
        if not self.name or "'" in self.name:
            raise InputError(f"a study cannot be called {self.name!r}: give --search.study a name without quotes.")


def check_same(definition: Definition, run: RunRecord) -> None:
    """See that a study was begun with a definition, by this code.

    Args:
        definition: what is to be searched.
        run: the study's.

    Raises:
        InputError: it was not.
    """
    if run.tags.get("identity") != definition.identity.digest:
        recorded = json.loads(run.tags.get("dependencies", "{}"))
        differences = definition.identity.differences(**recorded) if recorded else ["it is not known in what"]
        raise InputError(
            f"the study {definition.name!r} was begun with another config or other code than this "
            f"({'; '.join(differences)}): give --search.study another name, or leave it out."
        )


class Sweep:
    """One worker's hold of a study."""

    def __init__(self, store: Store, definition: Definition, search: SearchConfig) -> None:
        """Open a study, creating it where it does not exist yet.

        Raises:
            InputError: a study of this name searches something else, or with other code.
        """
        self.definition = definition
        self.store, self._search = store, search
        self._watch = Watch()
        self._tags = {**provenance(), MLFLOW_RUN_NOTE: definition.description, **definition.tags}
        # Workers that share the store's folder take turns opening the study, looking for dead ones, and taking a trial.
        # Elsewhere, where no lock reaches, a waiting trial taken twice costs its time only.
        with store.lock():
            self._storage = study_storage(store, definition.experiment, definition.description)
            found = find_study(store, definition.experiment, definition.name)
            self.run = Run(store, self._create() if found is None else found.run_id)
        check_same(definition, store.record(self.run.run_id))
        self.run.set_tags({**self._tags, "kind": "study"})
        pruner = optuna.pruners.NopPruner()
        if search.pruner == "median":
            pruner = optuna.pruners.MedianPruner(5, definition.prune_from)
        self.study = optuna.load_study(study_name=definition.name, storage=self._storage, pruner=pruner)

    def _create(self) -> str:
        """Create the study with its first trials waiting; return the id of its run."""
        definition, directions = self.definition, list(self.definition.directions.values())
        study = optuna.create_study(study_name=definition.name, storage=self._storage, directions=directions)
        self.store.set_status(study._study_id, "SCHEDULED")  # a study outlives each of its workers: none is at it
        self.store.set_tags(study._study_id, identity_tags(definition.identity))  # MLflow calls studies by their runs
        study.set_user_attr("objectives", list(definition.directions))
        for params in definition.first:
            study.enqueue_trial(dict(params))
        self._storage.flush_all_batches()
        return study._study_id

    def work(self, objective: Objective, terminal: Terminal) -> bool:
        """Run trials until every one of the study has been run, or is being run by another worker.

        Args:
            objective: trains with some parameters and returns the objectives. It gets the trial's run to log to,
                and what to report to at its evaluations (None with several objectives).
            terminal: where the trials are run; told of every trial's end.

        Returns:
            Whether the study is complete: False while other workers are still at it.
        """
        while self.step(objective, terminal):
            pass
        return self.other() is None

    def step(self, objective: Objective, terminal: Terminal) -> bool:
        """Run one trial, see `work`; return whether there was one to run."""
        taken = self._next()
        if taken is not None:
            terminal.say(self._try(*taken, objective, terminal))
        return taken is not None

    def other(self) -> RunRecord | None:
        """Return the run of a trial that another worker is at, if there is one."""
        with self.store.lock():
            self._retry_lost_trials()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return self.store.record(running[0]._trial_id) if running else None

    def _next(self) -> tuple[optuna.Trial, Lease] | None:
        """Take a trial that waits, or else a new one, if the study wants more."""
        with self.store.lock():
            self._retry_lost_trials()
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            number = sum("lost" not in trial.user_attrs for trial in trials)
            if not waiting and number >= self._search.trials:
                return None
            self.study.sampler = _sampler(self._search, number)
            trial, lease = self.study.ask(dict(self.definition.space)), Lease.take()
            self.store.set_tags(trial._trial_id, lease.tags)  # MLflow's storage calls trials by their runs
            for key, value in self.definition.attributes.items():
                trial.set_user_attr(key, value)
            self._storage.flush_all_batches()
            return trial, lease

    def _try(self, trial: optuna.Trial, lease: Lease, objective: Objective, terminal: Terminal) -> str:
        """Run one trial to whatever end, and tell that in a line."""
        run = Run(self.store, trial._trial_id, lease)
        name = f"{self.definition.name}: trial {trial.number}"
        run.set_tags({**self._tags, MLFLOW_RUN_NAME: name, "kind": "trial", "trial": trial.number})
        start = time.perf_counter()

        def report(step: int, value: float) -> None:
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        values = None
        try:
            with Heartbeat(self.store, run.run_id, lease) as heartbeat, terminal.output(run):
                run.attend(terminal.interruption, heartbeat)
                values = list(objective(run, trial.params, report if len(self.definition.directions) == 1 else None))
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Diverged as error:  # a property of these parameters: not tried again
            state = TrialState.FAIL
            run.set_tags({"error": str(error)[:500]})
        except Busy:  # taken for dead: another worker has put the trial back
            raise
        except BaseException as error:
            run.flush()
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
            with self.store.lock():
                self._retry(self._storage.get_trial(trial._trial_id))
            raise
        run.flush()
        run.set_tags({"state": state.name.lower()})
        remove_checkpoint(run.checkpoint)
        trial.set_user_attr("seconds", round(time.perf_counter() - start, 2))
        self.study.tell(trial, values, state)
        shown = "" if values is None else " ".join(f"{value:.4g}" for value in values)
        return f"trial {trial.number}: {state.name.lower()} {shown} {_shown(trial.params)}"

    def _retry_lost_trials(self) -> None:
        """Have the trials run again whose process has died: a killed process cannot do so itself."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._watch.gone(trial._trial_id, self.store.record(trial._trial_id).tags):
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
        run = Run(self.store, trial._trial_id)
        run.set_tags({"state": "lost" if retry <= _RETRIES else "fail"})
        remove_checkpoint(run.checkpoint)

    def table(self) -> pd.DataFrame:
        """Return the study so far, see `table`."""
        return table(self.study)

    def best(self) -> FrozenTrial:
        """Return the completed trial that is best in the first objective.

        Raises:
            InputError: no trial was completed.
        """
        best = best_trial(self.study)
        if best is None:
            name = self.definition.name
            raise InputError(f"no trial of the study {name!r} came to its end: give it more with --search.trials.")
        return best

    def end(self) -> None:
        """Mark the study's run as finished; it can be gone on with nevertheless."""
        self._storage.flush_all_batches()
        self.store.set_status(self.run.run_id, "FINISHED")


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


def as_yaml(config: Any, params: Params, whole: Sequence[str] = ()) -> str:
    """Write the fields that a search chose as YAML that every script with such fields accepts with `--config`.

    Args:
        config: a dataclass, with the parameters applied.
        params: the fields that were searched.
        whole: fields, configs themselves, of which all fields are written: a loss weight means little without the
            others.
    """
    content: dict[str, Any] = {name: asdict(getattr(config, name)) for name in whole}
    for name in params:
        section, _, key = name.rpartition(".")
        content.setdefault(section, {})[key] = getattr(getattr(config, section), key)
    return yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)  # YAML has no tuples


def _shown(params: Params) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
