"""The pretrained files of other people's that this project uses: what each is, where it is published, its checksum."""

import dataclasses
from collections.abc import Mapping
from importlib import resources


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


_CGN_COMMIT = "335bebdb47e21a617db9c8ebddce07b670330e7c"
_CGN_RAW = f"https://raw.githubusercontent.com/autonomousvision/counterfactual_generative_networks/{_CGN_COMMIT}/mnists"
_CGN_PAGE = f"https://github.com/autonomousvision/counterfactual_generative_networks/tree/{_CGN_COMMIT}/mnists"
_BIGGAN = "https://s3.amazonaws.com/models.huggingface.co/biggan"

DRIVE = "https://drive.google.com/uc?id="

_TEXTURES = (resources.files("skdcgn") / "assets" / "wildlife_textures.sha256").read_text(encoding="utf-8")


def _mnist_cgn(variant: str, sha256: str) -> WeightFile:
    return WeightFile(
        name=f"cgn_{variant}_mnist",
        path=f"cgn/cgn_{variant}_mnist.pth",
        url=f"{_CGN_RAW}/experiments/cgn_{variant}_MNIST/weights/ckp.pth",
        size=2_661_744,
        sha256=sha256,
        license="MIT",
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
        members={name: digest for digest, name in map(str.split, _TEXTURES.splitlines())},
        license="MIT (CGN); the pictures are from the Describable Textures Dataset, for research",
        purpose="The 20 textures from which Wildlife MNIST is made.",
    ),
    WeightFile(
        name="cgn_imagenet",
        path="cgn/cgn.pth",
        url=f"{DRIVE}12yVFHPUjKmUFGnO2D4xVlTSpF8CUj136",
        size=1_113_000_000,  # the float32 values that it holds
        sha256=None,
        license="MIT",
        purpose="The CGN authors' own CGN for ImageNet: the teacher of the ImageNet experiments.",
        note="It holds all four BigGANs and the U2-Net (keys u2net.*): distillation needs no other file.",
    ),
    WeightFile(
        name="biggan_deep_256",
        path="biggan/biggan-deep-256-pytorch_model.bin",
        url=f"{_BIGGAN}/biggan-deep-256-pytorch_model.bin",
        size=234_000_000,  # the float32 values that it holds
        sha256=None,
        license="Apache-2.0 (pytorch-pretrained-BigGAN); converted from DeepMind's release",
        purpose="BigGAN-deep-256: what a CGN trained on ImageNet starts from and has to reconstruct.",
        note="cgn_imagenet already contains it (keys biggan_GT.*), beside the three trained mechanisms.",
    ),
    WeightFile(
        name="biggan_deep_256_config",
        path="biggan/biggan-deep-256-config.json",
        url=f"{_BIGGAN}/biggan-deep-256-config.json",
        size=700,
        sha256=None,
        license="Apache-2.0 (pytorch-pretrained-BigGAN)",
        purpose="The architecture of biggan_deep_256.",
    ),
    WeightFile(
        name="u2net",
        path="u2net/u2net.pth",
        url=f"{DRIVE}1ao1ovG1Qtx4b7EoskHXmi2E9rp5CHLcZ",
        size=176_300_000,
        sha256=None,
        license="Apache-2.0 (U-2-Net)",
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
        license="BSD-3-Clause (torchvision)",
        purpose="VGG16, for the perceptual and style losses of training a CGN.",
    ),
    WeightFile(
        name="fid_inception",
        path="fid/pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        size=95_600_000,
        sha256="6726825d",
        license="Apache-2.0 (pytorch-fid)",
        purpose="The Inception network of the FID.",
    ),
]

REGISTRY: dict[str, WeightFile] = {file.name: file for file in _FILES}
"""Every pretrained file, by name."""
