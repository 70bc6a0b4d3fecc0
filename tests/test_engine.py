"""The engine: tasks on workers, what is skipped, fails, waits and is taken over; progress; Ctrl-C."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from distributed import Client, Scheduler, SpecCluster, Worker
from distributed.comm import CommClosedError
from walks import FAILING, Walk, tree, walk

from skdcgn.commands.experiments import execution
from skdcgn.errors import InputError, Interrupted, disk_fault
from skdcgn.runs.engine import worker
from skdcgn.runs.engine.cluster import GPU, Where, connect
from skdcgn.runs.engine.durations import Durations, chains
from skdcgn.runs.engine.execute import Driver, Outcome
from skdcgn.runs.engine.progress import Progress
from skdcgn.runs.engine.tasks import Making, Stage
from skdcgn.runs.engine.worker import Attendant, TaskFailed
from skdcgn.runs.leases import Lease
from skdcgn.runs.lifecycle import carry_out, create
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.store import Store, open_store

ELSEWHERE = Lease("key", "another-host", "another machine", 1, "2", every=10.0)


def stage(*cases: Case) -> Stage:
    return Stage([Making(case, "") for case in Plan(cases, ()).everything()])


def ended(outcome: Outcome) -> dict[str, list[str]]:
    """Return the names of the tasks by how they have ended."""
    by = {"done": outcome.runs, "failed": outcome.failed, "not run": outcome.not_run}
    return {how: sorted(outcome.tasks[key].name for key in keys) for how, keys in by.items() if keys}


def statuses(store: Store) -> list[str]:
    return [run.status for run in store.runs("walks")]


# --- on a worker in this process, which starts at once


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk, "pause", 0.0)
    monkeypatch.setattr(worker, "_LOOK", 0.05)


@pytest.fixture
def other(tmp_path: Path, empty_store: Path) -> Store:
    """A second store."""
    (tmp_path / "other").mkdir()
    shutil.copy(empty_store, tmp_path / "other" / "mlflow.db")
    return open_store(f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}")


@pytest.mark.usefixtures("quick")
def test_a_plan_comes_out_as_in_one_process(client: Client, store: Store, other: Store) -> None:
    plan = tree()
    outcome = Driver(client, store, 1).execute([stage(*plan.cases)])
    places = {task.name: outcome.runs[key].final["place"] for key, task in outcome.tasks.items()}
    alone = carry_out(plan, other)
    assert places == {f"walk {seed}": place for seed, place in alone["place"].items()}
    assert statuses(store) == ["FINISHED"] * 7
    for run in outcome.runs.values():
        with store.artifact(run.run_id, "log.txt") as log:
            assert log.read_text().startswith(f"walks: {run.name} (run {run.run_id})\n")
        assert (store.folder / "logs" / "walks" / f"{run.run_id}.log").exists()


@pytest.mark.usefixtures("quick")
def test_stages_share_their_tasks_and_finished_ones_are_not_sent(client: Client, store: Store) -> None:
    first, second = walk(0), walk(1)
    done = Driver(client, store, 1).execute([stage(first)])
    (run,) = done.runs.values()
    needy = walk(2, needs={"a": first, "b": second})
    driver = Driver(client, store, 1)
    outcome = driver.execute([stage(first), stage(needy), stage(second)])
    assert ended(outcome) == {"done": ["walk 0", "walk 1", "walk 2"]}
    assert run.run_id in {run.run_id for run in outcome.runs.values()}
    assert len(driver._futures) == 2
    assert statuses(store) == ["FINISHED"] * 3


@pytest.mark.usefixtures("quick")
def test_a_forced_task_is_made_again_once(client: Client, store: Store) -> None:
    Driver(client, store, 1).execute([stage(walk(0))])
    case = walk(0)
    forced = replace(case, config=replace(case.config, runtime=replace(case.config.runtime, force=True)))
    outcome = Driver(client, store, 1).execute([Stage([Making(forced, "now")]), Stage([Making(forced, "now")])])
    assert len(outcome.runs) == 1
    assert statuses(store) == ["FINISHED"] * 2


@pytest.mark.usefixtures("quick")
def test_a_failure_stops_only_what_needs_it(client: Client, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    failing = walk(FAILING)
    needy = walk(1, needs={"a": failing})
    outcome = Driver(client, store, 1).execute([stage(needy, walk(2, needs={"a": needy})), stage(walk(3))])
    assert ended(outcome) == {"done": ["walk 3"], "failed": ["walk 99"], "not run": ["walk 1", "walk 2"]}
    (failed,) = outcome.failed.values()
    (run,) = store.runs("walks", "FAILED")
    log = store.folder / "logs" / "walks" / f"{run.run_id}.log"
    assert (failed.status, failed.reason, failed.log) == ("error", "ValueError: this way is closed", str(log))
    assert "make_walk" in log.read_text()  # the traceback
    assert f"walks: walk 99: failed: ValueError: this way is closed (log: {log})" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ending:
        execution.check(outcome)
    assert ending.value.code == 1


def test_what_comes_of_failures() -> None:
    execution.check(Outcome())
    with pytest.raises(Interrupted):
        execution.check(Outcome(signum=2))
    bad = TaskFailed("input", "there is no such teacher.", "")
    with pytest.raises(InputError, match=r"^there is no such teacher\.$"):
        execution.check(Outcome(failed={"a": bad, "b": bad}))
    with pytest.raises(SystemExit):
        execution.check(Outcome(failed={"a": bad, "b": TaskFailed("error", "x", "")}))


@pytest.mark.usefixtures("quick")
def test_what_follows_a_stage_gets_its_runs(client: Client, store: Store) -> None:
    first = stage(walk(0))
    following = Stage(first.tasks, lambda runs: stage(walk(round(1e6 * abs(runs[first.tasks[0].key].final["place"])))))
    outcome = Driver(client, store, 1).execute([following])
    assert len(outcome.runs) == 2

    def refuse(runs: object) -> None:
        raise InputError("nothing to compare.")

    outcome = Driver(client, store, 1).execute([Stage(first.tasks, refuse)])
    assert [failed.reason for failed in outcome.failed.values()] == ["nothing to compare."]
    never = stage(walk(FAILING))
    outcome = Driver(client, store, 1).execute([Stage(never.tasks, refuse)])
    assert [failed.status for failed in outcome.failed.values()] == ["error"]


@pytest.mark.usefixtures("quick")
def test_while_another_process_is_at_a_run_others_are_made(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = create(walk(0), store, ELSEWHERE)
    sleep = time.sleep

    def end_it(seconds: float) -> None:
        if len(store.runs("walks", "FINISHED")) == 2:
            store.set_status(busy.run_id, "FINISHED")
        sleep(seconds)

    monkeypatch.setattr(worker.time, "sleep", end_it)
    outcome = Driver(client, store, 1).execute([stage(walk(0, seconds=9.0), walk(1), walk(2))])
    assert busy.run_id in {run.run_id for run in outcome.runs.values()}
    assert statuses(store) == ["FINISHED"] * 3
    assert "being made by process 1 on another-host" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_scheduler_that_is_gone_is_told(client: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's client cancels everything then: nothing failed, but nothing is done either."""
    submit = Driver._submit

    def lost(driver: Driver, task: Making, priority: float) -> None:
        submit(driver, task, priority)
        driver._futures[task.key].cancel()

    monkeypatch.setattr(Driver, "_submit", lost)
    with pytest.raises(InputError, match="the Dask scheduler is gone: start it again"):
        Driver(client, store, 1).execute([stage(walk(0))])


@pytest.mark.usefixtures("quick")
def test_workers_that_are_gone_are_replaced(client: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask gives up on a worker that dies while it starts."""
    asked: list[int] = []
    monkeypatch.setattr(client.cluster, "scale", asked.append)
    monkeypatch.setattr("skdcgn.runs.engine.execute._LOOK", 0.0)
    Driver(client, store, 3).execute([stage(walk(0))])
    assert set(asked) == {3}


@pytest.mark.usefixtures("quick")
def test_what_a_disk_refuses_is_told_in_a_sentence(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run.pt")

    def refuse(*_: object) -> None:
        raise full

    monkeypatch.setattr(Walk, "training_step", refuse)
    outcome = Driver(client, store, 1).execute([stage(walk(0))])
    (failed,) = outcome.failed.values()
    assert (failed.status, failed.reason) == ("input", disk_fault(full))


@pytest.mark.usefixtures("quick")
def test_a_worker_with_other_code_makes_nothing(client: Client, store: Store) -> None:
    case = walk(0)
    identity = case.identity
    code = {**identity.code, "walks": "an earlier version"}
    case.__dict__["identity"] = replace(identity, code=code)
    outcome = Driver(client, store, 1).execute([stage(case)])
    (failed,) = outcome.failed.values()
    reason = f"the worker on {socket.gethostname()} has other code than the driver (walks changed): update one of them."
    assert (failed.status, failed.reason) == ("input", reason)
    assert statuses(store) == []


@pytest.mark.usefixtures("quick")
def test_runs_on_cuda_go_to_workers_that_have_a_gpu(store: Store) -> None:
    any_port = "127.0.0.1:0"
    options = {"nthreads": 1, "dashboard_address": any_port}
    specification = {
        "plain": {"cls": Worker, "options": options},
        "gpu": {"cls": Worker, "options": {**options, "resources": {GPU: 1}}},
    }
    scheduler = {"cls": Scheduler, "options": {"protocol": "inproc", "dashboard_address": any_port}}
    runtime = replace(walk(0).config.runtime, device="cuda")
    cases = [replace(case, config=replace(case.config, runtime=runtime)) for case in map(walk, range(4))]
    with SpecCluster(specification, scheduler) as cluster, Client(cluster) as client:
        client.register_plugin(Attendant())
        outcome = Driver(client, store, 2).execute([stage(*cases)])
        assert ended(outcome) == {"done": ["walk 0", "walk 1", "walk 2", "walk 3"]}
        made = client.run(lambda dask_worker: sum("memory" in entry for entry in dask_worker.state.log))
        names = {address: worker["id"] for address, worker in client.scheduler_info()["workers"].items()}
        assert {names[address] for address, number in made.items() if number} == {"gpu"}


# --- progress


def test_chains_are_as_long_as_what_waits_for_them() -> None:
    first = walk(0, seconds=1.0)
    second, third = walk(1, needs={"a": first}, seconds=10.0), walk(2, needs={"a": first}, seconds=5.0)
    tasks = stage(second, third, walk(3, seconds=3.0)).tasks
    seconds = {task.name: chains(tasks, Durations())[task.key] for task in tasks}
    assert seconds == {"walk 0": 11.0, "walk 1": 10.0, "walk 2": 5.0, "walk 3": 3.0}


def test_durations_are_those_of_earlier_runs_or_scaled_by_what_others_took(store: Store) -> None:
    durations = Durations()
    known, unknown = stage(walk(0, seconds=10.0), walk(1, seconds=20.0)).tasks
    assert (durations.of(known), durations.of(unknown)) == (10.0, 20.0)
    run = create(walk(0, steps=3), store, Lease.take())  # another identity, but the same name
    store.set_status(run.run_id, "FINISHED")
    durations.learn(store.runs("walks"))
    assert 0 <= durations.of(known) < 5
    durations.note(unknown, 60.0)
    assert durations.of(unknown) == 60.0
    assert durations.of(stage(walk(2, seconds=2.0)).tasks[0]) == 6.0


def test_the_line_says_how_far_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    progress = Progress(Durations(), 2, out)
    first, second, third, fourth = stage(*(walk(seed, seconds=60.0) for seed in range(4))).tasks
    progress.add([first, second, third, fourth], {fourth.key})
    assert progress.seconds_left() == 90.0
    for task in (first, second):
        progress.event(task, {"begun": task.key})
    progress.event(first, {"started": "a run"})
    progress.event(second, {"started": "another"})
    line = progress.line()
    assert line.startswith("1 of 4 runs done, 2 running, 1 to do; 00:00 so far, about 01:")
    assert line.endswith(" left: walks: walk 0 (00:00); walks: walk 1 (00:00)")
    progress.ended(first, "failed", "too far")
    progress.ended(second, "not run")
    assert progress.line().startswith("1 of 4 runs done, 0 running, 1 failed, 1 cannot run, 1 to do; 00:00 so far")
    assert out.getvalue() == "walks: walk 0: failed: too far\n"
    assert re.fullmatch(r"00:00 on 2 workers, which were busy \d+\.\d% of the time", progress.busy())
    progress.event(third, {"said": "walks: walk 2: resuming at step 4 (run 1)"})
    assert "resuming at step 4" in out.getvalue()
    lines = out.getvalue().count("\n")
    progress.show()
    assert out.getvalue().count("\n") == lines  # no terminal: a line now and then
    monkeypatch.setattr("skdcgn.runs.engine.progress._QUIET", 0.0)
    progress.show()
    assert out.getvalue().count("\n") == lines + 1


# --- workers


def test_workers_that_cannot_be(store: Store) -> None:
    with pytest.raises(InputError, match="--jobs -1 runs nothing"):
        Where(-1)
    with pytest.raises(InputError, match="one of the two"):
        Where(2, "tcp://127.0.0.1:1")
    assert Where(3).workers == 3
    assert 1 <= Where().workers <= os.cpu_count()


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:1", "no such file", "ftp://x:y"])
def test_a_scheduler_that_does_not_answer(store: Store, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    monkeypatch.setattr("skdcgn.runs.engine.cluster._CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=r"^no Dask scheduler answers at .*: give tcp://HOST:PORT, or the file that"):
        connect(Where(scheduler=scheduler), store).__enter__()


def test_workers_without_the_code_are_refused_and_one_that_dies_is_not_missed(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise problem

    monkeypatch.setattr(Client, "register_plugin", refuse)
    monkeypatch.setattr("skdcgn.runs.engine.cluster._check_store", lambda *_: None)
    there = Where(scheduler=client.scheduler.address)
    problem: Exception = ModuleNotFoundError("No module named 'skdcgn'")
    with pytest.raises(InputError, match=r"cannot import this project \(No module .*\): start workers with"):
        connect(there, store).__enter__()
    problem = CommClosedError("in <TCP (closed)>: Stream is closed")
    with connect(there, store) as connected:
        assert connected.nthreads() == client.nthreads()


def test_workers_of_this_machine_listen_to_nobody_else_and_are_one_thread_each(store: Store) -> None:
    with connect(Where(1), store) as client:
        assert client.nthreads() == {address: 1 for address in client.scheduler_info()["workers"]}
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        (variables,) = client.run(lambda: psutil.Process().environ()).values()  # with which the process began
        assert variables["MALLOC_TRIM_THRESHOLD_"] == str(4 << 30)
        assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
        assert variables.get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


DRIVER = """
from walks import tree
from skdcgn import cli
from skdcgn.commands.experiments import execution
from skdcgn.runs.engine.cluster import Where
from skdcgn.runs.store import open_store

def work():
    outcome = execution.execute([tree(4, steps=STEPS)], open_store(), Where(2), "")
    execution.check(outcome)

if __name__ == "__main__":
    cli.entry(work)
"""


def start(tmp_path: Path, steps: int) -> subprocess.Popen[str]:
    """Start a driver with two workers in a process group of its own, as a shell does."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.replace("STEPS", str(steps)))
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "SKDCGN_HEARTBEAT": "0.5"}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def wait_for(condition: object, seconds: float = 150.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def at_work(store: Store, driver: subprocess.Popen[str]) -> list[int]:
    """Return the ids of a driver's processes that are at a run."""
    own = {child.pid for child in psutil.Process(driver.pid).children(recursive=True)}
    return [pid for run in store.runs("walks", "RUNNING") if (pid := Lease.read(run.tags).pid) in own]


def checkpoints(store: Store) -> list[Path]:
    return list((store.folder / "checkpoints").glob("*.pt"))


@pytest.mark.slow
def test_ctrl_c_leaves_checkpoints_and_a_killed_worker_and_driver_lose_nothing(
    tmp_path: Path, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three starts of the same command: the first gets a Ctrl-C, the second is killed, the third loses a worker."""
    first = start(tmp_path, 40)
    wait_for(lambda: len(checkpoints(store)) == 2)
    os.killpg(first.pid, signal.SIGINT)  # the terminal sends it to the workers, too
    begun = time.monotonic()
    output, _ = first.communicate(timeout=150)
    assert time.monotonic() - begun < 15
    assert first.returncode == 130, output
    assert "interrupted by SIGINT; the same command resumes" in output
    assert "Traceback" not in output
    assert sorted(statuses(store)) == ["KILLED", "KILLED"]

    second = start(tmp_path, 40)
    wait_for(lambda: len(at_work(store, second)) == 2)
    workers = psutil.Process(second.pid).children(recursive=True)
    second.kill()
    second.wait()
    assert not psutil.wait_procs(workers, 10)[1]  # they end with their driver
    assert statuses(store).count("RUNNING") == 2

    third = start(tmp_path, 40)
    wait_for(lambda: len(at_work(store, third)) == 2)
    os.kill(at_work(store, third)[0], signal.SIGKILL)
    output, _ = third.communicate(timeout=300)
    assert third.returncode == 0, output
    assert "resuming at step" in output
    found = {run.name: run.final["place"] for run in store.runs("walks")}
    monkeypatch.setattr(Walk, "pause", 0.0)
    alone = carry_out(tree(4, steps=40), other)
    assert found == {f"walk {seed}": place for seed, place in alone["place"].items()}
    assert statuses(store) == ["FINISHED"] * 7
    for run in store.runs("walks"):
        logged = store.client.get_metric_history(run.run_id, "loss/place")
        assert [metric.step for metric in logged] == list(range(1, 41))
    assert not checkpoints(store)
