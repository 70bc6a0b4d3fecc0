"""Write a data set of counterfactual images, from a CGN or from SKDCGN in its place.

    python -m skdcgn counterfactuals --source cgn:double_colored --n 10000 --out counterfactuals
    python -m skdcgn counterfactuals --source runs:/<id of a run> --n 100000 --out students --no-png

The folder gets safetensors shards, PNG images, `index.csv` (and `index.parquet`) with the label of each mechanism for
every image, and `set.json`, which says what it is. `recipes.sources` tells what can be a source. An interrupted command
resumes where it stopped, and several may write one set together.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from skdcgn.configs.counterfactuals import CounterfactualConfig
from skdcgn.configs.fields import Checked, Device, PositiveInt
from skdcgn.files import format_size
from skdcgn.runtime import Runtime, setup


@dataclass(frozen=True)
class Config(Checked):
    """Write a counterfactual data set to a folder."""

    source: str
    """Where the mechanisms come from: cgn:double_colored, cgn:colored or cgn:wildlife (the CGN authors' teachers),
    runs:/ID (a run that kept an MNIST CGN, or three students), or the path of an MNIST CGN's checkpoint."""
    out: Path
    """Folder to write; one that holds a part of this very set is completed."""
    data: tyro.conf.OmitArgPrefixes[CounterfactualConfig] = field(default_factory=CounterfactualConfig)
    png: bool = True
    """Write PNG files beside the compact safetensors shards."""
    resolution: PositiveInt | None = None
    """Side of the images; by default the source's own."""
    device: Device = "auto"
    """Device to render on: auto (CUDA where there is one), cpu, cuda, ..."""


def main(config: Config) -> None:
    """Write the set, after saying how much room it takes."""
    from skdcgn.counterfactuals.datasets import disk_space, write
    from skdcgn.recipes.sources import load_source
    from skdcgn.runs.store import open_store

    store = open_store() if config.source.startswith("runs:/") else None
    source = load_source(config.source, store, setup(Runtime(device=config.device)))
    resolution = config.resolution or source.resolution
    space = format_size(disk_space(config.data.n, resolution, config.png))
    shown = f"{config.data.n:,} images ({resolution}x{resolution}) of {source.name}"
    print(f"{shown} to {config.out}: about {space}", flush=True)
    with tqdm(total=config.data.n, unit="image") as bar:
        for there, _ in write(config.out, source, config.data, config.png, resolution):
            bar.update(there - bar.n)
    print(f"{config.out / 'index.csv'} lists them")
