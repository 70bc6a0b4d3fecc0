"""Finding, checking and downloading the pretrained files of `skdcgn.data.registry`, and reading their tensors.

A file is looked for below SKDCGN_DATA_DIR and in the cache (SKDCGN_CACHE_DIR, or else
the user's cache folder). One that is in neither is downloaded into the cache, unless SKDCGN_OFFLINE=1 forbids it.
"""

import os
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import gdown
import pooch
import requests
import safetensors.torch
import torch
from gdown.exceptions import DownloadError
from torch import Tensor, nn
from tqdm import tqdm

from skdcgn.data.registry import DRIVE, REGISTRY, WeightFile
from skdcgn.errors import InputError, Unavailable
from skdcgn.files import atomic_path, format_size, sha256

Network = TypeVar("Network", bound=nn.Module)
State = Literal["present", "unverified", "missing", "corrupt"]

TIMEOUT = (5.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes."""

RETRIES = 1
"""Further attempts at a download that failed, as transfers of a gigabyte break off."""

_ABSENT = "does not exist"


def data_dir() -> Path | None:
    """Return SKDCGN_DATA_DIR, the user's own folder of data and weights, or None if it is not set.

    Raises:
        InputError: it names no existing folder.
    """
    value = os.environ.get("SKDCGN_DATA_DIR")
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_dir():
        raise InputError(f"SKDCGN_DATA_DIR is {value}, which is no folder: correct it, or unset it to use the cache.")
    return path


def cache_dir() -> Path:
    """Return the folder for downloads, which need not exist: SKDCGN_CACHE_DIR or the user's cache folder."""
    value = os.environ.get("SKDCGN_CACHE_DIR")
    return Path(value).expanduser() if value else Path(pooch.os_cache("skdcgn"))


def check_online() -> None:
    """Raise an OSError if SKDCGN_OFFLINE forbids downloads."""
    if os.environ.get("SKDCGN_OFFLINE", "0") not in ("", "0"):
        raise OSError("SKDCGN_OFFLINE is set")


def locate(name: str, download: bool = True) -> Path:
    """Find a pretrained file, check it, and download it if need be.

    Looks below SKDCGN_DATA_DIR and in the cache, in this order. A corrupt file in the cache is
    removed and downloaded again; elsewhere it is the user's, and reported.

    Args:
        name: a name in `REGISTRY`.
        download: whether a missing file may be downloaded (never with SKDCGN_OFFLINE=1).

    Returns:
        The path of the file, or of the folder where the entry has members.

    Raises:
        Unavailable: missing and not to be had: the sentence names the public address, the size, and where to put it
            by hand.
        InputError: unknown name, or corrupt file outside the cache.
    """
    if name not in REGISTRY:
        raise InputError(f"There is no pretrained file {name!r}: choose from {', '.join(REGISTRY)}.")
    file = REGISTRY[name]
    data, path = data_dir(), cache_dir() / file.path
    for place, replaceable in ((data and data / file.path, False), (path, download)):
        state, detail = _state(file, place) if place else ("missing", "")
        if state in ("present", "unverified"):
            return place
        if state == "corrupt" and not replaceable:
            raise InputError(f"{detail}; delete it, or replace it with {file.address}.")
    try:
        if not download:
            raise OSError("this command does not download")
        _download(file, path)
    except (OSError, DownloadError, ValueError) as error:  # requests' errors are OSErrors
        places = f"{data / file.path} or {path}" if data else f"{path} (or into a folder named by SKDCGN_DATA_DIR)"
        raise Unavailable(
            f"{name} is not on this machine and could not be downloaded ({_reason(error, file.url)}): get it"
            f" ({format_size(file.size)}) from {file.address} and put it at {places}."
        ) from None
    return path


def status(file: WeightFile) -> tuple[State, str]:
    """Return the state of a pretrained file on this machine, and its place, its address or its fault.

    A file is "unverified" where it is there but its checksum is not known. Changes nothing, asks no network.
    """
    for place in filter(None, (data_dir(), cache_dir())):
        state, detail = _state(file, place / file.path)
        if state != "missing":
            return state, detail
    return "missing", file.address


def load_state_dict(path: Path, member: str = "") -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or PyTorch file, on the CPU and without running any code in it.

    Args:
        path: the file.
        member: name of the state dict to take from a file that holds several; others are taken whole.

    Raises:
        InputError: the file is missing, damaged, or holds something else than named tensors.
    """
    if not path.is_file():
        raise InputError(f"There is no weight file {path}: correct the path.")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, incomplete, or no file"
            " of tensors; get it again."
        ) from error
    if isinstance(state, dict):
        state = state.get(member, state)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{path} holds something else than a dictionary of tensors: give a file with a state dict.")
    return dict(state)


def fill(network: Network, state: Mapping[str, Tensor], misfit: str) -> Network:
    """Give a network its weights, strictly, half precision as float32, and return it in evaluation mode.

    Args:
        network: on any device; one on the "meta" device takes the tensors themselves.
        state: its weights by name.
        misfit: what to say of them, and where they come from, if they are those of another network.

    Raises:
        InputError: they are.
    """
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    try:
        network.load_state_dict(state, assign=any(tensor.is_meta for tensor in network.state_dict().values()))
    except RuntimeError as error:
        raise InputError(f"{misfit}: {' '.join(str(error).split())[:200]}") from None
    return network.eval()


def save_state_dict(
    path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None, half: bool = False
) -> None:
    """Write tensors as safetensors, with where they come from as metadata; `half` stores fp16, half the size."""
    tensors = {name: tensor.half() if half and tensor.is_floating_point() else tensor for name, tensor in state.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def _state(file: WeightFile, path: Path) -> tuple[State, str]:
    """Return the state of an entry's files at `path`, and the path or what is wrong; some files alone are missing."""
    faults = {path / member: _file_fault(path / member, digest, file) for member, digest in file.checksums().items()}
    for place, fault in faults.items():
        if fault not in (None, _ABSENT):
            return "corrupt", f"{place} {fault}"
    if _ABSENT in faults.values():
        return "missing", str(path)
    return ("present" if all(file.checksums().values()) else "unverified"), str(path)


def _file_fault(path: Path, checksum: str | None, file: WeightFile) -> str | None:
    """Return what is wrong with one file, as a predicate to its name, or None."""
    try:
        return _content_fault(path, checksum, file)
    except FileNotFoundError:
        return "is a link to a file that does not exist" if path.is_symlink() else _ABSENT
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _content_fault(path: Path, checksum: str | None, file: WeightFile) -> str | None:
    """Return what is wrong with the content of one file, as a predicate to its name, or None."""
    if path.exists() and not path.is_file():
        return "is a folder" if path.is_dir() else "is no file"
    if checksum is not None:
        actual = sha256(path)
        if not actual.startswith(checksum):
            return f"is corrupt: its SHA-256 starts with {actual[:12]} instead of {checksum[:12]}"
        return None
    with path.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
    if size < file.size / 2:
        # Without a checksum, at least tell the file from the error page that Google Drive sends in its place.
        return f"is corrupt: it has {format_size(size)} instead of about {format_size(file.size)}"
    return None


def _download(file: WeightFile, path: Path) -> None:
    """Download those of an entry's files that are missing or corrupt at `path`, each whole or not at all."""
    pooch.get_logger().setLevel("WARNING")
    for member, checksum in file.checksums().items():
        target = path / member
        if _file_fault(target, checksum, file):
            target.unlink(missing_ok=True)  # pooch would keep it where no new one is available
            check_online()
            urls = {target.name: f"{file.url}/{member}".rstrip("/")}
            # pooch compares whole checksums only: `_fetch` checks heads of checksums and sizes too.
            cache = pooch.create(target.parent, "", registry={target.name: None}, urls=urls, retry_if_failed=RETRIES)
            cache.fetch(target.name, downloader=partial(_fetch, file=file, checksum=checksum))


def _fetch(url: str, output: str, _: pooch.Pooch, file: WeightFile, checksum: str | None) -> None:
    """Download one address to `output`, with a progress bar on a terminal, and check what came: pooch's downloader.

    Raises:
        ValueError: what came is not the file.
    """
    path = Path(output)
    path.unlink()  # pooch made it for this user alone; a new one gets the usual permissions
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def show(done: int, _total: int | None) -> None:
            bar.update(done - bar.n)

        if url.startswith(DRIVE):  # only gdown gets past Drive's page that confirms large files
            with path.open("wb") as target:
                gdown.download(url=url, output=target, quiet=True, use_cookies=False, timeout=TIMEOUT, progress=show)
        else:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18, timeout=TIMEOUT)(url, output, None)
    if fault := _file_fault(path, checksum, file):
        raise ValueError(f"what came {fault}")


def _reason(error: Exception, url: str) -> str:
    """Say in a few words why a download failed: requests' own messages run over many lines."""
    host = urlsplit(url).hostname
    match error:
        case requests.HTTPError():
            return f"{host} answered {error.response.status_code}"
        case requests.Timeout():
            return f"{host} did not answer in time"
        case requests.exceptions.ChunkedEncodingError():
            return f"{host} broke off the transfer"
        case requests.ConnectionError():
            return f"no connection to {host}"
        case DownloadError():
            return f"{host} refused the download"
        case OSError() if error.strerror:
            return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
