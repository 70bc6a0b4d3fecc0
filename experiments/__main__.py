"""The whole suite: every experiment of the plan at one scale, one after another, then the report.

    python -m experiments                                    a first look, on a laptop
    python -m experiments --profile paper --only mnist_kd    one experiment in the published setting
    python -m experiments --dry-run                          the plan, and how long it will take

Finished runs are not run again, interrupted ones are resumed. An experiment that fails does not stop the others.
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
from typing import Literal, NamedTuple, get_args

import tyro
from tqdm import tqdm

from skdcgn import cli, tracking, weights
from skdcgn.errors import InputError
from skdcgn.profiles import Profile
from skdcgn.runtime import Interrupted, Interruption

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "analysis" / "output" / "report.html"


class Estimate(NamedTuple):
    """What an entry of the plan takes, measured on 2 CPU cores."""

    runs: int
    minutes: float


@dataclass(frozen=True)
class Entry:
    """One step of the plan: a Python command of its own process."""

    name: str
    """The MLflow experiment that it writes: the script's stem."""
    arguments: tuple[str, ...]
    """The command after `python`; {profile} and {dataset} stand for the suite's."""
    estimates: Mapping[Profile, Estimate]
    """What it takes where nothing of it is finished yet."""
    digits_only: bool = False
    """Whether it is needed with --dataset digits alone."""

    def command(self, profile: Profile, dataset: str) -> list[str]:
        """Return what to give to `python`."""
        return [argument.format(profile=profile, dataset=dataset) for argument in self.arguments]


PLAN = (
    Entry(
        "train_cgn_mnist",
        ("experiments/train_cgn_mnist.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(1, 0.5), "quick": Estimate(1, 3), "full": Estimate(1, 10), "paper": Estimate(1, 60)},
        digits_only=True,
    ),
    Entry(
        "mnist_kd",
        ("experiments/mnist_kd.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(4, 0.5), "quick": Estimate(4, 6), "full": Estimate(4, 60), "paper": Estimate(4, 110)},
    ),
    Entry(
        "ablation_losses",
        ("experiments/ablation_losses.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(19, 1), "quick": Estimate(55, 8), "full": Estimate(91, 490), "paper": Estimate(91, 3200)},
    ),
    Entry(
        "kl_convergence",
        ("experiments/kl_convergence.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(10, 0.7), "quick": Estimate(28, 5), "full": Estimate(46, 250), "paper": Estimate(46, 1600)},
    ),
    Entry(
        "noise_pairing",
        ("experiments/noise_pairing.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(7, 0.5), "quick": Estimate(19, 2), "full": Estimate(31, 100), "paper": Estimate(31, 1000)},
    ),
    Entry(
        "sweep_lambdas",
        ("experiments/sweep_lambdas.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(11, 0.5), "quick": Estimate(40, 6), "full": Estimate(112, 230), "paper": Estimate(42, 1300)},
    ),
    Entry(
        "sweep_kl",
        ("experiments/sweep_kl.py", "--profile", "{profile}", "--dataset", "{dataset}"),
        {"smoke": Estimate(17, 0.7), "quick": Estimate(48, 7), "full": Estimate(122, 260), "paper": Estimate(52, 1700)},
    ),
    Entry("report", ("-m", "analysis.render"), dict.fromkeys(get_args(Profile), Estimate(0, 1))),
)
"""The suite, in order."""


@dataclass(frozen=True)
class Config:
    """What to run of the suite."""

    profile: Profile = "quick"
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    dataset: Literal["auto", "double_colored", "digits"] = "auto"
    """For the MNIST experiments: double-coloured MNIST with the CGN authors' teacher; scikit-learn's digits with a
    teacher trained here (no network, no data); auto takes the first where that teacher is to be had."""
    only: tuple[str, ...] = ()
    """Names of the steps to run; all by default."""
    dry_run: bool = False
    """Print the plan and its estimated time; run nothing."""


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
        Interrupted: SIGINT or SIGTERM came in; the running experiment left a checkpoint.
        SystemExit: with code 1 where an experiment failed.
    """
    dataset, reason = choose_dataset(config.dataset)
    entries = select(config.only, dataset)
    _say(f"data: {reason}")
    estimates = [entry.estimates[config.profile] for entry in entries]
    total = sum(estimate.minutes for estimate in estimates)
    steps = "1 step" if len(entries) == 1 else f"{len(entries)} steps"
    _say(f"plan: {steps} at --profile {config.profile}, {_about(total)} on 2 CPU cores")
    if config.dry_run:
        _say_plan(entries, estimates, config.profile, dataset)
        return
    store = tracking.open_store()
    results: list[Result] = []
    start, planned, measured = time.perf_counter(), 0.0, 0.0  # the last two: minutes of what has been run so far
    with Interruption() as interruption:
        for index, (entry, estimate) in enumerate(zip(entries, estimates, strict=True)):
            pace = measured / planned if planned else 1.0
            left = pace * sum(estimate.minutes for estimate in estimates[index:])
            elapsed = tqdm.format_interval(time.perf_counter() - start)
            _say(f"\n[{index + 1}/{len(entries)}] {entry.name} ... elapsed {elapsed}, {_about(left)} left")
            results.append(run(entry, config.profile, dataset, store, interruption))
            if interruption.signum is not None:
                break
            if results[-1].status == "done":
                planned, measured = planned + estimate.minutes, measured + results[-1].seconds / 60
    _say_summary(entries, results, store)
    if interruption.signum is not None:
        raise Interrupted(interruption.signum)
    if any(result.failed for result in results):
        raise SystemExit(1)


def select(names: Sequence[str], dataset: str) -> list[Entry]:
    """Return the steps of the plan with these names, in the plan's order; all that a data set needs for no names.

    Raises:
        InputError: a name is not in the plan.
    """
    plan = [entry for entry in PLAN if dataset == "digits" or not entry.digits_only]
    known = [entry.name for entry in plan]
    for name in names:
        if name not in known:
            raise InputError(
                f"with --dataset {dataset} the plan has no step {name!r}: --only takes {', '.join(known)}."
            )
    return [entry for entry in plan if not names or entry.name in names]


def choose_dataset(requested: str) -> tuple[str, str]:
    """Return the data set of the MNIST experiments, and in one line which it is and why.

    Raises:
        InputError: SKDCGN_DATA_DIR names no folder.
    """
    if requested != "auto":
        return requested, f"{requested}, as --dataset says"
    weights.data_dir()  # a wrong SKDCGN_DATA_DIR is a mistake to report, no reason to take the digits
    try:
        path = weights.locate("cgn_double_colored_mnist")
    except InputError as error:
        return "digits", f"digits (scikit-learn's, with a teacher trained here), because {error}"
    return "double_colored", f"double_colored (MNIST, with the CGN authors' own teacher), because that is at {path}"


def run(entry: Entry, profile: Profile, dataset: str, store: tracking.Store, interruption: Interruption) -> Result:
    """Run one entry of the plan and tell how it ended."""
    before, start = _finished(entry, store), time.perf_counter()
    code = _execute([sys.executable, *entry.command(profile, dataset)], interruption)
    seconds = time.perf_counter() - start
    if interruption.signum is not None:
        status = "interrupted"
    elif code:
        status = f"failed (exit code {code if code > 0 else 128 - code})"
    elif before and _finished(entry, store) == before:
        status = "finished before, skipped"
    else:
        status = "done"
    return Result(entry.name, status, seconds)


def _execute(command: Sequence[str], interruption: Interruption) -> int:
    """Run a command to its end, handing on the signal that interrupts the suite.

    The command gets a process group of its own: from the terminal's Ctrl-C it would otherwise get the signal twice,
    which ends an experiment before it can write its checkpoint.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads that spin while they wait make everything many times slower where cores are shared.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, process_group=0) as process:
        told = False
        try:
            while True:
                try:
                    return process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    if interruption.signum is not None and not told:
                        process.send_signal(interruption.signum)
                        told = True
        except KeyboardInterrupt:  # a second Ctrl-C, which `Interruption` lets through: do not wait for the checkpoint
            process.send_signal(signal.SIGINT)
            return process.wait()


def _finished(entry: Entry, store: tracking.Store) -> set[str]:
    """Return the ids of the finished runs of an entry's experiment."""
    return {run.info.run_id for run in store.search(entry.name, "attributes.status = 'FINISHED'")}


def _say(text: str) -> None:
    """Print at once: the experiments write to the same place."""
    print(text, flush=True)


def _say_plan(entries: Sequence[Entry], estimates: Sequence[Estimate], profile: Profile, dataset: str) -> None:
    width = max(len(entry.name) for entry in entries)
    for index, (entry, estimate) in enumerate(zip(entries, estimates, strict=True), start=1):
        runs = {0: "", 1: "1 run"}.get(estimate.runs, f"{estimate.runs} runs")
        command = shlex.join(["python", *entry.command(profile, dataset)])
        _say(f"[{index}/{len(entries)}] {entry.name:{width}}  {runs:>8}  {_about(estimate.minutes):>23}  {command}")
    _say("Runs that are finished are skipped. This was a dry run: nothing was run.")


def _say_summary(entries: Sequence[Entry], results: Sequence[Result], store: tracking.Store) -> None:
    width = max(len(entry.name) for entry in entries)
    _say("\nsummary")
    for result in results:
        _say(f"  {result.name:{width}}  {tqdm.format_interval(result.seconds):>8}  {result.status}")
    for entry in entries[len(results) :]:
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
