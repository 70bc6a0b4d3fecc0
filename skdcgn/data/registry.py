"""Pretrained files: where each comes from, how it is checked, and where it lies on this machine.

    python -m skdcgn weights                                list every file: present, missing or corrupt
    python -m skdcgn weights --download cgn_imagenet vgg16  fetch files into the cache

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
from collections.abc import Mapping
from typing import Literal

State = Literal["present", "unverified", "missing", "corrupt"]


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
