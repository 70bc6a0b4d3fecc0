"""A search of a distillation's hyperparameters, and the best trial beside reference settings on fresh seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from skdcgn.files import atomic_path
from skdcgn.measure.statistics import Interval, mean_interval
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.recipes.configs.students import StudentConfig
from skdcgn.recipes.students import distil, make_student
from skdcgn.runs.identity import identify
from skdcgn.runs.lifecycle import carry_out, identity_tags
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.run import Run
from skdcgn.runs.search.studies import Direction
from skdcgn.runs.search.sweep import Definition, Params, Report, SearchConfig, Sweep, apply, as_yaml
from skdcgn.runs.store import open_store
from skdcgn.runtime import setup


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
                seconds=5 + 0.027 * setting.distill.for_mechanism(Mechanism(setting.mechanism)).steps,
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


def conduct(search: DistillationSearch, say: Callable[[str], object] = print) -> pd.DataFrame | None:
    """Search, then compare the best trial with reference settings on fresh seeds.

    Args:
        search: what to search, and the references.
        say: told what happens, line by line.

    Returns:
        The confirmation, a row for each (setting, seed); None where other workers have not finished yet.

    Raises:
        InputError: see `Sweep`, or no trial was completed.
    """
    definition, setting, store = search.definition, search.setting, open_store()
    device = setup(setting.runtime)
    needed = Plan(list(search.needs.values()), ("kind",), runtime=setting.runtime)
    trained = store.record(carry_out(needed, store)["run_id"].iloc[0]) if search.needs else None
    teacher = setting.teacher.load(device, store, trained)
    inputs = {**search.inputs, **{name: case.identity.digest for name, case in search.needs.items()}}
    sweep = Sweep(store, definition, search.search)
    say(f"study {definition.name!r}: {search.search.trials} trials")

    def objective(run: Run, params: Params, report: Report | None) -> list[float]:
        trial = apply(setting, params)
        run.set_tags(identity_tags(identify(trial, make_trial, inputs)))
        _keep(run, {"config.yaml": as_yaml(trial, params, ("loss",))})
        return make_trial(run, trial, teacher, device, list(definition.directions), report)

    if not sweep.work(objective, say):
        say("other workers are still at their trials: the last of them, or the next start, confirms the best.")
        return None
    best = sweep.best()
    results = carry_out(search.confirmation(best.params), store)
    confirmed = results.reset_index()[["setting", "seed", search.metric, "run_id"]]
    found = fresh_seeds(confirmed, search.metric, definition.directions[search.metric])
    chosen = as_yaml(apply(setting, best.params), best.params, ("loss",))
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
    say(found)
    return confirmed


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
