"""Where tasks run: Dask workers of this machine, one for each core, or those of a scheduler that runs already."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dask
import psutil
import yaml
from distributed import Client, LocalCluster

from skdcgn.errors import InputError
from skdcgn.runs.engine.worker import Attendant
from skdcgn.runs.identity import ASSETS
from skdcgn.runs.store import Store

logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it prints tracebacks of what it tries again

GPU = "GPU"
"""The resource of workers that have a GPU, as in `dask worker --resources GPU=1`."""

_WORKER_BYTES = 1.5 * 2**30  # of memory, about, that a worker needs
_CONNECT_SECONDS = 20
_ANY_PORT = "127.0.0.1:0"  # Dask's web pages listen, by default, on all interfaces
_SETTINGS = ASSETS / "dask.yaml"


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
        InputError: the scheduler does not answer, or its workers cannot reach the run store or lack the code.
    """
    with contextlib.ExitStack() as stack:
        settings = yaml.safe_load(_SETTINGS.read_text(encoding="utf-8"))
        stack.enter_context(dask.config.set(dask.config.merge(dask.config.config, settings)))
        if where.scheduler is None:
            client = stack.enter_context(Client(stack.enter_context(_local_cluster(where.workers))))
        else:
            client = stack.enter_context(_remote(where.scheduler))
            _check_store(client, store)
        _attend(client)
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


def _attend(client: Client) -> None:
    """Have an attendant at every worker, those that come later included.

    Raises:
        InputError: a worker does not find this project's code.
    """
    try:
        client.register_plugin(Attendant())
    except ImportError as error:
        raise InputError(
            f"a worker of the scheduler cannot import this project ({error}): start workers with clusters/worker.sh."
        ) from None
    except OSError:  # a worker died meanwhile; the scheduler has the attendant, and gives it to the next one
        pass


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
