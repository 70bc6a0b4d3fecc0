"""One training in several processes, as torchrun starts them: who is who, and what they have to agree on.

    torchrun --nproc_per_node 4 experiments/imagenet_kd.py --profile paper

Gradients are averaged by PyTorch's DistributedDataParallel. A batch is shared out over the processes, so that a config
means the same on any number of GPUs, but each process normalizes over its own share. Process 0 alone logs.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from skdcgn.errors import InputError

Value = TypeVar("Value")

_TIMEOUT = datetime.timedelta(hours=6)  # the others wait while process 0 evaluates


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join the group of processes that torchrun started, if it did.

    Args:
        device: of the config; it decides how the processes talk to each other.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    device = own_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield
        distributed.barrier()  # a process that leaves while another still talks to it may abort
    finally:
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Return this process's device: each process of a machine takes a CUDA device of its own."""
    rank_here = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank_here)) if rank_here and device.type == "cuda" else device


def leads() -> bool:
    """Whether this process is the only one or the first that torchrun started; known outside of `group` as well."""
    return os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(batch_size: int) -> slice:
    """Return this process's records of a batch.

    Raises:
        InputError: the batch cannot be shared out evenly.
    """
    if batch_size % world():
        raise InputError(
            f"a batch of {batch_size} cannot be shared out over {world()} processes: make --distill.batch-size a "
            "multiple of their number."
        )
    return slice(rank(), None, world())


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Let a network average its gradients over the processes; alone, it stays as it is."""
    if world() == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def broadcast(value: Value) -> Value:
    """Return process 0's value."""
    if world() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def any_of(number: int | None) -> int | None:
    """Return the largest number that a process has; None where none has any."""
    if world() == 1:
        return number
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(number or 0, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.item() or None
