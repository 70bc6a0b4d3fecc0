"""Sets of tensors on disk, in shards that any number of processes write together and that are read memory-mapped.

A set is a folder. A shard of it is a safetensors file that depends on the set's description and its own name alone, so
that several processes may write one set, an interrupted one resumes, and a lost shard can be drawn again. `set.json`
has the description, and the SHA-256 of every shard that is complete.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.files import atomic_path, format_size, sha256

INDEX = "set.json"
"""The file that makes a folder a set."""


def write_shards(
    folder: Path,
    kind: str,
    description: Mapping[str, Any],
    shards: Mapping[str, Callable[[], NamedTuple]],
    shard_bytes: int,
    advice: str,
) -> Iterator[tuple[int, int]]:
    """Write the missing shards of a set, beside any other process that does so, yielding (finished shards, all shards).

    Locks only prevent double work: if two processes draw a shard nonetheless, both write the same content, each as a
    whole.

    Args:
        folder: of this set alone.
        kind: what messages call the set.
        description: everything that decides its content, in values that JSON has.
        shards: file names in the order to write them, each with the function that draws its tensors, by field. The
            set may hold others beside them.
        shard_bytes: approximate size of a shard.
        advice: what to do if the disk is too small, for the error message.

    Raises:
        InputError: `folder` holds something else, or the disk is too small.
    """
    recorded = _recorded(folder, kind, description)
    there = {name for name in shards if name in recorded and (folder / name).exists()}
    needed = (len(shards) - len(there)) * shard_bytes
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if needed > free:
        raise InputError(
            f"the {kind} at {folder} needs another {format_size(needed)}, but that disk has {format_size(free)} left: "
            f"{advice}."
        )
    _record(folder, description, {})
    yield len(there), len(shards)
    for wait in (False, True):  # first the shards that no other process is drawing; then theirs, in case it died
        for name, draw in shards.items():
            if name in there:
                continue
            try:
                with _lock(folder, name).acquire(blocking=wait):
                    if name not in _recorded(folder, kind, description) or not (folder / name).exists():
                        with atomic_path(folder / name) as temporary:
                            save_file({key: tensor.contiguous() for key, tensor in draw()._asdict().items()}, temporary)
                            checksum = sha256(temporary)
                        _record(folder, description, {name: checksum})  # a shard without one does not count
            except Timeout:
                continue
            there.add(name)
            yield len(there), len(shards)


def read_description(folder: Path, kind: str) -> dict[str, Any]:
    """Return what a set was described as.

    Raises:
        InputError: there is no set at `folder`.
    """
    index = _read_index(folder)
    if index is None:
        raise InputError(f"no {kind} at {folder}: name a folder that holds {INDEX}.")
    return {key: value for key, value in index.items() if key != "shards"}


def read_shards(folder: Path, kind: str, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Open shards of a set, memory-mapped.

    Raises:
        InputError: there is no set at `folder`, or a shard is missing or damaged.
    """
    recorded = (_read_index(folder) or {}).get("shards", {})
    missing = [name for name in names if name not in recorded]
    if missing:
        raise InputError(
            f"the {kind} at {folder} lacks {len(missing)} of {len(names)} shards (such as {missing[0]}): run the "
            "command that writes it again, to complete it."
        )
    return [_open(folder / name) for name in names]


def verify(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each complete shard of a set, and whether it still has its SHA-256."""
    for name, checksum in sorted((_read_index(folder) or {}).get("shards", {}).items()):
        yield name, (folder / name).is_file() and sha256(folder / name) == checksum


def _read_index(folder: Path) -> dict[str, Any] | None:
    index = folder / INDEX
    return json.loads(index.read_text(encoding="utf-8")) if index.exists() else None


def _recorded(folder: Path, kind: str, description: Mapping[str, Any]) -> set[str]:
    """Return the names of the shards that have a checksum; refuse a folder of something else."""
    index = _read_index(folder)
    if index is None:
        if folder.exists() and not (folder.is_dir() and all(path.name[0] == "." for path in folder.iterdir())):
            raise InputError(f"{folder} holds something else than a {kind}: choose another folder.")
        return set()
    recorded = index.pop("shards", {})
    if index != description:
        raise InputError(f"{folder} holds another {kind} (see {folder / INDEX}): choose another folder.")
    return set(recorded)


def _record(folder: Path, description: Mapping[str, Any], checksums: Mapping[str, str]) -> None:
    """Note the checksums of shards in `set.json`, which is made where there is none."""
    with _lock(folder, INDEX):
        index = _read_index(folder) or {**description, "shards": {}}
        index["shards"].update(checksums)
        with atomic_path(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lock(folder: Path, name: str) -> FileLock:
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{name}.lock")


def _open(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"shard {path} is missing or damaged ({error}): delete it and write the set again.") from None
