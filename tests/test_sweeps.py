"""Sweeps: what is tried first, reproducible draws, pruned and lost trials, several workers, the best as a file."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest

from experiments import mnist_kd, sweep_kl, sweep_lambdas
from skdcgn import cli
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.commands.experiments.execution import dry_run
from skdcgn.errors import Diverged, InputError, Interrupted
from skdcgn.recipes import students
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.recipes.sweep import conduct, fresh_seeds
from skdcgn.runs import leases
from skdcgn.runs.identity import identify
from skdcgn.runs.leases import Watch
from skdcgn.runs.lifecycle import Terminal
from skdcgn.runs.plan import SearchConfig
from skdcgn.runs.run import Run
from skdcgn.runs.search import sweep as run_search
from skdcgn.runs.search.studies import importances, load_study
from skdcgn.runs.search.sweep import CategoricalDistribution, Definition, FloatDistribution, Report, Sweep, as_yaml
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import Runtime
from skdcgn.tinygan.losses import LossConfig

PROJECT = Path(__file__).parents[1]
SPACE = {"loss.lambda_1": FloatDistribution(0.01, 10, log=True), "loss.kl_on": CategoricalDistribution(("a", "b"))}
FIRST = [{"loss.lambda_1": 0.2, "loss.kl_on": "b"}, {"loss.lambda_1": 1.0, "loss.kl_on": "a"}]
DEAD = {"pid": 2**22 + 1}  # above the largest process id there can be


def objective(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
    run.log_metrics("loss", {"pixel": 0.5, "kl": 0.5}, 1)
    return [-(math.log(params["loss.lambda_1"]) ** 2)]


@dataclass(frozen=True)
class Common:
    """What the trials of a study have in common."""

    steps: int = 1


def define(name: str = "study", steps: int = 1, **changes: Any) -> Definition:
    given = {"directions": {"iou": "maximize"}, "first": FIRST, "identity": identify(Common(steps), objective)}
    return Definition("sweep", name, SPACE, **{**given, **changes})


def open_sweep(store: Store, name: str = "study", steps: int = 1, first: int = 2, **search: Any) -> Sweep:
    return Sweep(store, define(name, steps, first=FIRST[:first]), SearchConfig(**{"trials": 3, **search}))


def take(sweep: Sweep, **changes: Any) -> optuna.Trial:
    """Take a trial as another process would have done."""
    trial, lease = sweep._next()
    sweep.store.set_tags(trial._trial_id, replace(lease, **changes).tags)
    return trial


def params(table: pd.DataFrame) -> list[list[Any]]:
    return table[list(SPACE)].to_numpy().tolist()


def test_the_papers_values_come_first_and_every_trial_is_one_run(store: Store) -> None:
    sweep = open_sweep(store)
    assert sweep.work(objective, Terminal())
    sweep.end()
    table = sweep.table()
    assert params(table)[:2] == [[0.2, "b"], [1.0, "a"]]
    assert table["number"].tolist() == [0, 1, 2]
    assert set(table["state"]) == {"complete"}
    assert table["iou"][1] == 0.0  # log 1
    runs = store.runs("sweep")
    assert {run.run_id for run in runs} == {sweep.run.run_id, *table["run_id"]}
    assert {run.status for run in runs} == {"FINISHED"}
    assert {run.tags["kind"] for run in runs} == {"study", "trial"}
    first = store.record(table["run_id"][0])
    assert first.parent == sweep.run.run_id
    assert (first.tags["kind"], first.tags["state"]) == ("trial", "complete")
    assert first.params == {"loss.lambda_1": "0.2", "loss.kl_on": "b"}
    assert first.metrics == {"loss/pixel": 0.5, "loss/kl": 0.5, "value": table["iou"][0]}


def test_draws_do_not_depend_on_who_asks(store: Store) -> None:
    open_sweep(store, "whole", first=0).work(objective, Terminal())
    for trials in (1, 3):  # a worker of its own each time
        open_sweep(store, "pieces", first=0, trials=trials).work(objective, Terminal())
    whole, pieces = (load_study(store, "sweep", name).trials for name in ("whole", "pieces"))
    assert params(whole) == params(pieces)
    assert len({row[0] for row in params(whole)}) == 3


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_are_seeded(sampler: str) -> None:
    def draws(seed: int) -> list[float]:
        study = optuna.create_study(direction="maximize")
        for number in range(12):  # the first ten of TPE and GP are random
            study.sampler = run_search._sampler(SearchConfig(sampler=sampler, seed=seed), number)
            trial = study.ask({"x": FloatDistribution(0, 1)})
            study.tell(trial, -((trial.params["x"] - 0.3) ** 2))
        return [trial.params["x"] for trial in study.trials]

    assert draws(0) == draws(0) != draws(1)
    assert len(set(draws(0))) == 12


def test_hopeless_trials_are_pruned_and_marked(store: Store) -> None:
    values = iter([0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.95])
    completed = []

    def reporting(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        value = next(values)
        report(10, 0.0)  # too early to tell
        report(20, value)
        completed.append(value)
        return [value]

    sweep = Sweep(store, define(first=(), prune_from=15), SearchConfig(trials=7))
    sweep.work(reporting, Terminal())
    table = sweep.table()
    assert table["state"].tolist() == ["complete"] * 5 + ["pruned", "complete"]
    assert 0.1 not in completed
    assert table["iou"][5] == 0.1
    pruned = store.record(table["run_id"][5])
    assert (pruned.status, pruned.tags["state"]) == ("KILLED", "pruned")
    assert sweep.best().number == 6


def test_trial_of_a_dead_process_is_run_again(store: Store) -> None:
    take(open_sweep(store, first=1), **DEAD)
    sweep = open_sweep(store, first=1, trials=2)
    assert sweep.work(objective, Terminal())
    table = sweep.table()
    assert table["state"].tolist() == ["lost", "complete", "complete"]
    assert table["retry_of"].tolist()[1] == 0
    assert params(table)[0] == params(table)[1] == [0.2, "b"]
    lost = store.record(table["run_id"][0])
    assert (lost.status, lost.tags["state"]) == ("FAILED", "lost")


def test_trials_in_other_hands_are_left_alone_while_their_leases_are_renewed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "time", clock := SimpleNamespace(monotonic=lambda: 0.0))
    sweep = open_sweep(store, first=0)
    alive, _ = take(sweep), take(sweep, machine="another")
    store.end_dead_runs("sweep", Watch())  # as every start of a run in this experiment does
    assert not sweep.work(objective, Terminal())  # others are still at it
    assert sweep.table()["state"].tolist() == ["running", "running", "complete"]
    clock.monotonic = lambda: 61.0
    assert not sweep.work(objective, Terminal())
    assert sweep.table()["state"].tolist() == ["running", "lost", "complete", "complete"]
    assert sweep.other().run_id == alive._trial_id
    sweep.study.tell(alive, 0.0)
    assert sweep.other() is None


def test_parameters_that_kill_every_process_do_not_hold_up_the_study(store: Store) -> None:
    sweep = open_sweep(store, first=1, trials=1)
    for _ in range(3):
        take(sweep, **DEAD)
    assert sweep.work(objective, Terminal())
    assert sweep.table()["state"].tolist() == ["lost", "lost", "fail"]
    assert params(sweep.table()) == [[0.2, "b"]] * 3


def test_interrupted_worker_puts_its_trial_back(store: Store) -> None:
    def interrupted(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        raise Interrupted(signal.SIGTERM)

    sweep = open_sweep(store, first=1, trials=1)
    with pytest.raises(Interrupted):
        sweep.work(interrupted, Terminal())
    assert sweep.table()["state"].tolist() == ["lost", "waiting"]
    sweep.work(objective, Terminal())
    assert sweep.table()["state"].tolist() == ["lost", "complete"]


def test_diverged_trial_fails_and_is_not_tried_again(store: Store) -> None:
    def diverging(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        if params["loss.lambda_1"] == 0.2:
            raise Diverged("pixel", math.nan, 3)
        return [1.0]

    sweep = open_sweep(store)
    assert sweep.work(diverging, Terminal())
    table = sweep.table()
    assert table["state"].tolist() == ["fail", "complete", "complete"]
    assert "step 3" in store.record(table["run_id"][0]).tags["error"]


def test_several_objectives_beside_other_metrics(store: Store) -> None:
    directions = {"iou": "maximize", "parameters": "minimize"}

    def two(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        assert report is None
        run.log_metrics("final", {"iou": 0.0, "l1": 1.0}, 1)
        return [params["loss.lambda_1"], params["loss.lambda_1"]]

    sweep = Sweep(store, define(directions=directions), SearchConfig(trials=2))
    sweep.work(two, Terminal())
    assert len(sweep.study.best_trials) == 2  # every one of them is on the front
    assert sweep.best().number == sweep.table()["iou"].idxmax()


def test_study_of_another_config_is_not_mixed_in(store: Store) -> None:
    open_sweep(store)
    with pytest.raises(InputError, match=r"begun with another config .*\(steps was 1, is 2\)"):
        open_sweep(store, steps=2)
    with pytest.raises(InputError, match="without quotes"):
        open_sweep(store, "it's mine")
    with pytest.raises(InputError, match="holds no study 'none'"):
        load_study(store, "sweep", "none")


def test_a_study_says_whether_it_is_complete_and_which_trial_is_best(store: Store) -> None:
    sweep = open_sweep(store)
    begun = load_study(store, "sweep", "study")
    assert (begun.best, begun.front, begun.is_complete(0)) == (None, (), False)  # two trials wait
    sweep.work(objective, Terminal())
    done = load_study(store, "sweep", "study")
    assert done.best == FIRST[1] == sweep.best().params
    assert done.is_complete(3)
    assert not done.is_complete(4)


Conduct = Callable[..., pd.DataFrame]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, random_teacher: MNISTTeacher, tmp_path: Path) -> Conduct:
    """Runs a sweep script at smoke scale against a random teacher; returns the confirmation, or a dry run's lines."""
    monkeypatch.setattr(MNISTTeacherConfig, "load", lambda *_: random_teacher)
    monkeypatch.setattr(students, "_latencies", lambda *_: {})  # most of a smoke run's time

    def run(module: Any, do: Callable[..., Any] = conduct, **changes: Any) -> Any:
        config = cli.parse(module.DEFAULTS, args=["--profile", "smoke", "--out", str(tmp_path / "out")])
        return do(module.plan(replace(config, runtime=Runtime(threads=1), **changes)))

    return run


def by_kind(store: Store, experiment: str) -> dict[str, list[RunRecord]]:
    runs = store.runs(experiment)
    return {kind: [run for run in runs if run.tags["kind"] == kind] for kind in sorted({r.tags["kind"] for r in runs})}


def test_sweep_lambdas_and_its_best_as_a_config_file(store: Store, script: Conduct, tmp_path: Path) -> None:
    search = SearchConfig(trials=2, sampler="random")
    confirmed = script(sweep_lambdas, search=search, confirm_seeds=(5,), decay=True, widths=(4,))
    assert confirmed["seed"].tolist() == [5, 5]
    assert confirmed["setting"].tolist() == ["the paper's values", "best"]
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert table.loc[0, ["loss.lambda_1", "loss.lambda_2", "loss.lambda_1_decay"]].tolist() == [0.2, 0.01, 0.01]
    assert (table["parameters"] > 0).all()
    runs = by_kind(store, "sweep_lambdas")
    counts = {kind: len(found) for kind, found in runs.items()}
    assert counts == {"confirmation": len(set(confirmed["run_id"])), "study": 1, "trial": 2}
    everything = [run for found in runs.values() for run in found]
    for run in everything:
        assert run.status == "FINISHED"
        assert "Feeds the notebook" in run.tags["mlflow.note.content"]
        told = {"identity", "dependencies", "hardware", "torch", "profile", "dataset", "source", "teacher", "overrides"}
        assert told <= set(run.tags)
        assert run.tags["mechanism"] == "shape"
    assert len({run.tags["identity"] for run in everything}) == sum(counts.values())
    (study,) = runs["study"]
    assert {"best.yaml", "trials.csv", "confirmation.csv"} <= set(store.files(study.run_id))
    assert {run.tags["study"] for run in runs["confirmation"]} == {study.name}
    assert "the paper's values" in {run.tags["setting"] for run in runs["confirmation"]}
    best = table.loc[table["iou"].idxmax()]
    trial = store.record(best["run_id"])
    assert {"loss/feature", "heldout/iou", "final/iou", "final/l1"} <= set(trial.metrics)
    assert not list((store.folder / "checkpoints").glob("*"))

    file = tmp_path / "out" / "best.yaml"
    assert "On fresh seeds" in file.read_text()
    config = cli.parse(mnist_kd.DEFAULTS, args=["--config", str(file)])
    assert config.loss.lambda_1 == pytest.approx(best["loss.lambda_1"])
    chosen = {name: getattr(config.loss, name) for name in ("lambda_1", "lambda_2", "lambda_1_decay")}
    assert config.loss == LossConfig(**chosen)
    assert config.student.width == 4
    assert replace(config, loss=LossConfig(), student=mnist_kd.DEFAULTS["quick"].student) == replace(
        mnist_kd.DEFAULTS["quick"], loss=LossConfig()
    )
    with store.artifact(best["run_id"], "config.yaml") as kept:
        assert cli.parse(mnist_kd.DEFAULTS, args=[f"--config={kept}"]) == config
    changed = cli.parse(mnist_kd.DEFAULTS, args=["--loss.kl", "3", "--config", str(file), "--profile", "full"])
    assert changed == replace(mnist_kd.DEFAULTS["full"], loss=replace(config.loss, kl=3.0), student=config.student)


def test_sweep_kl_says_how_the_best_fares_and_goes_on(
    store: Store, script: Conduct, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"search": SearchConfig(trials=3), "confirm_seeds": (1,), "mechanism": "texture"}
    (before,) = script(sweep_kl, dry_run, **wanted)
    assert before.endswith("3 trials to run, then 4 runs to confirm the best of them")
    assert store.experiments() == ["Default"]  # it begins nothing
    confirmed = script(sweep_kl, **wanted)
    assert confirmed["setting"].tolist() == ["Eq. 6", "the published module", "no KL", "best"]
    (study,) = by_kind(store, "sweep_kl")["study"]
    found = load_study(store, "sweep_kl", study.name)
    assert found.trials["loss.kl_on"].tolist() == ["pixels", "activations", "image"]
    assert (found.trials["l1"] > 0).all()
    printed = capsys.readouterr().out
    assert printed.count("the best trial is the same") == list(sweep_kl.REFERENCES.values()).count(found.best)
    assert "no KL: l1" in printed

    first, *confirmations = script(sweep_kl, dry_run, **wanted)
    assert "3 complete; 3 trials wanted" in first
    assert len(confirmations) == confirmed["run_id"].nunique()
    assert all("finished" in line for line in confirmations)
    store.client.delete_run(confirmed["run_id"][0])
    count = len(store.runs("sweep_kl"))
    again = script(sweep_kl, **wanted)
    assert len(store.runs("sweep_kl")) == count + 1
    assert again["l1"].tolist() == confirmed["l1"].tolist()
    (more,) = script(sweep_kl, dry_run, **{**wanted, "search": SearchConfig(trials=4)})
    assert "3 complete; 4 trials wanted, then 4 runs" in more
    (changed,) = script(sweep_kl, dry_run, **{**wanted, "seed": 7})
    assert "3 trials to run (seed was 0, is 7), then" in changed
    with pytest.raises(InputError, match="begun with another config"):
        script(sweep_kl, dry_run, **{**wanted, "seed": 7, "search": SearchConfig(study.name, trials=3)})


def test_confirmation_that_was_interrupted_is_resumed(
    store: Store, script: Conduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def interrupted(*_: Any) -> dict[str, float]:
        measured.append(None)
        if len(measured) == 2:  # after the only trial, in the confirmation
            raise Interrupted(signal.SIGTERM)
        return {}

    search = {"search": SearchConfig(trials=1), "confirm_seeds": (1,)}
    with monkeypatch.context() as patched:
        patched.setattr(students, "_latencies", interrupted)
        with pytest.raises(Interrupted):
            script(sweep_lambdas, **search)
    (killed,) = by_kind(store, "sweep_lambdas")["confirmation"]
    assert killed.status == "KILLED"
    line = script(sweep_lambdas, dry_run, **search)[-1]
    assert f"resumable (run {killed.run_id[:8]})" in line
    confirmed = script(sweep_lambdas, **search)
    assert confirmed["run_id"].tolist() == [killed.run_id] * 2  # the only trial is the paper's values
    assert {kind: len(runs) for kind, runs in by_kind(store, "sweep_lambdas").items()} == {
        "confirmation": 1,
        "study": 1,
        "trial": 1,
    }


def test_fresh_seeds_in_words() -> None:
    rows = [("best", seed, 0.8 + seed / 100) for seed in range(4)]
    rows += [("other", seed, 0.7 + seed / 100 + seed % 2 / 1000) for seed in range(4)]
    rows += [("same", seed, 0.8 + seed / 100) for seed in range(4)]
    confirmed = pd.DataFrame(rows, columns=["setting", "seed", "iou"])
    first, second, third = fresh_seeds(confirmed, "iou", "maximize").splitlines()
    assert "n=4) the best trial has iou 0.8150 [0.7945, 0.8355]" in first
    assert second.startswith("other: iou 0.7155")
    assert second.endswith("the best trial gains +0.0995 [+0.0986, +0.1004].")
    assert third.endswith("the best trial is the same.")
    assert "gains -0.0995 [-0.1004, -0.0986]" in fresh_seeds(confirmed, "iou", "minimize")
    single = fresh_seeds(confirmed[confirmed["seed"] == 0], "iou", "maximize")
    assert "other: iou 0.7000; the best trial gains +0.1000." in single


def test_yaml_has_whole_sections_and_what_was_searched() -> None:
    config = mnist_kd.DEFAULTS["smoke"]
    assert as_yaml(config, {"student.width": 1, "distill.steps": 1}) == (
        f"student:\n  width: {config.student.width}\ndistill:\n  steps: {config.distill.steps}\n"
    )
    assert "alphas:\n  - 0.03125\n" in as_yaml(config, {}, ("loss",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss: {lamda_1: 1}", "did you mean loss.lambda_1?"),
        ("schedule: cosine", "names a field schedule"),
        ("loss: 1", "it takes fields"),
        ("loss: {lambda_1: much}", "loss.lambda_1 is 'much': give a number of 0 or more"),
        ("loss: {kl_on: mask}", "'pixels', 'image' or 'activations'"),
        ("loss: {lambda_1: -1}", "loss.lambda_1 is -1: give a number of 0 or more"),
        ("profile: huge", "'smoke', 'quick', 'full' or 'paper'"),
        ("- 1", "holds no fields"),
        ("loss: {", "cannot be read"),
    ],
)
def test_bad_config_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        cli.parse(mnist_kd.DEFAULTS, args=["--config", str(tmp_path / "config.yaml")])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_config_file_may_be_json_and_name_the_profile(tmp_path: Path) -> None:
    content = {
        "profile": "smoke",
        "loss": {"kl": "1e-3"},
        "seeds": [3, 4],
        "teacher": "x.pth",
        "runtime": {"threads": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = cli.parse(mnist_kd.DEFAULTS, args=["--config", str(tmp_path / "config.json")])
    smoke = mnist_kd.DEFAULTS["smoke"]
    expected = {"seeds": (3, 4), "teacher": Path("x.pth"), "runtime": Runtime(threads=2)}
    assert config == replace(smoke, loss=replace(smoke.loss, kl=0.001), **expected)
    with pytest.raises(InputError, match="cannot be read"):
        cli.parse(mnist_kd.DEFAULTS, args=["--config", str(tmp_path / "missing.yaml")])


def test_confirmation_needs_fresh_seeds(script: Conduct) -> None:
    for seeds in ((), (1, 0)):
        with pytest.raises(InputError, match="confirm_seeds is"):
            script(sweep_kl, confirm_seeds=seeds)


def test_importances_find_what_matters_and_say_how_sure(store: Store) -> None:
    space = {"matters": FloatDistribution(0, 1), "does not": FloatDistribution(0, 1)}
    definition = replace(define(first=()), space=space)
    sweep = Sweep(store, definition, SearchConfig(trials=30, sampler="random"))
    sweep.work(lambda run, params, report: [params["matters"]], Terminal())
    values = importances(store, "sweep", "study", resamples=3)
    assert len(values) == 3 * 2 * 2
    mean = values.groupby(["method", "parameter"])["share"].mean()
    assert mean["fANOVA", "matters"] > 0.9
    assert mean["PED-ANOVA", "matters"] > mean["PED-ANOVA", "does not"]
    assert values.groupby(["method", "parameter"])["share"].nunique().min() == 3


WORKER = """
import os, sys, time
from skdcgn.runs.store import open_store
from test_sweeps import open_sweep

def slow(run, params, report):
    print("at work", flush=True)
    time.sleep(0.3)
    return [params["loss.lambda_1"]]

open_sweep(open_store(), trials=12).work(slow, Terminal())
"""


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(store: Store) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests"), *sys.path])}
    command = [sys.executable, "-c", WORKER]
    victim, survivor = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for _ in range(3):
        while "at work" not in victim.stdout.readline():
            pass
    victim.kill()  # in the middle of its third trial
    assert victim.wait() == -signal.SIGKILL
    survivor.communicate()
    assert survivor.returncode == 0
    table = open_sweep(store, trials=12).table()
    assert table["number"].tolist() == list(range(13))
    assert table["run_id"].is_unique
    assert sorted(table["state"]) == ["complete"] * 12 + ["lost"]
    (lost,) = table.index[table["state"] == "lost"]
    (retry,) = table.index[table["retry_of"] == table["number"][lost]]
    assert params(table)[retry] == params(table)[lost]
