"""How big and how fast a network is: parameters, multiply-accumulates, memory, latency."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """Count the trainable and frozen parameters of a network (buffers left out)."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(forward: Callable[[], object]) -> int:
    """Count the multiply-accumulates of one call (matrix products and convolutions)."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2


@torch.no_grad()
def peak_megabytes(forward: Callable[[], object]) -> float | None:
    """Return the GPU memory that a call needs at its peak, weights on the GPU included; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    forward()
    return torch.cuda.max_memory_allocated() / 1e6


@torch.no_grad()
def latency_ms(forward: Callable[[], object], repeats: int = 7, warmup: int = 3) -> float:
    """Return the median wall time of a call in milliseconds, after some calls to warm up."""
    times = []
    for repeat in range(repeats + warmup):
        start = time.perf_counter()
        forward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if repeat >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
