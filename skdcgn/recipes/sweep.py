"""A search of a distillation's hyperparameters, and the best trial beside reference settings on fresh seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from skdcgn.files import atomic_path
from skdcgn.measure.statistics import Interval, mean_interval
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.recipes.configs.students import StudentConfig
from skdcgn.recipes.students import distil, make_student
from skdcgn.runs.engine.tasks import Making, Stage, Task, key_of
from skdcgn.runs.identity import identify
from skdcgn.runs.lifecycle import Terminal, carry_out, identity_tags, results
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.run import Busy, Run
from skdcgn.runs.search.studies import Direction, find_study, load_study
from skdcgn.runs.search.sweep import (
    Definition,
    Objective,
    Params,
    Report,
    SearchConfig,
    Sweep,
    apply,
    as_yaml,
    check_same,
)
from skdcgn.runs.store import RunRecord, Store, open_store
from skdcgn.runtime import setup

_PRUNED = 0.75  # of a training, about, is what a trial takes: hopeless ones stop early


@dataclass(frozen=True, eq=False)
class DistillationSearch:
    """A study of distillations, and the confirmation of its best trial."""

    definition: Definition
    """The study; of its objectives, final metrics of a student, the first one ranks the trials."""
    setting: StudentConfig
    """What every trial trains, but for the parameters that are searched."""
    search: SearchConfig
    references: Mapping[str, Params]
    """What to compare the best trial with, by name; the first one is the paper's."""
    confirm_seeds: Sequence[int]
    """Seeds that no trial was trained with."""
    needs: Mapping[str, Case] = field(default_factory=dict)
    """The case that trains the teacher, where that is one of our own; see `Case`."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """See `Case`."""
    out: Path | None = None
    """Folder that gets what the study's run keeps: best.yaml, trials.csv and confirmation.csv."""

    @property
    def metric(self) -> str:
        """The objective that trials are ranked by."""
        return next(iter(self.definition.directions))

    @property
    def seconds(self) -> float:
        """What a training takes on one CPU core, about."""
        return 5 + 0.027 * self.setting.distill.for_mechanism(Mechanism(self.setting.mechanism)).steps

    def confirmation(self, best: Params) -> Plan:
        """Return the trainings of the best trial's parameters and of the references on fresh seeds."""
        definition, setting = self.definition, self.setting
        cases = [
            Case(
                definition.experiment,
                f"{setting.mechanism} {name} seed {seed}",
                replace(apply(setting, params), seed=seed),
                make_student,
                {**definition.tags, "kind": "confirmation", "study": definition.name, "setting": name, "seed": seed},
                self.needs,
                self.inputs,
                seconds=self.seconds,
                description=definition.description,
            )
            for seed in self.confirm_seeds
            for name, params in {**self.references, "best": best}.items()
        ]
        return Plan(cases, ("setting", "seed"), (self.metric,), setting.runtime)


def make_trial(
    run: Run,
    config: StudentConfig,
    teacher: Source,
    device: torch.device,
    objectives: Sequence[str],
    report: Report | None,
) -> list[float]:
    """Train a student with the parameters of a trial.

    Args:
        run: the trial's.
        config: with the parameters.
        teacher: the black box.
        device: where to run.
        objectives: final metrics; the first one is reported.
        report: takes it at each evaluation but the last.

    Returns:
        The objectives.
    """
    steps = config.distill.for_mechanism(Mechanism(config.mechanism)).steps

    def on_evaluation(step: int, measured: dict[str, float]) -> None:
        if report is not None and step < steps:
            report(step, measured[objectives[0]])

    distil(run, teacher, config, device, on_evaluation)
    run.flush()
    final = run.store.record(run.run_id).final
    return [final[name] for name in objectives]


def begin(search: DistillationSearch, store: Store, needs: Mapping[str, RunRecord]) -> tuple[Sweep, Objective]:
    """Open the study of a search, creating it where it does not exist yet; return it with what its trials do.

    Args:
        search: what to search.
        store: the run store.
        needs: the finished runs that the search needs, by name.

    Raises:
        InputError: see `Sweep`.
    """
    setting = search.setting
    device = setup(setting.runtime)
    teacher = setting.teacher.load(device, store, next(iter(needs.values()), None))
    inputs = {**search.inputs, **{name: case.identity.digest for name, case in search.needs.items()}}
    objectives = list(search.definition.directions)

    def objective(run: Run, params: Params, report: Report | None) -> list[float]:
        trial = apply(setting, params)
        run.set_tags(identity_tags(identify(trial, make_trial, inputs)))
        _keep(run, {"config.yaml": as_yaml(trial, params, ("loss",))})
        return make_trial(run, trial, teacher, device, objectives, report)

    return Sweep(store, search.definition, search.search), objective


def conduct(search: DistillationSearch, terminal: Terminal | None = None) -> pd.DataFrame | None:
    """Search in this process, then compare the best trial with reference settings on fresh seeds.

    Args:
        search: what to search, and the references.
        terminal: where; told what happens.

    Returns:
        The confirmation, a row for each (setting, seed); None where other workers have not finished yet.

    Raises:
        InputError: see `Sweep`, or no trial was completed.
    """
    store, terminal = open_store(), terminal or Terminal()
    needed = carry_out(Plan(list(search.needs.values()), ("kind",)), store)["run_id"] if search.needs else ()
    sweep, objective = begin(
        search, store, {name: store.record(run) for name, run in zip(search.needs, needed, strict=True)}
    )
    terminal.say(f"study {search.definition.name!r}: {search.search.trials} trials")
    if not sweep.work(objective, terminal):
        terminal.say("other workers are still at their trials: the last of them, or the next start, confirms the best.")
        return None
    return conclude(search, sweep, carry_out(search.confirmation(sweep.best().params), store), terminal)


def conclude(search: DistillationSearch, sweep: Sweep, results: pd.DataFrame, terminal: Terminal) -> pd.DataFrame:
    """Keep and tell what a search has found.

    Args:
        search: the search.
        sweep: its study, complete.
        results: of its confirmation, see `lifecycle.results`.
        terminal: told.

    Returns:
        The confirmation, a row for each (setting, seed).
    """
    definition, best = search.definition, sweep.best()
    confirmed = results.reset_index()[["setting", "seed", search.metric, "run_id"]]
    found = fresh_seeds(confirmed, search.metric, definition.directions[search.metric])
    chosen = as_yaml(apply(search.setting, best.params), best.params, ("loss",))
    about = f"Trial {best.number} of the study {definition.name!r}.\n{found}"
    files = {
        "best.yaml": "".join(f"# {line}\n" for line in about.splitlines()) + chosen,
        "trials.csv": _csv(sweep.table()),
        "confirmation.csv": _csv(confirmed),
    }
    _keep(sweep.run, files)
    for file, content in files.items() if search.out else ():
        with atomic_path(search.out / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    sweep.end()
    terminal.say(found)
    return confirmed


class Trying:
    """The task that runs one more trial of a search: one at a time, so that all that follow can learn from it."""

    def __init__(self, search: DistillationSearch, number: int, needs: Mapping[str, str]) -> None:
        """Prepare the task; `number` is counted from where the study was at the start."""
        definition = search.definition
        self.search, self.needs = search, needs
        self.key = f"{definition.experiment}-{definition.identity.digest}-{definition.name}-{number}"
        self.experiment, self.name, self.profile = definition.experiment, f"trial +{number}", search.setting.profile
        self.seconds = _PRUNED * search.seconds
        self.device = search.setting.runtime.device

    def __str__(self) -> str:
        return f"{self.experiment}: {self.name}"

    def find(self, finished: Mapping[str, RunRecord]) -> RunRecord | None:
        """See `Task`: which trials are left is known before."""
        return None

    def perform(self, store: Store, needs: Mapping[str, RunRecord], terminal: Terminal) -> RunRecord:
        """See `Task`; the run is the study's."""
        sweep, objective = begin(self.search, store, {name: needs[name] for name in self.search.needs})
        while (other := sweep.other()) is not None:
            terminal.wait(Busy(self, other))
        sweep.step(objective, terminal)
        return store.record(sweep.run.run_id)


def stage_of(plan: Plan | DistillationSearch, store: Store, force: str) -> Stage:
    """Return what is to be done for a plan or a search: of this one the trials, and then the confirmation.

    Args:
        plan: the plan.
        store: the run store.
        force: see `lifecycle.make`.

    Raises:
        InputError: a study of the search's name searches something else.
    """
    if isinstance(plan, Plan):
        return Stage([Making(case, force) for case in plan.everything()])
    definition = plan.definition
    study, left = find_study(store, definition.experiment, definition.name), plan.search.trials
    if study is not None:
        check_same(definition, study)
        left -= load_study(store, definition.experiment, definition.name).ended
    tasks: list[Task] = [Making(case, force) for case in Plan(list(plan.needs.values()), ()).everything()]
    needs = {name: key_of(case, force) for name, case in plan.needs.items()}
    for number in range(left):
        tasks.append(Trying(plan, number, {**needs, "the trial before": tasks[-1].key} if number else needs))
    return Stage(tasks, partial(_confirmation, plan, store, force))


def _confirmation(search: DistillationSearch, store: Store, force: str, runs: Mapping[str, RunRecord]) -> Stage:
    """Return the confirmation of a complete study."""
    sweep = Sweep(store, search.definition, search.search)
    plan = search.confirmation(sweep.best().params)

    def then(runs: Mapping[str, RunRecord]) -> None:
        made = {case.identity.digest: runs[key_of(case, force)] for case in plan.cases}
        conclude(search, sweep, results(plan, made), Terminal())

    return Stage(stage_of(plan, store, force).tasks, then)


def fresh_seeds(confirmed: pd.DataFrame, metric: str, direction: Direction) -> str:
    """Say what the settings reach on fresh seeds, and what the best trial gains over each other one, paired by seed.

    Args:
        confirmed: columns setting ("best" and others), seed, and the metric.
        metric: the objective.
        direction: of the metric; a gain above 0 is an improvement either way.

    Returns:
        A line for the best trial, and one for each other setting.
    """
    values = confirmed.pivot(index="seed", columns="setting", values=metric)
    mean = _written(mean_interval(values["best"].tolist()))
    lines = [f"On fresh seeds (means with 95 % intervals, n={len(values)}) the best trial has {metric} {mean}."]
    for other in [name for name in confirmed["setting"].unique() if name != "best"]:
        gains = values["best"] - values[other] if direction == "maximize" else values[other] - values["best"]
        gain = f"gains {_written(mean_interval(gains.tolist()), '+')}" if gains.any() else "is the same"
        lines.append(f"{other}: {metric} {_written(mean_interval(values[other].tolist()))}; the best trial {gain}.")
    return "\n".join(lines)


def _written(interval: Interval, sign: str = "") -> str:
    mean, low, high, n = interval
    return f"{mean:{sign}.4f}" if n == 1 else f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g")


def _keep(run: Run, files: Mapping[str, str]) -> None:
    """Keep texts as files of a run."""
    for name, text in files.items():
        run.log_file(name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
