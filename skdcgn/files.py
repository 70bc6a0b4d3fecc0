"""Files and folders that are written whole or not at all, checkpoints and checksums."""

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the name `path` only when the block ends without an error.

    Where another process was faster, its folder stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as private:
        folder = Path(private) / path.name
        folder.mkdir()  # with the usual permissions
        yield folder
        try:
            folder.rename(path)
        except OSError:
            if not path.exists():
                raise


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: tensors and plain values only."""
    import torch  # takes seconds, which reading a config or making a plan need not pay

    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint`."""
    import torch

    return torch.load(path, map_location=device, weights_only=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_size(size: float) -> str:
    """Write a number of bytes for people: 2.66MB."""
    return tqdm.format_sizeof(size, "B")
