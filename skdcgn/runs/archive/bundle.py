"""An archive of runs: one zip file that is written whole or not at all, and verified before anything of it is used.

    manifest.json             format and version, the experiments with their tags, size and SHA-256 of every file
    runs/<id>.json            a run: its tags, params, metrics with all their steps and times, and what data it read
    artifacts/<id>/<path>     what the run kept

Equal content gives equal bytes on one machine. This module knows files, and no run store.
"""

import contextlib
import hashlib
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from skdcgn.errors import InputError
from skdcgn.files import atomic_path, format_size

FORMAT = "skdcgn archive of runs"
VERSION = 1
ORIGIN = "origin_run"
"""Tag of the id that a run had in the store that made it."""
ORIGIN_STORE = "origin_store"
"""Tag of that store and its machine."""
IMPORTING = "importing"
"""Tag of a run that is not there in full yet."""

_PARENT = "mlflow.parentRunId"
_MANIFEST = "manifest.json"
_MAX_JSON = 2**28  # bytes of a JSON file, which is held in memory; a run with five million values has fewer
_CHUNK = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every file in the zip
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataInput(_Part):
    """A dataset that a run read, in MLflow's words."""

    name: str
    digest: str
    source_type: str
    source: str
    description: str | None = None
    """MLflow's `schema`."""
    profile: str | None = None
    tags: dict[str, str] = {}


class RunEntry(_Part):
    """A run, but for its artifacts."""

    run_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """In the store that the archive was written from."""
    experiment: str
    status: Literal["SCHEDULED", "RUNNING", "KILLED", "FAILED", "FINISHED"]
    start_time: int
    """In milliseconds, as all times."""
    end_time: int | None = None
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    metrics: dict[str, list[tuple[int, int, float]]] = {}
    """By name all that was logged: step, time, value."""
    inputs: list[DataInput] = []

    @property
    def origin(self) -> str:
        """Id of the run in the store that made it."""
        return self.tags.get(ORIGIN, self.run_id)

    @property
    def parent(self) -> str | None:
        """Id of the run that this one belongs to."""
        return self.tags.get(_PARENT)


class _File(_Part):
    sha256: str
    size: int


class _Versioned(BaseModel):
    """What the manifest of any version has."""

    format: str
    version: int


class _Manifest(_Part):
    format: str
    version: int
    experiments: dict[str, dict[str, str]]
    files: dict[str, _File]


_Kind = TypeVar("_Kind", bound=BaseModel)


# --- writing


class Writer:
    """Takes the runs of an archive."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._zip = file
        self._files: dict[str, dict[str, object]] = {}

    def add(self, run: RunEntry, artifacts: Path) -> None:
        """Add a run.

        Args:
            run: all of it but its artifacts.
            artifacts: folder with what it kept.

        Raises:
            InputError: it has too many metrics, or kept a file with a name that an archive cannot have.
        """
        self._write_json(f"runs/{run.run_id}.json", run.model_dump(exclude_defaults=True))
        for path in sorted(artifacts.rglob("*")):
            if path.is_file():
                name = f"artifacts/{run.run_id}/{path.relative_to(artifacts).as_posix()}"
                if not _plain(name):
                    raise InputError(f"{name!r} cannot be archived: rename this file in the store.")
                with path.open("rb") as source:
                    self._write(name, source)

    def finish(self, experiments: Mapping[str, Mapping[str, str]]) -> None:
        """Write the manifest, with the tags of the experiments by their names."""
        content = {"format": FORMAT, "version": VERSION, "experiments": experiments, "files": self._files}
        self._write_json(_MANIFEST, content)

    def _write_json(self, name: str, content: Mapping[str, object]) -> None:
        text = json.dumps(content).encode()  # in the store's order: that of a trial's tags orders its parameters
        if len(text) > _MAX_JSON:
            raise InputError(f"{name} cannot be archived: it takes {format_size(len(text))}.")
        self._write(name, io.BytesIO(text))

    def _write(self, name: str, source: IO[bytes]) -> None:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
        digest, size = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=True) as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self._files[name] = {"sha256": digest.hexdigest(), "size": size}


@contextlib.contextmanager
def write_archive(path: Path) -> Iterator[Writer]:
    """Yield a writer of an archive that is there only when the block ends without an error.

    Raises:
        InputError: there is such a file already, or none can be written there.
    """
    if path.exists():
        raise InputError(f"{path} is there already: delete it, or give another name.")
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            yield Writer(file)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}): give another place, or make room.") from None


# --- reading


class Archive:
    """An archive that was verified."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        """Verify a file.

        Raises:
            InputError: it is no archive, or of another version, or any part of it is not as it was written.
        """
        self.path, self._zip = path, file
        self._manifest = self._read_manifest()
        self.experiments = self._manifest.experiments
        """Their tags by their names."""
        self._verify()
        names = [name for name in self._manifest.files if name.startswith("runs/")]
        heads = [self._read_run(name).model_copy(update={"metrics": {}, "params": {}}) for name in names]
        self.runs = {head.run_id: head for head in sorted(heads, key=lambda head: (head.start_time, head.run_id))}
        """All runs by their ids, the oldest first; without metrics and params."""
        self._kept: dict[str, list[str]] = {}
        for name in self._manifest.files:
            if name.startswith("artifacts/"):
                self._kept.setdefault(name.split("/")[1], []).append(name)
        named = {head.experiment for head in heads}
        if not self._kept.keys() <= self.runs.keys() or not named <= self.experiments.keys():
            raise self._refused("names runs or experiments that it does not have")

    @property
    def size(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(file.size for file in self._manifest.files.values())

    def run(self, run_id: str) -> RunEntry:
        """Return a run with all that it has."""
        return self._read_run(f"runs/{run_id}.json")

    def artifacts(self, run_id: str) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield path and content, open to read, of all that a run kept."""
        for name in self._kept.get(run_id, ()):
            with self._zip.open(name) as source:
                yield name.split("/", 2)[2], source

    def _read_manifest(self) -> _Manifest:
        if _MANIFEST not in self._zip.namelist():
            raise self._refused(f"is a zip file without {_MANIFEST}", "give one that `archive export` wrote")
        head = self._parse(_MANIFEST, _Versioned)
        if head.format != FORMAT:
            raise self._refused("is an archive of something else", "give one that `archive export` wrote")
        if head.version != VERSION:
            raise self._refused(f"is of format version {head.version}, not {VERSION}", "use the code that wrote it")
        return self._parse(_MANIFEST, _Manifest)

    def _verify(self) -> None:
        """Check names, sizes and checksums of all files."""
        members, expected = self._zip.infolist(), self._manifest.files
        names = [member.filename for member in members]
        for name in (*names, *expected, *self.experiments):
            if not _plain(name):
                raise self._refused(f"has a file or experiment of the name {name!r}, which leads out of its folder")
        if len({*names}) < len(names) or {*names} != {*expected, _MANIFEST}:
            raise self._refused("does not have the files that its manifest lists")
        folders = {parent for name in names for parent in map(str, Path(name).parents)}
        if any(stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG) for member in members):
            raise self._refused("has a link or another thing that is no file")
        if folders & {*names} or not all(re.match("runs/|artifacts/.+/", name) for name in expected):
            raise self._refused("has files in wrong places")
        # Files that share their compressed bytes could unpack to any size.
        if sum(member.compress_size for member in members) > self.path.stat().st_size:
            raise self._refused("declares more content than it has")
        with tqdm(total=self.size, desc=f"verifying {self.path.name}", unit="B", unit_scale=True) as bar:
            for member in members:
                if member.filename == _MANIFEST:
                    continue
                file, digest = expected[member.filename], hashlib.sha256()
                if member.file_size != file.size:
                    raise self._refused(f"has another size of {member.filename} than its manifest says")
                with self._readable(), self._zip.open(member) as source:
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        bar.update(len(chunk))
                if digest.hexdigest() != file.sha256:
                    raise self._refused(f"is damaged: {member.filename} does not have its SHA-256")

    def _read_run(self, name: str) -> RunEntry:
        run = self._parse(name, RunEntry)
        if name != f"runs/{run.run_id}.json":
            raise self._refused(f"has another run in {name}")
        return run

    def _parse(self, name: str, kind: type[_Kind]) -> _Kind:
        """Read a JSON file."""
        if self._zip.getinfo(name).file_size > _MAX_JSON:
            raise self._refused(f"declares {format_size(self._zip.getinfo(name).file_size)} for {name}")
        try:
            with self._readable():
                text = self._zip.read(name)
            return kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
            raise self._refused(f"has something else than expected in {name} ({reason})") from None

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            raise self._refused(f"is damaged ({error})") from None

    def _refused(self, reason: str, remedy: str = "copy or export it again") -> InputError:
        return InputError(f"{self.path} {reason}: {remedy}.")


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Verify and open an archive.

    Raises:
        InputError: there is no such file, or see `Archive`.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(zipfile.ZipFile(path))
        except FileNotFoundError:
            raise InputError(f"there is no file {path}: give an archive that `archive export` wrote.") from None
        except _UNREADABLE as error:
            raise InputError(
                f"{path} is no archive of runs, or was cut short ({error}): copy or export it again."
            ) from None
        yield Archive(path, file)


def _plain(name: str) -> bool:
    """Whether a path stays in its folder, on every system."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & {*name.split("/")}
