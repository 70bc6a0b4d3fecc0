"""Pretrained files: where each comes from, how it is checked, and where it lies on this machine.

    python -m skdcgn.weights                                list every file: present, missing or corrupt
    python -m skdcgn.weights --download cgn_imagenet vgg16  fetch files into the cache

A file is looked for at the path given explicitly, below SKDCGN_DATA_DIR, and in the cache (SKDCGN_CACHE_DIR,
or else the user's cache folder); where it is in none of them it is downloaded into the cache, unless
SKDCGN_OFFLINE=1 forbids that.

The MNIST experiments need only the small CGNs. The ImageNet teacher is cgn_imagenet, 1.1 GB on Google Drive:
it already contains all four BigGANs and the U2-Net (keys u2net.*), so biggan_deep_256, u2net and vgg16 serve
only to train a CGN, or the paper's baseline, from scratch. Drive refuses files that were fetched too often of
late: open the address in a browser then, and put the file where the listing says. The Drive link to u2net.pth
in CGN's own download script is dead; the address here is U2-Net's own.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import gdown
import pooch
import requests
import safetensors.torch
import torch
import tyro
from gdown.exceptions import DownloadError
from torch import Tensor
from tqdm import tqdm

from skdcgn.errors import InputError
from skdcgn.runtime import atomic_path

State = Literal["present", "unverified", "missing", "corrupt"]

TIMEOUT = (5.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes."""
CHUNK = 1 << 18
"""Bytes of one read from the network."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A pretrained file of other people's, or a folder of them, which this project uses and does not contain."""

    name: str
    path: str
    """Where it lies, below SKDCGN_DATA_DIR and below the cache alike."""
    url: str
    """Public address; where there are `members`, the address below which they lie."""
    size: int
    """Bytes: exact where the whole checksum is known, else the source's own figure or an estimate."""
    sha256: str | None
    """Checksum, or its head, which publishers put into file names; None where we never had the file."""
    licence: str
    purpose: str
    note: str = ""
    members: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Files of a folder, each with its SHA-256; empty for a single file."""
    page: str = ""
    """What a person opens to get the file, where `url` does not serve."""

    @property
    def address(self) -> str:
        """The public address to give to a person."""
        return self.page or self.url

    @property
    def verifiable(self) -> bool:
        """Whether a checksum is known."""
        return self.sha256 is not None or bool(self.members)

    def checksums(self) -> Mapping[str, str | None]:
        """Return the checksum of each file, by its path below `path` ("" for a single file)."""
        return self.members or {"": self.sha256}


_CGN_COMMIT = "335bebdb47e21a617db9c8ebddce07b670330e7c"
_CGN_RAW = f"https://raw.githubusercontent.com/autonomousvision/counterfactual_generative_networks/{_CGN_COMMIT}/mnists"
_CGN_PAGE = f"https://github.com/autonomousvision/counterfactual_generative_networks/tree/{_CGN_COMMIT}/mnists"
_BIGGAN = "https://s3.amazonaws.com/models.huggingface.co/biggan"
_DRIVE = "https://drive.google.com/uc?id="

_TEXTURES = {
    "background/0_veined_0066.jpg": "253effebdb863d8fe4254fd9c3df21e36c9222fad2f454639ad8d1e8b87ed96a",
    "background/1_veined_0067.jpg": "67e555623f1fff4a9abda6036e6c76ce6cbcb801ff240e04d8848b475709a4dd",
    "background/2_veined_0073.jpg": "91b3dc279226199de4dc03b56da0ce892e9d3f10b4b5136037f28de906d2276d",
    "background/3_veined_0180.jpg": "9dbe19a8284cd2b6c1bef09928acdbd9ccdf9ded707ddb6358221968165ce458",
    "background/4_veined_0131.jpg": "9e6d2ae36b8755d2a530005b905c2a3f4e1bc94b1535b6fe6e1c553acfc2b54b",
    "background/5_veined_0157.jpg": "7e34b2b445f50c7af9c86262be9af39c3ce43c61d039d8c44a4afba89d077ae1",
    "background/6_veined_0158.jpg": "4f992fd0da74cc53d37c065699a73af9e42c06dc38b2a2f22673452458708ce6",
    "background/7_veined_0104.jpg": "c43441149846718186ab4c01f61c476c96c748c1149defaf5366e2534431954c",
    "background/8_veined_0188.jpg": "d32d40f567ee3f58d421b9e02265ce1c8f0fe1ed91d8dedaa282cdc114161f39",
    "background/9_veined_0189.jpg": "ab3144757372f34153b29ddf1e2e80cbdf6079bb18233b220ad5dda594829d74",
    "object/0_striped_0001.jpg": "41b22c1a1e5edba336302b2ec175fc280647aaae6ebbbbfa9cfc433596305aff",
    "object/1_striped_0091.jpg": "d6020007460a7e41a5d654e1c3b2b2ef8243e44aeede630aaa2947c0aedfddb9",
    "object/2_striped_0008.jpg": "2ab2fc76e9ffd495ddf690a3d0bdf75158fcc2c73fb24c420ca238ce36a87ca0",
    "object/3_striped_0043.jpg": "b9ab6ae10ddb6381a8021305fd41cdf2e575d9a829e2b79b9db218d89ac66537",
    "object/4_striped_0092.jpg": "90e4b7683d348fb6d940abca13be4ad619b379ad9b3e2c96fab9f7d4dc4214ad",
    "object/5_striped_0028.jpg": "b32940be4462eb40879905f13dfa2753d1e4b044904ed6390da6a8d35735d6d2",
    "object/6_striped_0097.jpg": "bd362eefa810a35a24eeffe542a9727c3953ded745fa68e167b68a718b71d731",
    "object/7_striped_0004.jpg": "0943891ac43a4acd5d8a874f121ef862a97a1de000c3fb1d936bbe2c6d027c2a",
    "object/8_striped_0125.jpg": "edfe305c0e8f9dfa9d1576c9a32ab3f29e74ea1e8b5bab91ab4b9b83aec902e2",
    "object/9_striped_0033.jpg": "d22a5fcf1ce2ea648c506d13f31a50eaf2260b903256e40fec32995b531d6933",
}


def _mnist_cgn(variant: str, sha256: str) -> WeightFile:
    return WeightFile(
        name=f"cgn_{variant}_mnist",
        path=f"cgn/cgn_{variant}_mnist.pth",
        url=f"{_CGN_RAW}/experiments/cgn_{variant}_MNIST/weights/ckp.pth",
        size=2_661_744,
        sha256=sha256,
        licence="MIT",
        purpose=f"The CGN authors' own CGN for {variant} MNIST: the teacher of the MNIST experiments.",
    )


_FILES = [
    _mnist_cgn("colored", "6b178e7c1924b9efc532c467e7f0b77d2702efb536de9816bbd7e92c26d9b3fe"),
    _mnist_cgn("double_colored", "7aa06c907f099c63a26127164a38d2ab353f1cdcafabdf8ca9303a0e9197b933"),
    _mnist_cgn("wildlife", "db5bc3108f7bfbd74a85e2b267e65e95bd918920a02fd8de64c947fd8a0015f0"),
    WeightFile(
        name="wildlife_textures",
        path="textures",
        url=f"{_CGN_RAW}/data/textures",
        page=f"{_CGN_PAGE}/data/textures",
        size=1_577_661,
        sha256=None,
        members=_TEXTURES,
        licence="MIT (CGN); the pictures are from the Describable Textures Dataset, for research",
        purpose="The 20 textures from which Wildlife MNIST is made.",
    ),
    WeightFile(
        name="cgn_imagenet",
        path="cgn/cgn.pth",
        url=f"{_DRIVE}12yVFHPUjKmUFGnO2D4xVlTSpF8CUj136",
        size=1_113_000_000,  # the float32 values that it holds
        sha256=None,
        licence="MIT",
        purpose="The CGN authors' own CGN for ImageNet: the teacher of the ImageNet experiments.",
        note="It holds all four BigGANs and the U2-Net (keys u2net.*): distillation needs no other file.",
    ),
    WeightFile(
        name="biggan_deep_256",
        path="biggan/biggan-deep-256-pytorch_model.bin",
        url=f"{_BIGGAN}/biggan-deep-256-pytorch_model.bin",
        size=234_000_000,  # the float32 values that it holds
        sha256=None,
        licence="Apache-2.0 (pytorch-pretrained-BigGAN); converted from DeepMind's release",
        purpose="BigGAN-deep-256: what a CGN trained on ImageNet starts from and has to reconstruct.",
        note="cgn_imagenet already contains it (keys biggan_GT.*), beside the three trained mechanisms.",
    ),
    WeightFile(
        name="biggan_deep_256_config",
        path="biggan/biggan-deep-256-config.json",
        url=f"{_BIGGAN}/biggan-deep-256-config.json",
        size=700,
        sha256=None,
        licence="Apache-2.0 (pytorch-pretrained-BigGAN)",
        purpose="The architecture of biggan_deep_256.",
    ),
    WeightFile(
        name="u2net",
        path="u2net/u2net.pth",
        url=f"{_DRIVE}1ao1ovG1Qtx4b7EoskHXmi2E9rp5CHLcZ",
        size=176_300_000,
        sha256=None,
        licence="Apache-2.0 (U-2-Net)",
        purpose="U2-Net, the saliency network that turns shapes into masks in a CGN trained from scratch.",
        note="cgn_imagenet already contains it. The link in CGN's own download script"
        " (Drive id 1VkKexkWh5SeB8fgxAZxLKgmmvDXhVYUy) is dead; this one is U2-Net's own.",
    ),
    WeightFile(
        name="vgg16",
        path="torchvision/vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        size=553_434_000,
        sha256="397923af",
        licence="BSD-3-Clause (torchvision)",
        purpose="VGG16, for the perceptual and style losses of training a CGN.",
    ),
    WeightFile(
        name="fid_inception",
        path="fid/pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        size=95_600_000,
        sha256="6726825d",
        licence="Apache-2.0 (pytorch-fid)",
        purpose="The Inception network of the FID.",
    ),
]

REGISTRY: dict[str, WeightFile] = {file.name: file for file in _FILES}
"""Every pretrained file, by name."""


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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(name: str, explicit: Path | None = None, download: bool = True) -> Path:
    """Find a pretrained file, check it, and download it if need be.

    Looks at `explicit`, below SKDCGN_DATA_DIR and in the cache, in this order. A corrupt file in the cache is
    removed and downloaded again; elsewhere it is the user's, and reported.

    Args:
        name: a name in `REGISTRY`.
        explicit: the file itself, where the user names it; nothing else is tried then.
        download: whether a missing file may be downloaded (never with SKDCGN_OFFLINE=1).

    Returns:
        The path of the file, or of the folder where the entry has members.

    Raises:
        InputError: unknown name; corrupt file outside the cache; or missing and not to be had, and then the
            sentence names the public address, the size, and where to put it by hand.
    """
    if name not in REGISTRY:
        raise InputError(f"There is no pretrained file {name!r}: choose from {', '.join(REGISTRY)}.")
    file = REGISTRY[name]
    if explicit is not None:
        if fault := _fault(file, explicit):
            raise InputError(f"{fault}; name an intact copy of {name}, or none to have it searched and downloaded.")
        return explicit

    data = data_dir()
    if data is not None and _complete(file, path := data / file.path):
        if fault := _fault(file, path):
            raise InputError(f"{fault}; delete it, or replace it with {file.address}.")
        return path

    path = cache_dir() / file.path
    if _complete(file, path) and not _fault(file, path):
        return path
    failure = _download(file, path) if download else "this command does not download"
    if failure:
        places = f"{data / file.path} or {path}" if data else f"{path} (or into a folder named by SKDCGN_DATA_DIR)"
        raise InputError(
            f"{name} is not on this machine and could not be downloaded ({failure}): get it"
            f" ({_size(file.size)}) from {file.address} and put it at {places}."
        )
    return path


def status(file: WeightFile) -> tuple[State, str]:
    """Return the state of a pretrained file on this machine, and its place, its address or its fault.

    A file is "unverified" where it is there but its checksum is not known. Changes nothing, asks no network.
    """
    for place in filter(None, (data_dir(), cache_dir())):
        path = place / file.path
        if _complete(file, path):
            if fault := _fault(file, path):
                return "corrupt", fault
            return ("present" if file.verifiable else "unverified"), str(path)
    return "missing", file.address


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or PyTorch file, on the CPU and without running any code in it.

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
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds something else than a dictionary of tensors: give a file with a state dict.")
    return dict(state)


def _complete(file: WeightFile, path: Path) -> bool:
    """Tell whether all of an entry's files exist at `path`."""
    return all((path / member).exists() for member in file.checksums())


def _fault(file: WeightFile, path: Path) -> str | None:
    """Return what is wrong with an entry's files at `path`, or None."""
    for member, checksum in file.checksums().items():
        if fault := _file_fault(path / member, checksum, file):
            return f"{path / member} {fault}"
    return None


def _file_fault(path: Path, checksum: str | None, file: WeightFile) -> str | None:
    """Return what is wrong with one file, as a predicate to its name, or None."""
    if not path.is_file():
        return "is a folder" if path.is_dir() else "does not exist"
    if checksum is not None:
        actual = sha256(path)
        if not actual.startswith(checksum):
            return f"is corrupt: its SHA-256 starts with {actual[:12]} instead of {checksum[:12]}"
    elif path.stat().st_size < file.size / 2:
        # Without a checksum, at least tell the file from the error page that Google Drive sends in its place.
        return f"is corrupt: it has {_size(path.stat().st_size)} instead of about {_size(file.size)}"
    return None


def _download(file: WeightFile, path: Path) -> str | None:
    """Download an entry's files to `path`, each whole or not at all; return why it failed, or None."""
    try:
        for member, checksum in file.checksums().items():
            target = path / member
            if not _file_fault(target, checksum, file):
                continue
            target.unlink(missing_ok=True)
            if os.environ.get("SKDCGN_OFFLINE", "0") not in ("", "0"):
                return "SKDCGN_OFFLINE is set"
            url = f"{file.url}/{member}" if member else file.url
            with atomic_path(target) as temporary:
                _fetch(url, temporary, file)
                if fault := _file_fault(temporary, checksum, file):
                    raise ValueError(f"what came {fault}")
    except (OSError, DownloadError, ValueError) as error:  # requests' errors are OSErrors
        return _reason(error, file.url)
    return None


def _fetch(url: str, path: Path, file: WeightFile) -> None:
    """Download one address to `path`, with a progress bar where a terminal shows it."""
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        if url.startswith(_DRIVE):  # only gdown gets past Drive's page that confirms large files
            with path.open("wb") as output:
                gdown.download(
                    url=url,
                    output=output,
                    quiet=True,
                    use_cookies=False,
                    timeout=TIMEOUT,
                    progress=lambda done, _: bar.update(done - bar.n),
                )
        else:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT)(url, str(path), None)


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


def _size(size: int) -> str:
    """Write a number of bytes for people: 2.66MB."""
    return tqdm.format_sizeof(size, "B")


def _listing(states: Mapping[str, tuple[State, str]]) -> Iterator[str]:
    """Yield the lines of the table of files, then what is to be known of those that are not there."""
    width = max(map(len, ["file", *states]))
    yield f"{'file':{width}}  {'state':10}  {'size':>6}  place, or address where missing"
    for name, (state, detail) in states.items():
        yield f"{name:{width}}  {state:10}  {_size(REGISTRY[name].size):>6}  {detail}"
    if any(state == "unverified" for state, _ in states.values()):
        yield "unverified: there, but checked for its size only, as this project knows no checksum of it"
    absent = [REGISTRY[name] for name, (state, _) in states.items() if state in ("missing", "corrupt")]
    if not absent:
        return
    yield ""
    yield "To get a file: python -m skdcgn.weights --download NAME, or by hand: from its address to the path below,"
    yield f"in {data_dir() or 'a folder named by SKDCGN_DATA_DIR'} or {cache_dir()}."
    for file in absent:
        yield ""
        yield f"{file.name}: {file.path}"
        yield from (f"  {line}" for line in (file.purpose, file.note, f"Licence: {file.licence}.") if line)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to do."""

    download: tuple[str, ...] = ()
    """Names of files to find or fetch into the cache; without any, all files are listed."""


def main() -> None:
    """List the pretrained files (exit code 1 if any is corrupt), or fetch some."""
    config = tyro.cli(Config, prog="python -m skdcgn.weights", description=__doc__)
    if config.download:
        for name in config.download:
            print(f"{name}: {locate(name)}", flush=True)
        return
    states = {name: status(file) for name, file in REGISTRY.items()}
    print("\n".join(_listing(states)))
    if any(state == "corrupt" for state, _ in states.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    from skdcgn.cli import entry

    entry(main)
