"""Leases: who holds a run, whether its process is alive, and what another machine can know of that."""

import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from skdcgn.errors import InputError
from skdcgn.runs import leases
from skdcgn.runs.leases import Heartbeat, Lease, Watch, machine, started

HERE = Lease.take()
ELSEWHERE = replace(HERE, machine="another container")


def test_a_lease_is_read_as_it_was_written() -> None:
    assert Lease.read(HERE.tags) == HERE
    assert Lease.read({}) is None
    assert Lease.take().key != HERE.key


def test_a_process_is_known_by_its_pid_and_start_where_it_can_be_looked_up() -> None:
    assert HERE.holder() == "alive"
    assert replace(HERE, started="0").holder() == "gone"  # the pid was given to another process since
    ended = subprocess.Popen([sys.executable, "-c", ""])
    lease = replace(HERE, pid=ended.pid, started=started(ended.pid))
    end = time.monotonic() + 30
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert lease.holder() == "gone"  # though nobody has asked for its exit code yet
    ended.wait()
    assert lease.holder() == "gone"
    assert ELSEWHERE.holder() == "elsewhere"
    assert HERE.here
    assert not ELSEWHERE.here


def test_a_container_of_the_same_kernel_is_another_machine() -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    if subprocess.run([*command, ""], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a process namespace")
    code = "from skdcgn.runs.leases import machine; print(machine())"
    inside = subprocess.run([*command, code], capture_output=True, text=True, check=True).stdout.strip()
    assert inside.split()[0] == machine().split()[0]
    assert inside != machine()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that tests set: wall time does not count."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(leases, "time", clock)
    return clock


def test_a_lease_elsewhere_is_over_when_it_is_not_renewed_while_somebody_watches(clock: SimpleNamespace) -> None:
    watch = Watch()
    assert not watch.gone("run", ELSEWHERE.tags)
    clock.monotonic = lambda: 50.0
    assert not watch.gone("run", ELSEWHERE.tags)
    assert not watch.gone("run", replace(ELSEWHERE, beat=1).tags)
    clock.monotonic = lambda: 105.0  # 55 seconds after the heartbeat
    assert not watch.gone("run", replace(ELSEWHERE, beat=1).tags)
    clock.monotonic = lambda: 111.0
    assert watch.gone("run", replace(ELSEWHERE, beat=1).tags)
    assert not watch.gone("run", replace(ELSEWHERE, key="another holder").tags)
    assert not Watch().gone("run", ELSEWHERE.tags)  # whoever begins to watch knows nothing yet


def test_a_run_without_a_lease_is_watched_too(clock: SimpleNamespace) -> None:
    watch = Watch()
    assert not watch.gone("run", {})
    clock.monotonic = lambda: 61.0
    assert watch.gone("run", {})


class Board:
    """Keeps the lease of one run; its server can be out of order."""

    def __init__(self, lease: Lease) -> None:
        self.tags, self.broken, self.writes = lease.tags, False, 0

    @property
    def lease(self) -> Lease:
        return Lease.read(self.tags)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.tags, self.writes = self.tags | tags, self.writes + 1

    def is_held(self, run_id: str, lease: Lease) -> bool:
        if self.broken:
            raise ConnectionError
        return self.lease.key == lease.key


def wait_for(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_heartbeat_renews_survives_an_outage_and_notices_a_loss() -> None:
    lease = replace(HERE, every=0.01)
    board = Board(lease)
    with Heartbeat(board, "run", lease) as heartbeat:
        wait_for(lambda: board.lease.beat >= 2)
        board.broken = True
        time.sleep(0.05)
        board.broken = False
        beat = board.lease.beat
        wait_for(lambda: board.lease.beat > beat)
        assert not heartbeat.lost
        taken = replace(ELSEWHERE, key="another holder")
        board.tags = taken.tags
        wait_for(lambda: heartbeat.lost)
        assert board.lease == taken  # what is lost is left alone
    writes = board.writes
    time.sleep(0.05)
    assert board.writes == writes


def test_a_process_that_was_stopped_asks_before_it_goes_on(clock: SimpleNamespace) -> None:
    """Its heartbeat wakes up at the same time as its training, which must not be faster."""
    board = Board(HERE)
    heartbeat = Heartbeat(board, "run", HERE)  # never entered: its thread is still asleep
    board.tags = replace(ELSEWHERE, key="another holder").tags
    clock.monotonic = lambda: 2 * HERE.every
    assert not heartbeat.lost  # as far as it knows
    clock.monotonic = lambda: 2 * HERE.every + 1
    board.broken = True
    assert not heartbeat.lost
    board.broken = False
    assert heartbeat.lost
    assert board.writes == 0


def test_a_process_that_was_stopped_within_a_heartbeat_does_not_take_its_run_back(clock: SimpleNamespace) -> None:
    board, taken = Board(HERE), replace(ELSEWHERE, key="another holder")
    heartbeat = Heartbeat(board, "run", HERE)

    def stopped_after_the_answer(run_id: str, lease: Lease) -> bool:
        board.tags, board.is_held = taken.tags, lambda run_id, lease: board.lease.key == lease.key
        clock.monotonic = lambda: 1000.0
        return True

    board.is_held = stopped_after_the_answer
    heartbeat._beat()
    assert board.writes == 1
    assert board.lease == taken
    assert heartbeat.lost


def test_the_interval_of_heartbeats_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKDCGN_HEARTBEAT", "0.5")
    assert Lease.take().every == 0.5
    for wrong in ("often", "0", "nan"):
        monkeypatch.setenv("SKDCGN_HEARTBEAT", wrong)
        with pytest.raises(InputError, match="SKDCGN_HEARTBEAT"):
            Lease.take()
