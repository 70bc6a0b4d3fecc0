"""Sets of tensors on disk, in shards that any number of processes write together and that are read memory-mapped.

A set is a folder. A shard of it is a safetensors file that depends on the set's description and its own name alone, so
that several processes may write one set, an interrupted one resumes, and a lost shard can be drawn again. `set.json`
has the description, and the SHA-256 of every shard that is complete. That is compared whenever a shard is opened that
was written or changed since it was compared last.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from skdcgn.errors import InputError
from skdcgn.files import atomic_path, format_size, sha256

INDEX = "set.json"
"""The file that makes a folder a set."""

_LOCKS = ".locks"
_AGAIN = "run the command that wrote the set again"
Description = TypeVar("Description")


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
    there = {name for name in shards if _is_whole(folder, name, recorded.get(name))}
    needed = (len(shards) - len(there)) * shard_bytes
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if needed > free:
        raise InputError(
            f"the {kind} at {folder} needs another {format_size(needed)}, but that disk has {format_size(free)} left: "
            f"{advice}."
        )
    if needed:  # a complete set can be read where it cannot be written
        _record(folder, description, {})
    yield len(there), len(shards)
    for wait in (False, True):  # first the shards that no other process is drawing; then theirs, in case it died
        for name, draw in shards.items():
            if name in there:
                continue
            try:
                with _lock(folder, name).acquire(blocking=wait):
                    if not _is_whole(folder, name, _recorded(folder, kind, description).get(name)):
                        content = save({key: tensor.contiguous() for key, tensor in draw()._asdict().items()})
                        with atomic_path(folder / name) as temporary:
                            temporary.write_bytes(content)
                        checksum = hashlib.sha256(content).hexdigest()
                        _record(folder, description, {name: checksum})  # a shard without one does not count
                        _is_whole(folder, name, checksum)  # now, while it is in memory
            except Timeout:
                continue
            there.add(name)
            yield len(there), len(shards)


def read_description(folder: Path, kind: str, form: type[Description]) -> Description:
    """Return what a set was described as.

    Args:
        folder: of the set.
        kind: what messages call it.
        form: a dataclass of the fields to read.

    Raises:
        InputError: there is no set at `folder`, one of another kind, or its index is damaged.
    """
    index = _read_index(folder)
    if index is None:
        raise InputError(f"no {kind} at {folder}: name a folder that holds {INDEX}.")
    try:
        return TypeAdapter(form).validate_python({field.name: index[field.name] for field in fields(form)})
    except (KeyError, ValidationError):
        raise InputError(f"{folder / INDEX} describes no {kind}: name another folder, or {_anew(folder)}.") from None


def read_shards(folder: Path, kind: str, rows: Mapping[str, int], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Open shards of a set, memory-mapped.

    Args:
        folder: of the set.
        kind: what messages call it.
        rows: length of the tensors in each shard, by the shard's file name.
        names: of the tensors in each shard.

    Raises:
        InputError: there is no set at `folder`, or a shard is missing, damaged or of another set.
    """
    recorded = (_read_index(folder) or {}).get("shards", {})
    missing = [shard for shard in rows if shard not in recorded]
    if missing:
        raise InputError(
            f"the {kind} at {folder} lacks {len(missing)} of {len(rows)} shards (such as {missing[0]}): {_AGAIN}, to "
            "complete it."
        )
    opened = []
    for shard, length in rows.items():
        if not _is_whole(folder, shard, recorded[shard]):
            raise InputError(f"shard {folder / shard} is missing or damaged: {_AGAIN}, and it will be drawn again.")
        try:
            tensors = load_file(folder / shard)
        except SafetensorError:
            tensors = {}
        if {name: tensor.shape[:1] for name, tensor in tensors.items()} != dict.fromkeys(names, (length,)):
            raise InputError(f"shard {folder / shard} is not what {INDEX} beside it describes: {_anew(folder)}.")
        opened.append(tensors)
    return opened


def verify(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each complete shard of a set, and whether it still has its SHA-256.

    Raises:
        InputError: the set's index is damaged.
    """
    for name, checksum in sorted((_read_index(folder) or {}).get("shards", {}).items()):
        yield name, (folder / name).is_file() and sha256(folder / name) == checksum


def _anew(folder: Path) -> str:
    """Say how to write a whole set again."""
    return f"remove {folder} and {_AGAIN}"


def _is_whole(folder: Path, name: str, checksum: str | None) -> bool:
    """Tell whether a shard has its checksum; one that has not changed since it was last compared is not read again."""
    path, note = folder / name, folder / _LOCKS / f"{name}.whole"
    if checksum is None or not path.is_file():
        return False
    stat = path.stat()
    compared = f"{checksum} {stat.st_size} {stat.st_mtime_ns}".encode()
    with contextlib.suppress(OSError):
        if note.read_bytes() == compared:
            return True
    if sha256(path) != checksum:
        return False
    with contextlib.suppress(OSError):  # a set can be read where it cannot be written
        note.write_bytes(compared)
    return True


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Return what `set.json` holds, None where there is none; names of shards never lead out of the folder."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for name, checksum in index["shards"].items():
            if not (re.fullmatch(r"[\w-]+\.safetensors", name) and re.fullmatch("[0-9a-f]{64}", checksum)):
                raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise InputError(f"{folder / INDEX} is damaged: restore it from a copy, or {_anew(folder)}.") from None
    return index


def _recorded(folder: Path, kind: str, description: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of the shards that have one; refuse a folder of something else."""
    index = _read_index(folder)
    if index is None:
        if folder.exists() and not (folder.is_dir() and all(path.name[0] == "." for path in folder.iterdir())):
            raise InputError(f"{folder} holds something else than a {kind}: choose another folder.")
        return {}
    recorded = index.pop("shards")
    if index != description:
        raise InputError(f"{folder} holds another {kind} (see {folder / INDEX}): choose another folder.")
    return recorded


def _record(folder: Path, description: Mapping[str, Any], checksums: Mapping[str, str]) -> None:
    """Note the checksums of shards in `set.json`, which is made where there is none."""
    with _lock(folder, INDEX):
        index = _read_index(folder) or {**description, "shards": {}}
        index["shards"].update(checksums)
        with atomic_path(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lock(folder: Path, name: str) -> FileLock:
    locks = folder / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{name}.lock")
