"""The whole suite: every experiment of the plan at one scale, then the report.

    python -m experiments                                    a first look, on a laptop
    python -m experiments --profile paper --only mnist_kd    one experiment in the published setting
    python -m experiments --dry-run                          the plan, and how long it will take

Finished runs are not run again, interrupted ones are resumed. An experiment that fails does not stop the others.
Several run at a time, a thread each, and write to log files; with --jobs 1 they run one by one in the terminal.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

import tyro
from tqdm import tqdm

from skdcgn import cli
from skdcgn.data import mnist, weights
from skdcgn.errors import InputError, Interrupted
from skdcgn.recipes.profiles import Profile
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import Interruption

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "analysis" / "output" / "report.html"


class Estimate(NamedTuple):
    """What an entry of the plan takes on one CPU core: measured at smoke and quick, reckoned from steps beyond."""

    runs: int
    minutes: float


class Datasets(NamedTuple):
    """What the MNIST experiments run on, and why."""

    distilled: str
    """Whose CGN is distilled: source-free, without real images."""
    real: str
    """What is trained and tested on real images."""
    reason: str
    """One line."""


@dataclass(frozen=True)
class Entry:
    """One step of the plan: a Python command of its own process."""

    name: str
    """The MLflow experiment that it writes: the script's stem."""
    arguments: tuple[str, ...]
    """The command after `python`; {profile}, {distilled} and {real} stand for the suite's (see `Datasets`)."""
    estimates: Mapping[Profile, Estimate]
    """What it takes where nothing of it is finished yet."""
    after: tuple[str, ...] = ()
    """Steps whose runs it uses, and would make itself."""

    def command(self, profile: Profile, datasets: Datasets) -> list[str]:
        """Return what to give to `python`."""
        names = {"profile": profile, "distilled": datasets.distilled, "real": datasets.real}
        return [argument.format_map(names) for argument in self.arguments]


def _script(
    name: str, flags: tuple[str, ...], estimates: Sequence[tuple[int, float]], after: tuple[str, ...] = ()
) -> Entry:
    """An experiment with its flags beside the profile, and its estimates at smoke, quick, full and paper."""
    of_profiles = dict(zip(get_args(Profile), (Estimate(*each) for each in estimates), strict=True))
    return Entry(name, (f"experiments/{name}.py", "--profile", "{profile}", *flags), of_profiles, after)


_DISTILLED, _REAL = ("--dataset", "{distilled}"), ("--dataset", "{real}")
_TEACHER = ("train_cgn_mnist",)  # trains the digits' one
_IMAGENET = ("imagenet_kd", "baseline_cgn_tinygan")

# Long ones before short ones, where one does not wait for another: at the end no core should be idle for long.
_EXPERIMENTS = (
    _script("train_cgn_mnist", _REAL, [(1, 0.4), (1, 3), (1, 15), (1, 60)]),
    _script("mnist_kd", _DISTILLED, [(4, 0.2), (10, 11), (4, 60), (4, 110)], _TEACHER),
    _script("baseline_mnist", _REAL, [(2, 0.3), (2, 3), (6, 60), (6, 300)]),
    _script("imagenet_kd", (), [(7, 0.3), (5, 3), (5, 600), (5, 9000)]),
    _script("baseline_cgn_tinygan", (), [(4, 0.3), (4, 2), (4, 3000), (4, 30000)]),
    _script("table1_shape_im", _REAL, [(13, 0.3), (64, 11), (130, 170), (100, 4500)], _TEACHER),
    _script("ablation_losses", _DISTILLED, [(19, 0.7), (55, 9), (91, 490), (91, 3200)], _TEACHER),
    _script(
        "ood_robustness",
        ("--datasets", "{real}"),
        [(8, 0.7), (17, 7), (40, 300), (40, 450)],
        (*_TEACHER, "mnist_kd", "baseline_mnist"),
    ),
    _script("kl_convergence", _DISTILLED, [(10, 0.7), (28, 5), (46, 250), (46, 1600)], _TEACHER),
    _script("sweep_kl", _DISTILLED, [(17, 0.3), (48, 5), (122, 260), (52, 1700)], _TEACHER),
    _script("sweep_lambdas", _DISTILLED, [(11, 0.2), (40, 4), (112, 230), (42, 1300)], _TEACHER),
    _script("noise_pairing", _DISTILLED, [(7, 0.3), (19, 3), (31, 100), (31, 1000)], _TEACHER),
    _script("imagenet_ood", (), [(5, 0.2), (13, 2), (13, 9000), (13, 9000)], _IMAGENET),
)

PLAN = (
    *_EXPERIMENTS,
    Entry(
        "report",
        ("-m", "analysis.report.render"),
        dict.fromkeys(get_args(Profile), Estimate(0, 1)),
        tuple(entry.name for entry in _EXPERIMENTS),
    ),
)
"""The suite, in order."""


@dataclass(frozen=True)
class Config:
    """What to run of the suite."""

    profile: Profile = "quick"
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    dataset: Literal["auto", "double_colored", "digits"] = "auto"
    """For the MNIST experiments: double-coloured MNIST; scikit-learn's digits with a teacher trained here (no network,
    no data); auto takes the first for whatever it is to be had."""
    only: tuple[str, ...] = ()
    """Names of the steps to run; all by default."""
    jobs: int = 0
    """Steps that run at the same time, a CPU thread each; 0 is one for each core, 4 at most."""
    dry_run: bool = False
    """Print the plan and its estimated time; run nothing."""

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise InputError(f"--jobs {self.jobs} runs nothing: give the number of steps to run at a time, or 0.")

    @property
    def slots(self) -> int:
        """The number of steps that run at the same time."""
        return self.jobs or min(4, os.cpu_count() or 1)


class Result(NamedTuple):
    """How an entry of the plan ended."""

    name: str
    status: str
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.status.startswith("failed")


def main(config: Config) -> None:
    """Run the plan.

    Raises:
        InputError: `only` names no step of the plan, or SKDCGN_DATA_DIR no folder.
        Interrupted: SIGINT or SIGTERM came in; the running experiments left checkpoints.
        SystemExit: with code 1 where an experiment failed.
    """
    entries = select(config.only)
    datasets = choose_datasets(config.dataset)
    _say(f"data: {datasets.reason}")
    minutes = duration(entries, config.profile, config.slots)
    steps = "1 step" if len(entries) == 1 else f"{len(entries)} steps"
    at_a_time = f", {config.slots} at a time" if config.slots > 1 else ""
    _say(f"plan: {steps} at --profile {config.profile}{at_a_time}, {_about(minutes)} on CPU")
    if config.dry_run:
        _say_plan(entries, config.profile, datasets)
        return
    store = run_store.open_store()
    with Interruption() as interruption:
        results = run(entries, config, datasets, store, interruption)
    _say_summary(entries, results, store)
    if interruption.signum is not None:
        raise Interrupted(interruption.signum)
    if any(result.failed for result in results):
        raise SystemExit(1)


def select(names: Sequence[str]) -> list[Entry]:
    """Return the steps of the plan with these names, in the plan's order; all of them for no names.

    Raises:
        InputError: a name is not in the plan.
    """
    known = [entry.name for entry in PLAN]
    for name in names:
        if name not in known:
            raise InputError(f"the plan has no step {name!r}: --only takes {', '.join(known)}.")
    return [entry for entry in PLAN if not names or entry.name in names]


def choose_datasets(requested: str) -> Datasets:
    """Choose what the MNIST experiments run on.

    Distillation needs a teacher only: double-coloured MNIST's, by the CGN authors or from the package. Other
    experiments need MNIST itself, and take the digits where that is not to be had.

    Raises:
        InputError: SKDCGN_DATA_DIR names no folder.
    """
    if requested != "auto":
        return Datasets(requested, requested, f"{requested}, as --dataset says")
    weights.data_dir()  # a wrong SKDCGN_DATA_DIR is a mistake to report, no reason to take the digits
    try:
        teacher = f"the CGN authors' own teacher, at {weights.locate('cgn_double_colored_mnist')}"
    except InputError as error:
        teacher = f"the teacher in the package, trained here, because {error}"
    try:
        reason = f"double_colored with {teacher}; MNIST at {mnist.mnist_folder()}"
        return Datasets("double_colored", "double_colored", reason)
    except InputError as error:
        reason = f"double_colored with {teacher}; scikit-learn's digits where real images are needed, because {error}"
        return Datasets("double_colored", "digits", reason)


def duration(entries: Sequence[Entry], profile: Profile, slots: int) -> float:
    """Estimate the minutes of a plan: an entry starts when a slot is free and what it comes after has ended."""
    waiting, ends, now = list(entries), dict[str, float](), 0.0
    while waiting or ends:
        for entry in list(waiting):
            unfinished = {other.name for other in waiting} | set(ends)
            if len(ends) < slots and not unfinished & set(entry.after):
                waiting.remove(entry)
                ends[entry.name] = now + entry.estimates[profile].minutes
        now = min(ends.values())
        ends = {name: end for name, end in ends.items() if end > now}
    return now


# glibc would hand memory back after every training step, and fetch it anew for the next: 5 to 14 % of a step on a quiet
# machine, and most of the suite's system time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}


class _Step:
    """An entry that runs, in a process group of its own.

    From the terminal's Ctrl-C it would otherwise get the signal twice, which ends an experiment before it can write
    its checkpoint.
    """

    def __init__(self, entry: Entry, command: Sequence[str], before: set[str], log: Path | None) -> None:
        self.entry, self.log = entry, log
        self._before, self._start = before, time.perf_counter()
        self._output: IO[bytes] | None = log.open("wb") if log else None
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Threads that spin while they wait make everything many times slower where cores are shared.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **_KEEP_MEMORY, **os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._output, "stderr": self._output}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, process_group=0, **streams)

    def result(self, store: run_store.Store, interrupted: bool) -> Result | None:
        """Tell how it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        if self._output:
            self._output.close()
        if interrupted:
            status = "interrupted"
        elif code:
            status = f"failed (exit code {code if code > 0 else 128 - code})"
        elif self._before and _finished(self.entry, store) == self._before:
            status = "finished before, skipped"
        else:
            status = "done"
        return Result(self.entry.name, status, time.perf_counter() - self._start)


def run(
    entries: Sequence[Entry], config: Config, datasets: Datasets, store: run_store.Store, interruption: Interruption
) -> list[Result]:
    """Run entries, several at a time, and tell how they ended, in the order in which they did."""
    waiting, running, results = list(entries), list[_Step](), list[Result]()
    signal_sent = False
    try:
        while running or (waiting and interruption.signum is None):
            ended = {result.name for result in results}
            for entry in list(waiting) if interruption.signum is None else []:
                unfinished = {other.name for other in entries} - ended
                if len(running) < config.slots and not unfinished & set(entry.after):
                    waiting.remove(entry)
                    running.append(_start(entry, entries, config, datasets, store))
            if interruption.signum is not None and not signal_sent:
                for step in running:
                    step.process.send_signal(interruption.signum)
                signal_sent = True
            time.sleep(0.1)
            for step in list(running):
                result = step.result(store, interruption.signum is not None)
                if result is not None:
                    running.remove(step)
                    results.append(result)
                    _say_result(result, step.log)
    except KeyboardInterrupt:  # a second Ctrl-C, which `Interruption` lets through: do not wait for the checkpoints
        for step in running:
            step.process.send_signal(signal.SIGINT)
            step.process.wait()
            results.append(Result(step.entry.name, "interrupted", 0.0))
    return results


def _start(entry: Entry, entries: Sequence[Entry], config: Config, datasets: Datasets, store: run_store.Store) -> _Step:
    """Start an entry; where several run at a time, its output goes to a file."""
    log = None
    if config.slots > 1:
        log = store.folder / "logs" / f"{entry.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
    where = f" (log: {log})" if log else ""
    number = list(entries).index(entry) + 1
    estimate = _about(entry.estimates[config.profile].minutes)
    _say(f"[{number}/{len(entries)}] {entry.name} ... {estimate}{where}")
    command = [sys.executable, *entry.command(config.profile, datasets)]
    return _Step(entry, command, _finished(entry, store), log)


def _finished(entry: Entry, store: run_store.Store) -> set[str]:
    """Return the ids of the finished runs of an entry's experiment."""
    return {run.info.run_id for run in store.search(entry.name, "attributes.status = 'FINISHED'")}


def _say(text: str) -> None:
    """Print at once: the experiments write to the same place."""
    print(text, flush=True)


def _say_result(result: Result, log: Path | None) -> None:
    """Tell how a step ended; where it failed, with the end of its log."""
    _say(f"      {result.name}: {result.status}, {tqdm.format_interval(result.seconds)}")
    if result.failed and log:
        lines = log.read_text(errors="replace").strip().splitlines()[-5:]
        _say("\n".join(f"        | {line}" for line in lines))


def _say_plan(entries: Sequence[Entry], profile: Profile, datasets: Datasets) -> None:
    width = max(len(entry.name) for entry in entries)
    for index, entry in enumerate(entries, start=1):
        estimate = entry.estimates[profile]
        runs = {0: "", 1: "1 run"}.get(estimate.runs, f"{estimate.runs} runs")
        command = shlex.join(["python", *entry.command(profile, datasets)])
        _say(f"[{index}/{len(entries)}] {entry.name:{width}}  {runs:>8}  {_about(estimate.minutes):>23}  {command}")
    _say("Runs that are finished are skipped. This was a dry run: nothing was run.")


def _say_summary(entries: Sequence[Entry], results: Sequence[Result], store: run_store.Store) -> None:
    width = max(len(entry.name) for entry in entries)
    _say("\nsummary")
    for result in results:
        _say(f"  {result.name:{width}}  {tqdm.format_interval(result.seconds):>8}  {result.status}")
    started = {result.name for result in results}
    for entry in [entry for entry in entries if entry.name not in started]:
        _say(f"  {entry.name:{width}}  {'':>8}  not run")
    if REPORT.exists():
        _say(f"report: {REPORT}")
    if store.uri.startswith("sqlite:"):
        settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
        server = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri, "--workers", "1"]
        _say(f"runs:   {settings} {shlex.join(server)}\n        and open http://127.0.0.1:5000")
    else:
        _say(f"runs:   {store.uri}")


def _about(minutes: float) -> str:
    """Write a duration as an estimate."""
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, prog="python -m experiments", description=__doc__)))
