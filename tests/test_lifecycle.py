"""How runs are made: skipped, resumed, refused or made again, needed ones first; and how they end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trivial import Config, Loss, Work, carry_out_one, case

from skdcgn.errors import InputError, Interrupted
from skdcgn.runs import leases
from skdcgn.runs.identity import Identity
from skdcgn.runs.leases import Lease, Watch
from skdcgn.runs.lifecycle import State, Terminal, carry_out, create, state_of
from skdcgn.runs.plan import Case, Plan
from skdcgn.runs.provenance import PROJECT
from skdcgn.runs.run import Busy, Run
from skdcgn.runs.store import RunRecord, Store
from skdcgn.runtime import Runtime

Done = list[tuple[str, dict[str, str]]]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    """The runs that were made, in order: each one's name, and the names of the runs that it needed."""
    made: Done = []

    def do(run: Run, config: Config, needs: Mapping[str, RunRecord]) -> None:
        made.append((run.store.record(run.run_id).name, {name: need.name for name, need in needs.items()}))
        run.log_metrics("final", {"weight": config.weight})

    monkeypatch.setattr(Work, "do", do)
    return made


@pytest.fixture
def interrupted(store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a run that a signal ended."""
    with monkeypatch.context() as patched:
        patched.setattr(Work, "do", raising(Interrupted(signal.SIGTERM)))
        with pytest.raises(Interrupted):
            carry_out_one(store)
    return store.runs("trivial")[0].run_id


def raising(error: BaseException) -> Callable[..., None]:
    def do(*_: object) -> None:
        raise error

    return do


def statuses(store: Store) -> list[str]:
    return [run.status for run in store.runs("trivial")]


# --- skipped, resumed, refused, made again --------------------------------------------------------------------------


def test_finished_run_is_skipped(store: Store, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    first = carry_out_one(store)
    assert (first.status, first.metrics) == ("FINISHED", {"final/weight": 1.0})
    capsys.readouterr()
    assert carry_out_one(store) == first
    assert capsys.readouterr().out == f"trivial: run: finished before, skipped (run {first.run_id})\n"
    assert len(done) == 1


def test_another_config_input_or_function_is_another_run(store: Store, done: Done) -> None:
    from trivial import other_make

    others = [case(config=Config(weight=2.0)), case(inputs={"teacher": "abc"}), case(make=other_make)]
    ids = {carry_out_one(store, one).run_id for one in [case(), *others]}
    assert len(ids) == len(done) == 4


def test_forced_run_is_made_again(store: Store, done: Done) -> None:
    first = carry_out_one(store)
    again = carry_out_one(store, case(config=Config(runtime=Runtime(force=True))))
    assert again.run_id != first.run_id
    assert again.tags["identity"] == first.tags["identity"]
    assert statuses(store) == ["FINISHED", "FINISHED"]
    carry_out_one(store)
    assert len(done) == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(signal.SIGTERM), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (ValueError("bad"), "FAILED"),
        (InputError("no such file"), "FAILED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_a_run_that_ends_early_says_how_and_is_resumed(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: str,
) -> None:
    monkeypatch.setattr(Work, "do", raising(error))
    with pytest.raises(type(error)):
        carry_out_one(store)
    (ended,) = store.runs("trivial")
    assert ended.status == status
    assert ended.tags.get("error") == (f"{type(error).__name__}: {error}" if status == "FAILED" else None)

    resumed: list[bool] = []
    monkeypatch.setattr(Work, "do", lambda run, config, needs: resumed.append(run.reopened))
    assert carry_out_one(store).run_id == ended.run_id
    assert resumed == [True]
    assert f"trivial: run: resuming (run {ended.run_id})" in capsys.readouterr().out
    (finished,) = store.runs("trivial")
    assert (finished.status, finished.tags.get("error")) == ("FINISHED", None)


def test_metrics_that_wait_reach_the_store_however_the_run_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(run: Run, *_: object) -> None:
        run.log_metrics("loss", {"a": 1}, 1)
        run.checkpoint.parent.mkdir(exist_ok=True)
        run.checkpoint.touch()
        if not run.reopened:
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(Work, "do", do)
    with pytest.raises(Interrupted):
        carry_out_one(store)
    (killed,) = store.runs("trivial")
    assert killed.metrics == {"loss/a": 1}
    (checkpoint,) = (store.folder / "checkpoints").iterdir()
    carry_out_one(store)
    assert not checkpoint.exists()  # of no use once the run has finished
    assert len(store.client.get_metric_history(killed.run_id, "loss/a")) == 1


def test_a_run_that_this_process_is_at_is_refused_and_not_disturbed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(*_: object) -> None:
        with pytest.raises(InputError, match=r"^trivial: run is being made by process \d+ on .*, which is this"):
            carry_out_one(store)

    monkeypatch.setattr(Work, "do", do)
    carry_out_one(store)
    assert statuses(store) == ["FINISHED"]


ELSEWHERE = Lease("key", "another-host", "another machine", 1, "2", every=10.0)


def test_a_run_on_another_machine_is_waited_for(store: Store, done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is renewed; when it has finished, it is the result."""
    run = create(case(), store, ELSEWHERE)
    assert state_of(case(), store).status == "running"
    waits: list[str] = []

    def wait(_: Terminal, busy: Busy) -> None:
        waits.append(str(busy))
        assert statuses(store) == ["RUNNING"]
        clock.monotonic = lambda: 30.0 * len(waits)
        store.set_tags(run.run_id, replace(ELSEWHERE, beat=len(waits)).tags)
        if len(waits) == 5:
            store.set_status(run.run_id, "FINISHED")

    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(leases, "time", clock)
    monkeypatch.setattr(Terminal, "wait", wait)
    assert carry_out_one(store).run_id == run.run_id
    assert done == []
    assert waits == [f"trivial: run is being made by process 1 on another-host (run {run.run_id})"] * 5


def test_a_run_on_another_machine_that_is_not_renewed_is_taken_over(
    store: Store, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(case(), store, ELSEWHERE)
    clock = SimpleNamespace(monotonic=lambda: 30.0 * len(waits))
    waits: list[Busy] = []
    monkeypatch.setattr(leases, "time", clock)
    monkeypatch.setattr(Terminal, "wait", lambda _, busy: waits.append(busy))
    assert carry_out_one(store).run_id == run.run_id
    assert len(waits) == 3  # a minute without a heartbeat
    assert len(done) == 1
    assert statuses(store) == ["FINISHED"]


def test_a_process_that_was_taken_for_dead_leaves_the_run_to_the_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKDCGN_HEARTBEAT", "0.05")
    calls: list[str] = []

    def do(run: Run, *_: object) -> None:
        calls.append(run.run_id)
        if len(calls) == 1:
            store.set_tags(run.run_id, ELSEWHERE.tags)
            time.sleep(0.5)
            run.log_metrics("final", {"of the one that lost it": 1.0})
            run.check_held()

    def wait(_: Terminal, busy: Busy) -> None:
        assert busy.lease == ELSEWHERE
        store.set_status(calls[0], "KILLED")

    monkeypatch.setattr(Work, "do", do)
    monkeypatch.setattr(Terminal, "wait", wait)
    finished = carry_out_one(store)
    assert calls == [finished.run_id] * 2
    assert (finished.status, finished.metrics) == ("FINISHED", {})
    assert "error" not in finished.tags


def test_nothing_is_written_to_a_run_that_was_lost(store: Store) -> None:
    run = create(case(), store, Lease.take())
    run.attend(Terminal().interruption, SimpleNamespace(lost=True))
    run.log_metrics("final", {"weight": 1.0})
    with pytest.raises(Busy, match=run.run_id):
        run.flush()
    assert not store.record(run.run_id).metrics


def test_what_a_process_left_that_was_killed_at_the_very_end_is_removed(store: Store, done: Done) -> None:
    finished = carry_out_one(store)
    folder = store.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    left = [folder / f"{finished.run_id}.pt{end}" for end in ("", ".previous")]
    left.append(folder / f".{finished.run_id}.pt.12345678.part")
    other = folder / "another.pt"
    for path in (*left, other):
        path.touch()
    assert carry_out_one(store).run_id == finished.run_id
    assert list(folder.iterdir()) == [other]


def test_run_of_a_killed_process_does_not_stay_running_and_is_resumed(store: Store, done: Done) -> None:
    program = (
        "import os, signal, trivial\n"
        "from skdcgn.runs.store import open_store\n"
        "trivial.Work.do = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trivial.carry_out_one(open_store())"
    )
    path = os.pathsep.join([str(PROJECT), str(Path(__file__).parent)])
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert statuses(store) == ["RUNNING"]
    assert state_of(case(), store).status == "resumable"
    store.end_dead_runs("trivial", Watch())
    assert statuses(store) == ["KILLED"]
    (left,) = store.runs("trivial")
    assert carry_out_one(store).run_id == left.run_id
    assert statuses(store) == ["FINISHED"]
    assert len(done) == 1


# --- needs ----------------------------------------------------------------------------------------------------------


def study(teacher: Config | None = None) -> tuple[Case, Case, Case]:
    """Return a teacher, and two students that need it."""
    first = case("teacher", teacher or Config(name="teacher"))
    students = [
        case(f"student {seed}", Config(weight=seed), tags={"seed": seed}, needs={"teacher": first}) for seed in (1, 2)
    ]
    return first, *students


def test_needed_runs_are_made_first_and_once(store: Store, done: Done) -> None:
    first, *students = study()
    plan = Plan(students, ("seed",))
    assert plan.everything() == [first, *students]
    carry_out(plan, store)
    needs = {"teacher": "teacher"}
    assert done == [("teacher", {}), ("student 1", needs), ("student 2", needs)]
    carry_out(plan, store)
    assert len(done) == 3


def test_equal_cases_are_one_run(store: Store, done: Done) -> None:
    """Two studies build the same case each on its own: it is made once, and each gets its row."""
    results = carry_out(Plan([case("one"), case("the same")], ("seed",)), store)
    assert [name for name, _ in done] == ["one"]
    assert results["run_id"].nunique() == 1
    assert len(results) == 2


def test_a_changed_need_makes_what_needs_it_again(store: Store, done: Done) -> None:
    _, student, _ = study()
    carry_out_one(store, student)
    _, again, _ = study(Config(name="teacher", weight=3.0))
    state = state_of(again, store)
    assert (state.status, state.reasons) == ("changed", ("another teacher",))
    carry_out_one(store, again)
    assert [name for name, _ in done] == ["teacher", "student 1"] * 2


def test_a_failed_need_stops_what_needs_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "do", raising(ValueError("no teacher")))
    with pytest.raises(ValueError, match="no teacher"):
        carry_out(Plan(study()[1:], ("seed",)), store)
    assert [(run.name, run.status) for run in store.runs("trivial")] == [("teacher", "FAILED")]


# --- what a plan tells ----------------------------------------------------------------------------------------------


def test_results_are_a_row_for_each_case(store: Store, done: Done) -> None:
    cases = [
        case(
            f"{mechanism} {seed}", Config(weight=10 * seed, name=mechanism), tags={"mechanism": mechanism, "seed": seed}
        )
        for mechanism in ("shape", "texture")
        for seed in (1, 2)
    ]
    results = carry_out(Plan([*cases, case("plain")], ("mechanism", "seed")), store)
    assert results.index.names == ["mechanism", "seed"]
    assert list(results.index) == [("shape", 1), ("shape", 2), ("texture", 1), ("texture", 2), ("", 0)]
    assert results["weight"].tolist() == [10, 20, 10, 20, 1]
    assert [store.record(run_id).name for run_id in results["run_id"]] == [*(one.name for one in cases), "plain"]


def test_state_of_a_new_a_finished_and_a_forced_case(store: Store, done: Done) -> None:
    assert state_of(case(), store) == State("new", None)
    assert str(state_of(case(), store)) == "to run"
    run = carry_out_one(store)
    assert state_of(case(), store) == State("finished", run)
    assert str(state_of(case(), store)) == f"finished (run {run.run_id[:8]})"
    assert state_of(case(), store, force="now") == State("changed", run, ("--runtime.force",))
    assert str(state_of(case(), store, force="now")) == "to run again: --runtime.force"


def test_state_of_an_interrupted_and_a_running_case(store: Store, interrupted: str) -> None:
    state = state_of(case(), store)
    assert (state.status, state.run.run_id) == ("resumable", interrupted)
    assert str(state) == f"resumable (run {interrupted[:8]})"
    store.set_status(interrupted, "RUNNING")  # by this process, which is alive
    assert state_of(case(), store).status == "running"
    store.set_status(interrupted, "FAILED")
    assert state_of(case(), store).status == "resumable"


def test_a_finished_run_counts_before_an_interrupted_one(store: Store, interrupted: str, done: Done) -> None:
    finished = create(case(), store, Lease.take())
    store.set_status(finished.run_id, "FINISHED")
    store.set_status(create(case(), store, Lease.take()).run_id, "FAILED")
    assert state_of(case(), store).run.run_id == finished.run_id


def test_state_of_a_changed_case_names_what_changed(store: Store, done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out_one(store, case(inputs={"teacher": "abc"}))
    nearest = carry_out_one(store, case(config=Config(sizes=(3,))))
    changed = case(config=Config(sizes=(3,), loss=Loss(kl=0.5)))
    assert state_of(changed, store) == State("changed", nearest, ("loss.kl was 1.0, is 0.5",))
    edited = case(config=Config(sizes=(3,)))
    own = edited.identity
    edited.__dict__["identity"] = Identity(own.config, own.inputs, {**own.code, "skdcgn.runtime": "edited"})
    assert state_of(edited, store) == State("changed", nearest, ("skdcgn.runtime changed",))
    assert str(state_of(edited, store)) == "to run again: skdcgn.runtime changed"


@pytest.mark.parametrize("other", [{"name": "another"}, {"tags": {"profile": "full"}}, {"tags": {"dataset": "digits"}}])
def test_a_case_is_not_compared_with_another_one(store: Store, done: Done, other: dict[str, Any]) -> None:
    carry_out_one(store)
    assert state_of(case(config=Config(weight=2.0), **other), store).status == "new"


def test_a_plan_opens_the_default_store(store: Store, done: Done) -> None:
    with contextlib.chdir(store.folder):
        carry_out(Plan([case()], ("seed",)))
    assert statuses(store) == ["FINISHED"]
