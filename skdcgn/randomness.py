"""Random numbers: explicit generators, each named after its purpose and derived from one seed."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return an explicit random generator for one named purpose of one seed.

    `stream(0, "heldout", "shape")` and `stream(0, "train", "shape")` are independent of each other, and each is
    the same on every machine.
    """
    digest = hashlib.sha256(repr((seed, *map(str, names))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextlib.contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Make what PyTorch draws from its global generator (initial weights) depend on this seed alone.

    The global state is put back afterwards. Everything else takes an explicit generator from `stream`.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream(seed, *names).initial_seed())
        yield
