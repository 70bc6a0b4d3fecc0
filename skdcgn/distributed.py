"""One training in several processes, as torchrun starts them: who is who, and what they have to agree on.

    torchrun --nproc_per_node 4 experiments/imagenet_kd.py --profile paper

A training comes to the same on any number of processes, up to rounding, and so does a checkpoint: whatever a step
computes is what one process would compute on the whole batch. Each process draws the random numbers of the whole batch
and takes its share of the records (`share`, `as_whole`). Batch norm has the statistics of the whole batch, and dropout
its mask (`parallel`). Gradients and logged losses are averaged over the processes (`average_gradients`, `mean`), which
is right because every loss is a mean over records and all shares have one size. A trainer asks for that with
`Trainer(parallel=True)`; then all processes must take its steps. Process 0 alone evaluates and logs.

Gradients are averaged once, when an optimizer steps, rather than by DistributedDataParallel: networks keep their
methods and the names of their weights, may run several times before a backward pass, and may leave parameters unused.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from skdcgn.errors import InputError

Value = TypeVar("Value")
Network = TypeVar("Network", bound=nn.Module)

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
            f"a batch of {batch_size} cannot be shared out over {world()} processes: make its size "
            "(--distill.batch-size, or --training.batch-size of a CGN) a multiple of their number."
        )
    return slice(rank(), None, world())


def as_whole(function: Callable[[Tensor], Tensor], records: Tensor) -> Tensor:
    """Apply a function that draws random numbers as it does on the whole batch.

    Args:
        function: from records (N, ...) to as many outputs, each of which depends on its own record and on the random
            numbers alone. It gets the whole batch, in which the records of other processes are 0.
        records: this process's share.

    Returns:
        The outputs of the share, with gradients.
    """
    if world() == 1:
        return function(records)
    size = len(records) * world()
    whole = records.new_zeros((size, *records.shape[1:]))
    whole[share(size)] = records
    return function(whole)[share(size)]


def gather(records: Tensor) -> Tensor:
    """Return the whole batch, of which each process has its share, without gradients."""
    if world() == 1:
        return records
    shares = [torch.empty_like(records, memory_format=torch.contiguous_format) for _ in range(world())]
    distributed.all_gather(shares, records.detach().contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)


def mean(value: Tensor) -> Tensor:
    """Return the mean over the processes of a tensor that each of them has, without gradients."""
    if world() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total / world()


def parallel(network: Network) -> Network:
    """Prepare a network for training on a share of each batch, in place, and return it; alone, it stays as it is.

    Its weights become those of process 0. Its batch norms and dropouts become those of the whole batch, in training
    mode only: process 0 may evaluate the network, or a copy, while the others wait.
    """
    if world() == 1:
        return network
    for tensor in network.state_dict().values():
        distributed.broadcast(tensor, src=0)
    for module in network.modules():
        module.__class__ = _OVER_ALL.get(type(module), type(module))  # the same weights, names and copies
    return network


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer average its gradients over the processes before each step."""
    if world() > 1:
        optimizer.register_step_pre_hook(_average_gradients)


@torch.no_grad()
def _average_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # in all processes the same
    averages = mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, average in zip(gradients, averages.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(average.view_as(gradient))


class _Rows(torch.autograd.Function):
    """A row of each process, (number of processes, C), with gradients: of the sum of what all make of them."""

    @staticmethod
    def forward(_: Any, row: Tensor) -> Tensor:
        rows = [torch.empty_like(row) for _ in range(world())]
        distributed.all_gather(rows, row)
        return torch.stack(rows)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return world() * mean(gradient)[rank()]


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm over the records of all processes. PyTorch's SyncBatchNorm is the same for CUDA alone."""

    @torch.compiler.disable  # it cannot compile a collective's gradient
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.to(self.running_mean.dtype)  # under autocast, too, statistics are of full precision
        variances, centers = _Rows.apply(torch.cat(torch.var_mean(values, (0, 2, 3), correction=0))).chunk(2, dim=1)
        center = centers.mean(0)
        variance = variances.mean(0) + (centers - center).square().mean(0)  # the shares have one size
        count = world() * values.numel() / values.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(center, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return ((values - center[:, None, None]) * scale[:, None, None]).to(x.dtype)
        scale = (scale * self.weight)[:, None, None]
        return torch.addcmul(self.bias[:, None, None], values - center[:, None, None], scale).to(x.dtype)


class _Dropout(nn.Dropout):
    """Dropout whose mask is drawn for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return as_whole(super().forward, x) if self.training else x


_OVER_ALL = {nn.BatchNorm2d: _BatchNorm, nn.Dropout: _Dropout}
"""What takes a layer's place where the processes share a batch."""


def broadcast(value: Value) -> Value:
    """Return process 0's value."""
    if world() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def decide(choose: Callable[[], Value]) -> Value:
    """Return what process 0 chooses; where it raises an `InputError`, all do."""
    outcome = None
    if rank() == 0:
        try:
            outcome = choose()
        except InputError as error:
            outcome = error
    outcome = broadcast(outcome)
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def any_of(number: int | None) -> int | None:
    """Return the largest number that a process has; None where none has any."""
    if world() == 1:
        return number
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(number or 0, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.item() or None
