"""Sweeps: what is tried first, reproducible draws, pruned and lost trials, several workers, the best as a file."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution, FloatDistribution

from analysis import sweeps as drawn
from analysis.report import export
from experiments import mnist_kd, sweep_kl, sweep_lambdas
from skdcgn import cli
from skdcgn.cgn.teachers import MNISTTeacher
from skdcgn.errors import InputError, Interrupted
from skdcgn.recipes import student
from skdcgn.recipes import sweep as sweep_recipe
from skdcgn.recipes.profiles import MNIST
from skdcgn.runs import processes
from skdcgn.runs import search as run_search
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import Diverged
from skdcgn.runs.run import Run
from skdcgn.runs.search import Report, SearchConfig, Sweep
from skdcgn.runtime import Runtime
from skdcgn.tinygan.losses import LossConfig

PROJECT = Path(__file__).parents[1]
SPACE = {"loss.lambda_1": FloatDistribution(0.01, 10, log=True), "loss.kl_on": CategoricalDistribution(("a", "b"))}
FIRST = [{"loss.lambda_1": 0.2, "loss.kl_on": "b"}, {"loss.lambda_1": 1.0, "loss.kl_on": "a"}]
DEAD = f"{socket.gethostname()}:{2**22 + 1}@1"  # a process id above the largest there can be


def objective(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
    run.log_metrics("loss", {"pixel": 0.5, "kl": 0.5}, 1)
    return [-(math.log(params["loss.lambda_1"]) ** 2)]


def open_sweep(
    store: run_store.Store, name: str = "study", identity: str = "same", first: int = 2, **search: Any
) -> Sweep:
    search = SearchConfig(**{"trials": 3, **search})
    return Sweep(store, "sweep", name, SPACE, FIRST[:first], {"iou": "maximize"}, search, identity)


def take(sweep: Sweep, process: str, minutes: float = 0.0) -> optuna.Trial:
    """Take a trial as another process would have done some time ago."""
    trial = sweep._next()
    trial.set_user_attr("process", process)
    trial.set_user_attr("started", time.time() - 60 * minutes)
    sweep._storage.flush_all_batches()
    return trial


def params(table: pd.DataFrame) -> list[list[Any]]:
    return table[list(SPACE)].to_numpy().tolist()


def test_the_papers_values_come_first_and_every_trial_is_one_run(store: run_store.Store) -> None:
    sweep = open_sweep(store)
    assert sweep.work(objective)
    sweep.end()
    table = sweep.table()
    assert params(table)[:2] == [[0.2, "b"], [1.0, "a"]]
    assert table["number"].tolist() == [0, 1, 2]
    assert set(table["state"]) == {"complete"}
    assert table["iou"][1] == 0.0  # log 1
    runs = store.search("sweep")
    assert {run.info.run_id for run in runs} == {sweep.run.run_id, *table["run_id"]}
    assert {run.info.status for run in runs} == {"FINISHED"}
    first = store.client.get_run(table["run_id"][0]).data
    assert first.tags["mlflow.parentRunId"] == sweep.run.run_id
    assert first.tags["state"] == "complete"
    assert first.params == {"loss.lambda_1": "0.2", "loss.kl_on": "b"}
    assert first.metrics == {"loss/pixel": 0.5, "loss/kl": 0.5, "value": table["iou"][0]}


def test_draws_do_not_depend_on_who_asks(store: run_store.Store) -> None:
    open_sweep(store, "whole", first=0).work(objective)
    for trials in (1, 3):  # a worker of its own each time
        open_sweep(store, "pieces", first=0, trials=trials).work(objective)
    whole, pieces = (run_search.table(run_search.load_study(store, "sweep", name)) for name in ("whole", "pieces"))
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


def test_hopeless_trials_are_pruned_and_marked(store: run_store.Store) -> None:
    values = iter([0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.95])
    completed = []

    def reporting(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        value = next(values)
        report(10, 0.0)  # too early to tell
        report(20, value)
        completed.append(value)
        return [value]

    search = SearchConfig(trials=7)
    sweep = Sweep(store, "sweep", "study", SPACE, [], {"iou": "maximize"}, search, "same", prune_from=15)
    sweep.work(reporting)
    table = sweep.table()
    assert table["state"].tolist() == ["complete"] * 5 + ["pruned", "complete"]
    assert 0.1 not in completed
    assert table["iou"][5] == 0.1
    pruned = store.client.get_run(table["run_id"][5])
    assert (pruned.info.status, pruned.data.tags["state"]) == ("KILLED", "pruned")
    assert sweep.best().number == 6


def test_trial_of_a_dead_process_is_run_again(store: run_store.Store) -> None:
    take(open_sweep(store, first=1), DEAD)
    sweep = open_sweep(store, first=1, trials=2)
    assert sweep.work(objective)
    table = sweep.table()
    assert table["state"].tolist() == ["lost", "complete", "complete"]
    assert table["retry_of"].tolist()[1] == 0
    assert params(table)[0] == params(table)[1] == [0.2, "b"]
    lost = store.client.get_run(table["run_id"][0])
    assert (lost.info.status, lost.data.tags["state"]) == ("FAILED", "lost")


def test_trials_in_other_hands_are_left_alone_for_a_while(store: run_store.Store) -> None:
    sweep = open_sweep(store, first=0)
    alive, _ = take(sweep, processes.this_process()), take(sweep, "another-machine:1@1", minutes=10)
    store.end_dead_runs("sweep")  # as every start of a run in this experiment does
    assert not open_sweep(store, first=0).work(objective)  # others are still at it
    assert sweep.table()["state"].tolist() == ["running", "running", "complete"]
    open_sweep(store, first=0, dead_after=5.0).work(objective)
    assert sweep.table()["state"].tolist() == ["running", "lost", "complete", "complete"]
    sweep.study.tell(alive, 0.0)


def test_parameters_that_kill_every_process_do_not_hold_up_the_study(store: run_store.Store) -> None:
    sweep = open_sweep(store, first=1, trials=1)
    for _ in range(3):
        take(sweep, DEAD)
    assert sweep.work(objective)
    assert sweep.table()["state"].tolist() == ["lost", "lost", "fail"]
    assert params(sweep.table()) == [[0.2, "b"]] * 3


def test_interrupted_worker_puts_its_trial_back(store: run_store.Store) -> None:
    def interrupted(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        raise Interrupted(signal.SIGTERM)

    sweep = open_sweep(store, first=1, trials=1)
    with pytest.raises(Interrupted):
        sweep.work(interrupted)
    assert sweep.table()["state"].tolist() == ["lost", "waiting"]
    sweep.work(objective)
    assert sweep.table()["state"].tolist() == ["lost", "complete"]


def test_diverged_trial_fails_and_is_not_tried_again(store: run_store.Store) -> None:
    def diverging(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        if params["loss.lambda_1"] == 0.2:
            raise Diverged("loss 'pixel' is nan at step 3")
        return [1.0]

    sweep = open_sweep(store)
    assert sweep.work(diverging)
    table = sweep.table()
    assert table["state"].tolist() == ["fail", "complete", "complete"]
    assert "step 3" in store.client.get_run(table["run_id"][0]).data.tags["error"]


def test_several_objectives_beside_other_metrics(store: run_store.Store) -> None:
    directions = {"iou": "maximize", "parameters": "minimize"}

    def two(run: Run, params: dict[str, Any], report: Report | None) -> list[float]:
        assert report is None
        run.log_metrics("final", {"iou": 0.0, "l1": 1.0}, 1)
        return [params["loss.lambda_1"], params["loss.lambda_1"]]

    sweep = Sweep(store, "sweep", "study", SPACE, FIRST, directions, SearchConfig(trials=2), "same")
    sweep.work(two)
    assert len(sweep.study.best_trials) == 2  # every one of them is on the front
    assert sweep.best().number == sweep.table()["iou"].idxmax()


def test_study_of_another_config_is_not_mixed_in(store: run_store.Store) -> None:
    open_sweep(store)
    with pytest.raises(InputError, match="begun with another config"):
        open_sweep(store, identity="other")
    with pytest.raises(InputError, match="without quotes"):
        open_sweep(store, "it's mine")
    with pytest.raises(InputError, match="holds no study 'none'"):
        run_search.load_study(store, "sweep", "none")


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, random_teacher: MNISTTeacher, tmp_path: Path
) -> Callable[..., pd.DataFrame]:
    """Runs a sweep script at smoke scale against a random teacher; returns the confirmation."""

    def run(module: Any, **changes: Any) -> pd.DataFrame:
        monkeypatch.setattr(module, "load_teacher", lambda *_: random_teacher)
        monkeypatch.setattr(student, "_latencies", lambda *_: {})  # most of a smoke run's time
        config = cli.parse(module.DEFAULTS, args=["--profile", "smoke", "--out", str(tmp_path / "out")])
        return module.main(replace(config, runtime=Runtime(threads=1), **changes))

    return run


def test_sweep_lambdas_and_its_best_as_a_config_file(
    store: run_store.Store, script: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    search = SearchConfig(trials=2, sampler="random")
    confirmed = script(sweep_lambdas, search=search, confirm_seeds=(5,), decay=True, widths=(4,))
    assert confirmed["seed"].tolist() == [5, 5]
    assert confirmed["setting"].tolist() == ["the paper's values", "best"]
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert table.loc[0, ["loss.lambda_1", "loss.lambda_2", "loss.lambda_1_decay"]].tolist() == [0.2, 0.01, 0.01]
    assert (table["parameters"] > 0).all()
    runs = store.search("sweep_lambdas")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all("Feeds the notebook" in run.data.tags["mlflow.note.content"] for run in runs)
    phases = [run.data.tags["phase"] for run in runs]
    assert {phase: phases.count(phase) for phase in phases} == {
        "study": 1,
        "trial": 2,
        "confirmation": 1,
        "confirm": len(set(confirmed["run_id"])),
    }
    best = table.loc[table["iou"].idxmax()]
    trial = store.client.get_run(best["run_id"])
    assert trial.data.tags["mechanism"] == "shape"
    assert {"code_version", "hardware", "torch"} <= set(trial.data.tags)  # it says where it comes from, as a run does
    assert {"loss/feature", "heldout/iou", "final/iou", "final/l1"} <= set(trial.data.metrics)
    assert not list((store.folder / "checkpoints").glob("*"))

    file = tmp_path / "out" / "best.yaml"
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


def test_sweep_kl_says_how_the_best_fares(
    store: run_store.Store, script: Callable[..., pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed = script(sweep_kl, search=SearchConfig(trials=3), confirm_seeds=(1,), mechanism="texture")
    assert set(confirmed["setting"]) == {"Eq. 6", "the published module", "no KL", "best"}
    study = next(run for run in store.search("sweep_kl") if run.data.tags["phase"] == "study")
    table = run_search.table(run_search.load_study(store, "sweep_kl", study.info.run_name))
    assert table["loss.kl_on"].tolist() == ["pixels", "activations", "image"]
    assert (table["l1"] > 0).all()
    kept = export.rows_of(store, "sweep_kl")
    assert len(kept["sweep_kl"]) == 3
    assert set(kept["sweep_kl_confirmation"]["steps"]) == {MNIST["smoke"].sweep.steps}
    for count, run_id in enumerate(confirmed.drop_duplicates("run_id")["run_id"], start=1):
        store.client.delete_run(run_id)
        left = export.rows_of(store, "sweep_kl")["sweep_kl_confirmation"]
        assert len(left) == (~confirmed["run_id"].isin(confirmed["run_id"].unique()[:count])).sum()
    printed = capsys.readouterr().out
    assert "itself" in printed
    assert "no KL: l1" in printed


def test_compare_in_words() -> None:
    rows = [("best", seed, 0.8 + seed / 100) for seed in range(4)]
    rows += [("worse", seed, 0.7 + seed / 100 + seed % 2 / 1000) for seed in range(4)]
    rows += [("alike", seed, 0.8 + seed % 2 / 10) for seed in range(4)]
    confirmed = pd.DataFrame(rows, columns=["setting", "seed", "iou"])
    first, second = sweep_recipe.compare(confirmed, "iou", "maximize").splitlines()
    assert "better than worse: iou 0.8150 against 0.7155, gain +0.0995 [+0.0986, +0.1004]" in first
    assert "not told apart from alike" in second
    assert "worse than worse" in sweep_recipe.compare(confirmed, "iou", "minimize")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss: {lamda_1: 1}", "did you mean loss.lambda_1?"),
        ("schedule: cosine", "names a field schedule"),
        ("loss: 1", "it takes fields"),
        ("loss: {lambda_1: much}", "valid number"),
        ("loss: {kl_on: mask}", "'pixels', 'image' or 'activations'"),
        ("loss: {lambda_1: -1}", "must not be negative"),
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


def test_confirmation_needs_fresh_seeds(script: Callable[..., pd.DataFrame]) -> None:
    for seeds in ((), (1, 0)):
        with pytest.raises(InputError, match="others than 0"):
            script(sweep_kl, confirm_seeds=seeds)


def words(figure: Figure) -> str:
    """All text of a figure, wherever it was broken into lines."""
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


def test_figures_of_a_study(store: run_store.Store) -> None:
    search = SearchConfig(trials=8, sampler="random")
    first = [sweep_kl.PAPER, {**sweep_kl.PAPER, "loss.kl": 20.0}]
    directions = {"iou": "maximize"}
    sweep = Sweep(store, "sweep_kl", "a study", sweep_kl.SPACE, first, directions, search, "same")
    tags = {"profile": "quick", "dataset": "double_colored", "mechanism": "shape", "teacher": "CGN", "stand_in": False}
    sweep.run.set_tags({**tags, "phase": "study"})
    sweep.work(lambda run, params, report: [math.log(params["loss.kl"])])
    assert "No finished study" in words(drawn.fresh_seeds(store, "sweep_kl"))

    rows = [("no KL", seed, 0.5 + seed / 100) for seed in (1, 2)] + [("best", seed, 0.7) for seed in (1, 2)]
    confirmed = pd.DataFrame(rows, columns=["setting", "seed", "iou"]).assign(run_id=["a", "b", "c", "d"])
    sweep_recipe._keep(sweep.run, {"confirmation.csv": confirmed.to_csv(index=False)})
    figures = [
        drawn.history(store, "sweep_kl"),
        drawn.importance(store, "sweep_kl", resamples=2),
        drawn.kl_response(store),
        drawn.fresh_seeds(store, "sweep_kl"),
    ]
    for figure in figures:
        assert "shape student, double-colored MNIST" in words(figure)
        assert "Study a study" in words(figure)
        assert "8 complete" in words(figure)
    assert "better than no KL" in drawn.verdict(store, "sweep_kl")
    shown = drawn.best_trials(store, "sweep_kl", count=1)
    assert shown["λ_KL"].tolist() == [max(params["loss.kl"] for params in map(dict, first)), 1.0]

    for figure in (drawn.history(store, "sweep_lambdas"), drawn.lambda_response(store), drawn.pareto_front(store)):
        assert "python experiments/sweep_lambdas.py" in words(figure)


def test_importances_find_what_matters_and_say_how_sure() -> None:
    study = optuna.create_study()
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for _ in range(30):
        trial = study.ask({"matters": FloatDistribution(0, 1), "does not": FloatDistribution(0, 1)})
        study.tell(trial, trial.params["matters"])
    values = drawn.importances(study, resamples=3)
    assert len(values) == 3 * 2 * 2
    mean = values.groupby(["method", "parameter"])["share"].mean()
    assert mean["fANOVA", "matters"] > 0.9
    assert mean["PED-ANOVA", "matters"] > mean["PED-ANOVA", "does not"]
    assert values.groupby(["method", "parameter"])["share"].nunique().min() == 3


WORKER = """
import os, sys, time
from skdcgn import tracking
from tests.test_sweeps import open_sweep

def slow(run, params, report):
    print("at work", flush=True)
    time.sleep(0.3)
    return [params["loss.lambda_1"]]

open_sweep(tracking.open_store(), trials=12).work(slow)
"""


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(store: run_store.Store) -> None:
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
