"""Files and folders that are written whole or not at all, checkpoints and checksums."""

import contextlib
import hashlib
import io
import os
import pickle
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

_CHECKSUM_BYTES = 32  # what a checkpoint begins with: the SHA-256 of the rest


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
    except OSError as error:
        _name(error, path)
        raise
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
        try:
            yield folder
        except OSError as error:
            _name(error, path)
            raise
        try:
            folder.rename(path)
        except OSError:
            if not path.exists():
                raise


def _name(error: OSError, path: Path) -> None:
    """Have an error say which file it is about: that of a full disk often does not."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all, tensors and plain values only, and keep the one before it beside it."""
    import torch  # takes seconds, which reading a config or making a plan need not pay

    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.write(buffer.getbuffer())
        with contextlib.suppress(FileNotFoundError):
            path.replace(_previous(path))


def load_checkpoint(path: Path, device: "torch.device | str" = "cpu") -> dict[str, Any] | None:
    """Read the latest checkpoint of `save_checkpoint` that is whole; None where there is none.

    A damaged one is removed, so that it never takes the place of a good one, and a line on stderr says so.
    """
    state, damaged = None, []
    for candidate in (path, _previous(path)):
        try:
            state = _read_checkpoint(candidate, device)
            break
        except FileNotFoundError:
            continue
        except pickle.UnpicklingError:
            damaged.append(candidate)
    for candidate in damaged:
        candidate.unlink()
    if damaged:
        instead = "starting anew" if state is None else "going on from the one before it"
        tqdm.write(f"warning: the checkpoint {damaged[0]} is damaged: {instead}.", file=sys.stderr)
    return state


def remove_checkpoint(path: Path) -> None:
    """Remove what `save_checkpoint` left, if it left anything."""
    parts = path.parent.glob(f".{path.name}.*.part")  # of processes that were killed
    for candidate in (*parts, _previous(path), path):
        candidate.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    """Return where the checkpoint before the latest one is kept."""
    return path.with_name(f"{path.name}.previous")


def _read_checkpoint(path: Path, device: "torch.device | str") -> dict[str, Any]:
    """Read one checkpoint; an UnpicklingError says that its checksum is wrong, or that it holds code."""
    import torch

    content = path.read_bytes()
    checksum = content[:_CHECKSUM_BYTES]
    if hashlib.sha256(memoryview(content)[_CHECKSUM_BYTES:]).digest() != checksum:
        raise pickle.UnpicklingError("wrong checksum")
    return torch.load(io.BytesIO(content[_CHECKSUM_BYTES:]), map_location=device, weights_only=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_size(size: float) -> str:
    """Write a number of bytes for people: 2.66MB."""
    return tqdm.format_sizeof(size, "B")
