"""Where tasks run: Dask workers of this machine, one for each core, or those of a scheduler that runs already."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dask
import psutil
from distributed import Client, LocalCluster

from skdcgn.errors import InputError
from skdcgn.runs.engine.worker import Attendant
from skdcgn.runs.store import Store

logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it prints tracebacks of what it tries again

GPU = "GPU"
"""The resource of workers that have a GPU, as in `dask worker --resources GPU=1`."""

_WORKER_BYTES = 1.5 * 2**30  # of memory, about, that a worker needs
_CONNECT_SECONDS = 20
_ANY_PORT = "127.0.0.1:0"  # Dask's web pages listen, by default, on all interfaces

# glibc would hand memory back after every training step, and fetch it anew for the next: 5 to 14 % of a step on a quiet
# machine, and most of the suite's system time. Threads that spin while they wait make everything many times slower
# where cores are shared.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "OMP_WAIT_POLICY": "PASSIVE",
}
_SETTINGS = {
    "distributed.nanny.pre-spawn-environ": {},  # Dask would have memory handed back early, and take all but one thread
    "distributed.worker.profile.enabled": False,  # it would look at the training 100 times a second
    "distributed.worker.daemon": False,  # so that a run may start processes
    "distributed.scheduler.allowed-failures": 10,  # a run that resumes may lose several workers
    "distributed.deploy.lost-worker-timeout": "30s",  # a worker that died starts again: slowly, on a busy machine
    "distributed.scheduler.worker-saturation": 1.0,  # the longest task first, wherever there is room
    "distributed.admin.tick.limit": "1h",  # a busy worker is not a reason for a warning
}


@dataclass(frozen=True)
class Where:
    """Where to run."""

    jobs: int = 0
    """Runs at the same time, a CPU thread each; 0 is one for each core, as far as the memory goes."""
    scheduler: str | None = None
    """Address of a Dask scheduler, tcp://HOST:PORT, or the file that it wrote with --scheduler-file: its workers are
    used, on however many machines they are, instead of workers of this machine."""

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise InputError(f"--jobs {self.jobs} runs nothing: give the number of runs to make at a time, or 0.")
        if self.jobs and self.scheduler:
            raise InputError("--jobs starts workers here, --scheduler uses others: give one of the two.")

    @property
    def workers(self) -> int:
        """The number of workers to start on this machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.jobs or max(1, min(cores, int(psutil.virtual_memory().available / _WORKER_BYTES)))


@contextlib.contextmanager
def connect(where: Where, store: Store) -> Iterator[Client]:
    """Connect to workers: those of a scheduler, or new ones that end with the block.

    Raises:
        InputError: the scheduler does not answer, or its workers cannot reach the run store.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        if where.scheduler is None:
            client = stack.enter_context(Client(stack.enter_context(_local_cluster(where.workers))))
        else:
            client = stack.enter_context(_remote(where.scheduler))
            _check_store(client, store)
        client.register_plugin(Attendant())
        yield client


def size(client: Client) -> int:
    """Return the number of runs that the workers can make at the same time."""
    return max(1, sum(client.nthreads().values()))


def _local_cluster(workers: int) -> LocalCluster:
    """Start workers of a thread each; where there are GPUs, each worker has one."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        scheduler_kwargs={"dashboard": False, "dashboard_address": _ANY_PORT},
        worker_dashboard_address=_ANY_PORT,
        memory_limit=0,
        silence_logs=logging.CRITICAL,
        env=_ENVIRONMENT,
        **({"resources": {GPU: 1}} if _has_gpu() else {}),
    )


def _has_gpu() -> bool:
    import torch  # slow to import

    return torch.cuda.is_available()


def _remote(scheduler: str) -> Client:
    place = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        return Client(**place, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"no Dask scheduler answers at {scheduler} ({reason}): give tcp://HOST:PORT, or the file that "
            "`dask scheduler --scheduler-file FILE` writes."
        ) from None


def _check_store(client: Client, store: Store) -> None:
    """See that workers on other machines can reach the store.

    Raises:
        InputError: they cannot.
    """
    hosts = {address.rpartition("://")[2].rpartition(":")[0] for address in client.scheduler_info()["workers"]}
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    if store.local and hosts - own:
        raise InputError(
            f"workers on other machines ({', '.join(sorted(hosts - own))}) cannot write to {store.uri}: start an "
            "MLflow server, and set MLFLOW_TRACKING_URI to its address."
        )
