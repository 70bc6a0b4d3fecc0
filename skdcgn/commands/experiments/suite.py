"""The whole suite: the runs of all experiments at one scale, side by side, then the report."""

import collections
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from skdcgn.commands.experiments import execution
from skdcgn.configs.names import Profile
from skdcgn.configs.suite import Config
from skdcgn.data import weights
from skdcgn.data.mnist import check_available, mnist_folder
from skdcgn.errors import InputError, Interrupted, Unavailable
from skdcgn.recipes.sweep import DistillationSearch, stage_of
from skdcgn.runs.engine.cluster import Where, connect, size
from skdcgn.runs.engine.durations import Durations
from skdcgn.runs.engine.execute import Driver, Outcome
from skdcgn.runs.engine.progress import Progress
from skdcgn.runs.engine.tasks import Stage
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import new_force
from skdcgn.runs.plan import Plan
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import Store, open_store

REPORT = PROJECT / "analysis" / "output" / "report.html"


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


class Part(NamedTuple):
    """An experiment of the suite, planned."""

    name: str
    command: str
    """That runs it alone."""
    plan: Plan | DistillationSearch | None
    problem: str = ""
    """Why it has no plan, where it has none."""


def run(entries: Sequence[Entry], config: Config) -> None:
    """Run the suite.

    Raises:
        InputError: `only` names no step, SKDCGN_DATA_DIR no folder, a file is damaged, or there are no such workers.
        Interrupted: SIGINT or SIGTERM came in; the runs left checkpoints.
        SystemExit: with code 1 where a run failed.
    """
    where = Where(config.jobs, config.scheduler)
    parts, store = _parts(entries, config), open_store()
    if config.dry_run:
        _dry_run(parts, store, where.workers)
        return
    force = new_force()
    stages = {part.name: stage_of(part.plan, store, force) for part in parts if part.plan is not None}
    for part in parts:
        if part.problem:
            print(f"{part.name} cannot run: {part.problem}", flush=True)
    outcome = Outcome()
    if stages:
        with connect(where, store) as client:
            print(f"{size(client)} workers; logs: {store.folder / 'logs'}", flush=True)
            outcome = Driver(client, store, size(client)).execute(list(stages.values()))
    if outcome.signum is not None:
        raise Interrupted(outcome.signum)
    reported = _report() if not config.only or "report" in config.only else True
    _print_summary(parts, stages, outcome, store)
    if outcome.failed or not reported or any(part.problem for part in parts):
        raise SystemExit(1)


def status(entries: Sequence[Entry], config: Config) -> None:
    """Say how far the suite is, wherever it runs, and who is at which run.

    Raises:
        InputError: see `run`.
    """
    parts, store = _parts(entries, config), open_store()
    width = max(len(part.name) for part in parts)
    for part in parts:
        stage = Stage([]) if part.plan is None else stage_of(part.plan, store, "")
        finished = {run.tags.get("identity", ""): run for run in store.runs(part.name, "FINISHED")}
        own = [task for task in stage.tasks if task.experiment == part.name]
        done = sum(task.find(finished) is not None for task in own)
        print(f"{part.name:{width}}  {part.problem or f'{done:3} of {len(own):3} runs done'}")
        for run in store.runs(part.name, "RUNNING"):
            print(f"{'':{width}}  running: {run.name}, {Lease.read(run.tags)}")


def _parts(entries: Sequence[Entry], config: Config) -> list[Part]:
    """Plan the experiments that were chosen.

    Raises:
        InputError: see `run`.
    """
    known = [*(entry.name for entry in entries), "report"]
    for name in config.only:
        if name not in known:
            raise InputError(f"the suite has no {name!r}: --only takes {', '.join(known)}.")
    datasets = choose_datasets(config.dataset)
    print(f"data: {datasets.reason}", flush=True)
    chosen = [entry for entry in entries if not config.only or entry.name in config.only]
    return [_part(entry, config.profile, datasets) for entry in chosen]


def _part(entry: Entry, profile: Profile, datasets: Datasets) -> Part:
    """Plan an experiment at a profile, on its data set."""
    default, options = entry.script.DEFAULTS[profile], []
    if entry.flag:
        name, dataset = entry.flag.removeprefix("--"), datasets.real if entry.real else datasets.distilled
        default = replace(default, **{name: (dataset,) if name == "datasets" else dataset})
        options = [entry.flag, dataset]
    command = shlex.join(["python", f"experiments/{entry.name}.py", "--profile", profile, *options])
    try:
        return Part(entry.name, command, entry.script.plan(default))
    except InputError as error:
        return Part(entry.name, command, None, str(error))


def _dry_run(parts: Sequence[Part], store: Store, workers: int) -> None:
    """Say for each run how far it is, and how long the rest takes, about."""
    progress = Progress(Durations(), workers)
    for part in parts:
        print(f"\n{part.name}: {part.command}")
        try:
            if part.plan is None:
                raise InputError(part.problem)
            progress.add(stage_of(part.plan, store, "").tasks)
            lines = execution.dry_run(part.plan)
        except InputError as error:
            lines = [f"error: {error}"]
        print(*(f"  {line}" for line in lines), sep="\n")
    print(f"\n{workers} at a time, {_about(progress.seconds_left() / 60)}. This was a dry run: nothing was run.")


def _report() -> bool:
    """Write the report, in a process of its own; return whether that went well."""
    print("report ...", flush=True)
    return subprocess.run([sys.executable, "-m", "analysis.report.render"], cwd=PROJECT, check=False).returncode == 0


def _print_summary(parts: Sequence[Part], stages: Mapping[str, Stage], outcome: Outcome, store: Store) -> None:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for key, task in outcome.tasks.items():
        how = "done" if key in outcome.runs else "failed" if key in outcome.failed else "not run"
        counts[task.experiment][how] += 1
    print("\nsummary")
    width = max(map(len, counts), default=0)
    for name, count in counts.items():
        print(f"  {name:{width}}  {', '.join(f'{number} {how}' for how, number in count.items())}")
    for key, failed in outcome.failed.items():
        task = outcome.tasks.get(key, key)
        print(f"  failed: {task}: {failed.reason}{f' (log: {failed.log})' if failed.log else ''}")
    if REPORT.exists():
        print(f"report: {REPORT}")
    if store.local:
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
