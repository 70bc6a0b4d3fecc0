"""What the benchmarks share: alternating measurements, ratios with their spread, and the table."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from skdcgn.files import atomic_path
from skdcgn.runtime import Runtime, cpu_name, setup

_RESAMPLES = 2000


@dataclass(frozen=True)
class Machine:
    """Where to measure."""

    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:1, ... or auto (CUDA where there is one)."""
    threads: int = Runtime.threads
    """CPU threads; 0 keeps PyTorch's choice."""

    def setup(self) -> torch.device:
        """Apply this to the process and return the device.

        Raises:
            InputError: the device does not exist on this machine.
        """
        return setup(Runtime(device=self.device, threads=self.threads))


def describe(device: torch.device) -> dict[str, object]:
    """Return the columns that say what a row was measured on."""
    on_gpu = device.type == "cuda"
    malloc = " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_"))
    return {
        "hardware": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "malloc": malloc or "default",  # on a CPU it can matter more than anything else: see README.md
    }


def alternate(
    calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Time calls in turn (A B A B ...), so that whatever else the machine does meets all of them alike.

    Args:
        calls: what to time, by name.
        repeats: timed rounds, each of one call of everything.
        warmup: rounds before them.
        device: waited for before and after each call.

    Returns:
        Wall seconds of each call by name, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ratio(NamedTuple):
    """How many times faster one call is than another."""

    median: float
    low: float
    high: float


def ratio(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> Ratio:
    """Return the median of the rounds' ratios, with its 95 % bootstrap interval (percentiles, rounds resampled)."""
    ratios = np.asarray(slow) / np.asarray(fast)
    samples = np.random.default_rng(seed).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def compare(seconds: Mapping[str, Sequence[float]], baseline: str, seed: int = 0) -> dict[str, dict[str, float]]:
    """Summarize `alternate`: each call's median milliseconds, and how many times faster it is than the baseline."""
    rows = {}
    for name, values in seconds.items():
        times_faster = ratio(seconds[baseline], values, seed)
        rows[name] = {
            "ms": 1000 * statistics.median(values),
            "ratio": times_faster.median,
            "ratio_low": times_faster.low,
            "ratio_high": times_faster.high,
            "rounds": len(values),
        }
    return rows


def report(rows: Sequence[Mapping[str, object]], device: torch.device, out: Path | None) -> None:
    """Print rows as a table under one line about the machine; write them with it as CSV where `out` is given."""
    machine = describe(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
    if out is not None:
        with atomic_path(out) as path:
            pd.DataFrame([{**row, **machine} for row in rows]).to_csv(path, index=False)
