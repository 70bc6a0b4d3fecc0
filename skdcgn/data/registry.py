"""The pretrained files of other people's that this project uses: what each is, where it is published, its checksum."""

import dataclasses
from collections.abc import Mapping
from importlib import resources

import yaml


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
    license: str
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

    def checksums(self) -> Mapping[str, str | None]:
        """Return the checksum of each file, by its path below `path` ("" for a single file)."""
        return self.members or {"": self.sha256}


DRIVE = "https://drive.google.com/uc?id="

_ENTRIES = (resources.files("skdcgn") / "assets" / "weights.yaml").read_text(encoding="utf-8")

REGISTRY = {name: WeightFile(name, **fields) for name, fields in yaml.safe_load(_ENTRIES).items()}
"""Every pretrained file, by name: an entry of `assets/weights.yaml` each."""
