"""Pretrained files: where each comes from, how it is checked, and where it lies on this machine.

    python -m skdcgn weights                                list every file: present, missing or corrupt
    python -m skdcgn weights --download cgn_imagenet vgg16  fetch files into the cache

A file is looked for below SKDCGN_DATA_DIR and in the cache (SKDCGN_CACHE_DIR, or else the user's cache
folder); where it is in neither it is downloaded into the cache, unless SKDCGN_OFFLINE=1 forbids that.

The MNIST experiments need only the small CGNs. The ImageNet teacher is cgn_imagenet, 1.1 GB on Google Drive:
it already contains all four BigGANs and the U2-Net (keys u2net.*), so biggan_deep_256, u2net and vgg16 serve
only to train a CGN, or the paper's baseline, from scratch. Drive refuses files that were fetched too often of
late: open the address in a browser then, and put the file where the listing says. The Drive link to u2net.pth
in CGN's own download script is dead; the address here is U2-Net's own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from skdcgn.data.registry import REGISTRY
from skdcgn.files import format_size

if TYPE_CHECKING:
    from skdcgn.data.weights import State


def _listing(states: Mapping[str, "tuple[State, str]"]) -> Iterator[str]:
    """Yield the lines of the table of files, then what is known of those that are not there."""
    from skdcgn.data.weights import cache_dir, data_dir

    width = max(map(len, ["file", *states]))
    yield f"{'file':{width}}  {'state':10}  {'size':>6}  place, or address where missing"
    for name, (state, detail) in states.items():
        yield f"{name:{width}}  {state:10}  {format_size(REGISTRY[name].size):>6}  {detail}"
    if any(state == "unverified" for state, _ in states.values()):
        yield "unverified: there, but checked for its size only, as this project knows no checksum of it"
    absent = [REGISTRY[name] for name, (state, _) in states.items() if state in ("missing", "corrupt")]
    if not absent:
        return
    yield ""
    yield "To get a file: python -m skdcgn weights --download NAME, or by hand: from its address to the path below,"
    yield f"in {data_dir() or 'a folder named by SKDCGN_DATA_DIR'} or {cache_dir()}."
    for file in absent:
        yield ""
        yield f"{file.name}: {file.path}"
        yield from (f"  {line}" for line in (file.purpose, file.note, f"License: {file.license}.") if line)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to do."""

    download: tuple[str, ...] = ()
    """Names of files to find or fetch into the cache; without any, all files are listed."""


def main(config: Config) -> None:
    """List the pretrained files (exit code 1 if any is corrupt), or fetch some."""
    from skdcgn.data.weights import locate, status

    if config.download:
        for name in config.download:
            print(f"{name}: {locate(name)}", flush=True)
        return
    states = {name: status(file) for name, file in REGISTRY.items()}
    print("\n".join(_listing(states)))
    if any(state == "corrupt" for state, _ in states.values()):
        raise SystemExit(1)
