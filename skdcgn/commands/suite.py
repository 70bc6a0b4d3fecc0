"""The whole suite: every experiment at one scale, each a step of its own, then the report."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from tqdm import tqdm

from skdcgn.cli import Profile
from skdcgn.commands import experiment
from skdcgn.data import weights
from skdcgn.data.mnist import check_available, mnist_folder
from skdcgn.errors import InputError, Interrupted, Unavailable
from skdcgn.recipes.sweep import DistillationSearch
from skdcgn.runs.lifecycle import state_of
from skdcgn.runs.loop import Interruption
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.steps import Result, Step, run_steps, total_seconds
from skdcgn.runs.store import Store, open_store

REPORT = PROJECT / "analysis" / "output" / "report.html"
_REPORT_SECONDS = 60.0
_PRUNED = 0.5  # of a search's trials, about, that run to their ends


class Script(Protocol):
    """An experiment's module."""

    DEFAULTS: Mapping[Profile, object]

    @staticmethod
    def plan(config: object) -> Plan | DistillationSearch: ...


class Entry(NamedTuple):
    """An experiment of the suite."""

    name: str
    script: Script
    flag: str = ""
    """Its option for the data set, if it has one."""
    real: bool = False
    """Whether it needs real images, or a teacher alone."""


@dataclass(frozen=True)
class Config:
    """What to run of the suite."""

    profile: Profile = "quick"
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    dataset: Literal["auto", "double_colored", "digits"] = "auto"
    """For the MNIST experiments: double-colored MNIST; scikit-learn's digits with a teacher trained here (no network,
    no data); auto takes double_colored wherever what it needs is available."""
    only: tuple[str, ...] = ()
    """Names of the steps to run; all by default."""
    jobs: int = 0
    """Steps that run at the same time, a CPU thread each; 0 is one for each core, 4 at most."""
    dry_run: bool = False
    """Say for each run whether it is finished, and if not why it would run; run nothing."""

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise InputError(f"--jobs {self.jobs} runs nothing: give the number of steps to run at a time, or 0.")

    @property
    def slots(self) -> int:
        """The number of steps that run at the same time."""
        return self.jobs or min(4, os.cpu_count() or 1)


class Datasets(NamedTuple):
    """What the MNIST experiments run on, and why."""

    distilled: str
    """Whose CGN is distilled: source-free, without real images."""
    real: str
    """What is trained and tested on real images."""
    reason: str
    """One line."""


def choose_datasets(requested: str) -> Datasets:
    """Choose what the MNIST experiments run on.

    Distillation needs a teacher only: double-colored MNIST's, by the CGN authors or from the package. Other
    experiments need MNIST itself, and take the digits where it is not available.

    Raises:
        InputError: SKDCGN_DATA_DIR names no folder, or a file is damaged: no reason to take others in their place.
    """
    if requested != "auto":
        return Datasets(requested, requested, f"{requested}, as --dataset says")
    try:
        teacher = f"the CGN authors' own teacher, at {weights.locate('cgn_double_colored_mnist')}"
    except Unavailable as error:
        teacher = f"the teacher in the package, trained here, because {error}"
    try:
        check_available("double_colored")
        reason = f"double_colored with {teacher}; MNIST at {mnist_folder()}"
        return Datasets("double_colored", "double_colored", reason)
    except Unavailable as error:
        reason = f"double_colored with {teacher}; scikit-learn's digits where real images are needed, because {error}"
        return Datasets("double_colored", "digits", reason)


def run(entries: Sequence[Entry], config: Config) -> None:
    """Run the suite.

    Raises:
        InputError: `only` names no step, SKDCGN_DATA_DIR no folder, or a file in it is damaged.
        Interrupted: SIGINT or SIGTERM came in; the running experiments left checkpoints.
        SystemExit: with code 1 where an experiment failed.
    """
    known = [*(entry.name for entry in entries), "report"]
    for name in config.only:
        if name not in known:
            raise InputError(f"the plan has no step {name!r}: --only takes {', '.join(known)}.")
    datasets = choose_datasets(config.dataset)
    print(f"data: {datasets.reason}", flush=True)
    store = open_store()
    chosen = [entry for entry in entries if not config.only or entry.name in config.only]
    plans = {entry.name: _plan(entry, config.profile, datasets) for entry in chosen}
    steps = [_step(entry, plans[entry.name], config.profile, datasets, store) for entry in chosen]
    if not config.only or "report" in config.only:
        report = (sys.executable, "-m", "analysis.report.render")
        steps.append(Step("report", report, frozenset(plans), _REPORT_SECONDS))
    minutes = total_seconds(steps, config.slots) / 60
    count = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
    at_a_time = f", {config.slots} at a time" if config.slots > 1 else ""
    print(f"plan: {count} at --profile {config.profile}{at_a_time}, {_about(minutes)} on CPU", flush=True)
    if config.dry_run:
        for step in steps:
            print(f"\n{step.name}: {_about(step.seconds / 60)}, {shlex.join(['python', *step.command[1:]])}")
            lines = _dry_run(plans[step.name]) if step.name in plans else []
            print(*(f"  {line}" for line in lines), sep="\n", end="\n" if lines else "")
        print("\nFinished runs are skipped. This was a dry run: nothing was run.")
        return
    with Interruption() as interruption:
        results = _run(steps, config, store, interruption)
    _print_summary(results, store)
    if interruption.signum is not None:
        raise Interrupted(interruption.signum)
    if any(result.failed for result in results):
        raise SystemExit(1)


def _plan(entry: Entry, profile: Profile, datasets: Datasets) -> Plan | DistillationSearch | InputError:
    """Return the plan of an experiment at a profile, on its data set, or why it has none: its step will fail, alone."""
    default = entry.script.DEFAULTS[profile]
    if entry.flag:
        name, dataset = entry.flag.removeprefix("--"), datasets.real if entry.real else datasets.distilled
        default = replace(default, **{name: (dataset,) if name == "datasets" else dataset})
    try:
        return entry.script.plan(default)
    except InputError as error:
        return error


def _dry_run(plan: Plan | DistillationSearch | InputError) -> list[str]:
    """Say how far the runs of a plan are, or why they cannot be made."""
    try:
        if isinstance(plan, InputError):
            raise plan
        return experiment.dry_run(plan)
    except InputError as error:
        return [f"error: {error}"]


def _step(
    entry: Entry,
    plan: Plan | DistillationSearch | InputError,
    profile: Profile,
    datasets: Datasets,
    store: Store,
) -> Step:
    """Return the step of an experiment: it comes after those that make the runs that it needs."""
    dataset = [entry.flag, datasets.real if entry.real else datasets.distilled] if entry.flag else []
    command = (sys.executable, f"experiments/{entry.name}.py", "--profile", profile, *dataset)
    if isinstance(plan, InputError):
        return Step(entry.name, command)
    cases = list(plan.needs.values()) if isinstance(plan, DistillationSearch) else plan.everything()
    after = frozenset(case.experiment for case in cases) - {entry.name}
    return Step(
        entry.name, command, after, _seconds(plan, [case for case in cases if case.experiment == entry.name], store)
    )


def _seconds(plan: Plan | DistillationSearch, cases: Sequence[Case], store: Store) -> float:
    """Estimate what is left of an experiment's own runs, on one CPU core."""
    if isinstance(plan, DistillationSearch):
        confirmation = plan.confirmation({}).cases
        return confirmation[0].seconds * (_PRUNED * plan.search.trials + len(confirmation))
    return sum(case.seconds for case in cases if state_of(case, store).status != "finished")


def _run(steps: Sequence[Step], config: Config, store: Store, interruption: Interruption) -> list[Result]:
    """Run the steps, telling when each starts and how it ends; where several run at a time, they write to files."""
    numbers = {step.name: number for number, step in enumerate(steps, 1)}

    def started(step: Step, log: Path | None) -> None:
        where = f" (log: {log})" if log else ""
        print(f"[{numbers[step.name]}/{len(steps)}] {step.name} ... {_about(step.seconds / 60)}{where}", flush=True)

    def ended(result: Result) -> None:
        print(f"      {result.name}: {result.status}, {tqdm.format_interval(result.seconds)}", flush=True)
        if result.failed and result.log:
            lines = result.log.read_text(errors="replace").strip().splitlines()[-5:]
            print(*(f"        | {line}" for line in lines), sep="\n", flush=True)

    logs = store.folder / "logs" if config.slots > 1 else None
    return run_steps(steps, config.slots, interruption, logs, started, ended)


def _print_summary(results: Sequence[Result], store: Store) -> None:
    width = max(len(result.name) for result in results)
    print("\nsummary")
    for result in results:
        took = tqdm.format_interval(result.seconds) if result.seconds else ""
        print(f"  {result.name:{width}}  {took:>8}  {result.status}")
    if REPORT.exists():
        print(f"report: {REPORT}")
    if store.uri.startswith("sqlite:"):
        settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
        server = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri, "--workers", "1"]
        address = "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
        print(f"runs:   {settings} {shlex.join(server)}\n        and open {address}")
    else:
        print(f"runs:   {store.uri}")


def _about(minutes: float) -> str:
    """Write a duration as an estimate."""
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
