"""The registry of pretrained files: search order, checksums, downloads from a server on this machine, sentences."""

import dataclasses
import errno
import hashlib
import importlib.util
import os
import pickle
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gdown
import pytest
import safetensors.torch
import torch
from gdown.exceptions import DownloadError

from skdcgn import __main__ as dispatcher
from skdcgn import files as project_files
from skdcgn.commands import weights as weights_command
from skdcgn.data import registry, weights
from skdcgn.errors import InputError, Unavailable

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBERS = {"a/0.jpg": b"zero" * 100, "b/1.jpg": b"one" * 100}


class Server(ThreadingHTTPServer):
    """Serves `answers` (path -> status, body, announced length) and remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, bytes, int]] = {}
        self.asked: list[str] = []

    def serve(self, path: str, body: bytes, status: int = 200, length: int | None = None) -> str:
        self.answers[path] = (status, body, len(body) if length is None else length)
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body, length = self.server.answers.get(self.path, (404, b"", 0))
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@dataclasses.dataclass
class Places:
    data: Path
    cache: Path

    def put(self, root: Path, path: str, content: bytes) -> Path:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    def files(self) -> list[Path]:
        return sorted(path for path in self.cache.rglob("*") if path.is_file())


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Empty data and cache folders, named by the environment."""
    places = Places(tmp_path / "data", tmp_path / "cache")
    places.data.mkdir()
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(places.data))
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(places.cache))
    monkeypatch.delenv("SKDCGN_OFFLINE", raising=False)
    return places


def register(monkeypatch: pytest.MonkeyPatch, file: registry.WeightFile) -> None:
    """Make a file the only one of the registry."""
    for module in (weights, weights_command):
        monkeypatch.setattr(module, "REGISTRY", {file.name: file})


@pytest.fixture
def toy(server: Server, monkeypatch: pytest.MonkeyPatch) -> registry.WeightFile:
    """A registry with one small file, which the server has."""
    file = registry.WeightFile(
        name="toy",
        path="sub/toy.pth",
        url=server.serve("/toy.pth", CONTENT),
        size=len(CONTENT),
        sha256=SHA256,
        license="MIT",
        purpose="Tests.",
    )
    register(monkeypatch, file)
    monkeypatch.setattr(weights, "RETRIES", 0)  # pooch waits a second before each
    return file


def change(monkeypatch: pytest.MonkeyPatch, file: registry.WeightFile, **fields: object) -> registry.WeightFile:
    changed = dataclasses.replace(file, **fields)
    register(monkeypatch, changed)
    return changed


def test_search_order(places: Places, server: Server, toy: registry.WeightFile) -> None:
    downloaded = weights.locate("toy")
    assert downloaded == places.cache / toy.path
    assert downloaded.read_bytes() == CONTENT
    assert server.asked == ["/toy.pth"]

    assert weights.locate("toy") == downloaded
    own = places.put(places.data, toy.path, CONTENT)
    assert weights.locate("toy") == own
    assert server.asked == ["/toy.pth"], "a file at hand is not downloaded again"


def test_download_leaves_no_temporary_file_and_is_silent(
    places: Places, toy: registry.WeightFile, capfd: pytest.CaptureFixture[str]
) -> None:
    assert places.files() == []
    weights.locate("toy")
    assert places.files() == [places.cache / toy.path]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"body": b"something else"}, r"what came is corrupt: its SHA-256 starts with \w{12} instead of"),
        ({"body": CONTENT[:5000], "length": len(CONTENT)}, "127.0.0.1 broke off the transfer"),
        ({"body": b"", "status": 404}, "127.0.0.1 answered 404"),
    ],
    ids=["checksum", "truncated", "absent"],
)
def test_failed_download_leaves_nothing(
    places: Places, server: Server, toy: registry.WeightFile, answer: dict, reason: str
) -> None:
    server.serve("/toy.pth", **answer)
    with pytest.raises(InputError, match=reason) as caught:
        weights.locate("toy")
    assert "\n" not in str(caught.value)
    assert places.files() == []


def test_broken_transfer_is_tried_again(
    places: Places, server: Server, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mend(seconds: float) -> None:
        server.serve("/toy.pth", CONTENT)

    monkeypatch.setattr(weights, "RETRIES", 1)
    monkeypatch.setattr("pooch.core.time.sleep", mend)
    server.serve("/toy.pth", CONTENT[:5000], length=len(CONTENT))
    path = weights.locate("toy")
    assert path.read_bytes() == CONTENT
    assert server.asked == ["/toy.pth"] * 2
    ordinary = places.put(places.data, "ordinary", b"")
    assert path.stat().st_mode == ordinary.stat().st_mode, "others may read it as they may any other file"


def test_missing_without_network_names_everything(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = change(monkeypatch, toy, url="http://127.0.0.1:9/toy.pth")  # nothing listens there
    with pytest.raises(InputError) as caught:
        weights.locate("toy")
    assert str(caught.value) == (
        "toy is not on this machine and could not be downloaded (no connection to 127.0.0.1): get it (10.2kB)"
        f" from {toy.url} and put it at {places.data / toy.path} or {places.cache / toy.path}."
    )


def test_missing_without_a_data_folder_names_the_variable(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKDCGN_DATA_DIR")
    with pytest.raises(InputError, match="SKDCGN_DATA_DIR") as caught:
        weights.locate("toy", download=False)
    assert str(places.cache / toy.path) in str(caught.value)


def test_offline_and_download_false_ask_nobody(
    places: Places, server: Server, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="does not download"):
        weights.locate("toy", download=False)
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")
    with pytest.raises(InputError, match="SKDCGN_OFFLINE is set"):
        weights.locate("toy")
    assert server.asked == []
    monkeypatch.setenv("SKDCGN_OFFLINE", "0")
    assert weights.locate("toy").exists()


def test_corrupt_file_in_the_cache_is_replaced(places: Places, server: Server, toy: registry.WeightFile) -> None:
    cached = places.put(places.cache, toy.path, CONTENT[:-1])
    assert weights.locate("toy") == cached
    assert cached.read_bytes() == CONTENT
    assert server.asked == ["/toy.pth"]

    cached.write_bytes(b"junk")
    server.answers.clear()
    with pytest.raises(InputError, match="answered 404"):
        weights.locate("toy")
    assert places.files() == [], "a corrupt file is gone even where no new one is available"


def test_corrupt_file_of_the_user_is_reported_and_kept(
    places: Places, server: Server, toy: registry.WeightFile
) -> None:
    own = places.put(places.data, toy.path, b"junk")
    places.put(places.cache, toy.path, CONTENT)
    junk_head = hashlib.sha256(b"junk").hexdigest()[:12]
    with pytest.raises(InputError) as caught:
        weights.locate("toy")
    assert str(caught.value) == (
        f"{own} is corrupt: its SHA-256 starts with {junk_head} instead of {SHA256[:12]};"
        f" delete it, or replace it with {toy.url}."
    )
    assert own.read_bytes() == b"junk"
    assert server.asked == []


def test_head_of_a_checksum_is_checked(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, toy, sha256=SHA256[:8])
    assert weights.locate("toy").read_bytes() == CONTENT
    change(monkeypatch, toy, sha256="0" * 8)
    with pytest.raises(InputError, match="instead of 00000000"):
        weights.locate("toy")


def test_unknown_checksum_still_refuses_an_error_page(
    places: Places,
    server: Server,
    toy: registry.WeightFile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy = change(monkeypatch, toy, sha256=None)
    server.serve("/toy.pth", b"<html>quota exceeded</html>")
    with pytest.raises(InputError, match=r"it has 27\.0B instead of about 10\.2kB"):
        weights.locate("toy")
    assert places.files() == []
    server.serve("/toy.pth", CONTENT)
    assert weights.status(toy) == ("missing", toy.url)
    path = weights.locate("toy")
    assert weights.status(toy) == ("unverified", str(path))
    assert run_main(monkeypatch) == 0
    assert "unverified: there, but" in capsys.readouterr().out


def test_folder_of_files(
    places: Places, server: Server, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for member, content in MEMBERS.items():
        url = server.serve(f"/group/{member}", content)
    group = change(
        monkeypatch,
        toy,
        path="group",
        url=url.removesuffix("/b/1.jpg"),
        sha256=None,
        members={member: hashlib.sha256(content).hexdigest() for member, content in MEMBERS.items()},
    )
    folder = weights.locate("toy")
    assert folder == places.cache / "group"
    assert {member: (folder / member).read_bytes() for member in MEMBERS} == MEMBERS

    (folder / "a/0.jpg").write_bytes(b"spoilt")
    assert weights.status(group)[0] == "corrupt"
    server.asked.clear()
    weights.locate("toy")
    assert server.asked == ["/group/a/0.jpg"], "only the spoilt member is fetched again"

    places.put(places.data, "group/a/0.jpg", MEMBERS["a/0.jpg"])
    assert weights.locate("toy") == folder, "an incomplete folder is passed over"
    own = places.put(places.data, "group/b/1.jpg", b"spoilt")
    with pytest.raises(InputError, match=rf"^{re.escape(str(own))} is corrupt"):
        weights.locate("toy")


def test_drive_downloads_go_through_gdown(
    places: Places,
    server: Server,
    toy: registry.WeightFile,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    local, gdown_download = toy.url, gdown.download
    toy = change(monkeypatch, toy, url="https://drive.google.com/uc?id=abc")

    def redirect(url: str, **options: object) -> None:
        assert url == toy.url
        gdown_download(url=local, **options)

    def refuse(**_: object) -> None:
        raise DownloadError("a long\n\nstory")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(InputError, match=r"\(drive\.google\.com refused the download\)"):
        weights.locate("toy")
    monkeypatch.setattr(gdown, "download", redirect)
    server.serve("/toy.pth", CONTENT[:5000], length=len(CONTENT))
    with pytest.raises(InputError, match="could not be downloaded"):
        weights.locate("toy")
    assert places.files() == []
    server.serve("/toy.pth", CONTENT)
    assert weights.locate("toy").read_bytes() == CONTENT
    assert places.files() == [places.cache / toy.path]
    assert capfd.readouterr() == ("", "")


def test_interrupted_download_leaves_nothing(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(url: str, output: str, *_: object, **__: object) -> None:
        Path(output).write_bytes(CONTENT[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_fetch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights.locate("toy")
    assert places.files() == []


def test_cache_that_cannot_be_written(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(places.put(tmp_path, "plain_file", b"")))
    with pytest.raises(InputError, match=r"could not be downloaded \((Not a directory|File exists)"):
        weights.locate("toy")


def test_folders_and_unknown_names(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'resnet'.*cgn_imagenet"):
        weights.locate("resnet")
    assert weights.data_dir() == places.data
    assert weights.cache_dir() == places.cache
    monkeypatch.setenv("SKDCGN_DATA_DIR", str(places.data / "nowhere"))
    with pytest.raises(InputError, match=r"SKDCGN_DATA_DIR is .*nowhere"):
        weights.locate("vgg16", download=False)
    monkeypatch.setenv("SKDCGN_DATA_DIR", "")
    monkeypatch.delenv("SKDCGN_CACHE_DIR")
    assert weights.data_dir() is None
    assert weights.cache_dir().name == "skdcgn"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["skdcgn", "weights", *arguments])
    try:
        dispatcher.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_listing(
    places: Places,
    server: Server,
    toy: registry.WeightFile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch) == 0
    table, details = capsys.readouterr().out.split("\n\n", 1)
    header, row = table.splitlines()
    assert row.split() == ["toy", "missing", "10.2kB", toy.url]
    assert header.index("state") == row.index("missing")
    assert header.index("place") == row.index(toy.url)
    assert "toy: sub/toy.pth\n  Tests.\n  License: MIT." in details
    assert server.asked == [], "listing asks no network"

    assert run_main(monkeypatch, "--download", "toy") == 0
    assert capsys.readouterr().out == f"toy: {places.cache / toy.path}\n"
    assert run_main(monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"toy   present     10.2kB  {places.cache / toy.path}"]

    own = places.put(places.data, toy.path, b"junk")
    assert run_main(monkeypatch) == 1
    assert f"corrupt     10.2kB  {own} is corrupt: its SHA-256" in capsys.readouterr().out


def test_help_tells_how_to_get_the_imagenet_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for fact in ("cgn_imagenet", "already contains", "U2-Net", "is dead", "SKDCGN_DATA_DIR", "SKDCGN_OFFLINE"):
        assert fact in text


def test_registry_is_complete() -> None:
    assert {
        *("cgn_colored_mnist", "cgn_double_colored_mnist", "cgn_wildlife_mnist", "wildlife_textures"),
        *("cgn_imagenet", "biggan_deep_256", "biggan_deep_256_config", "u2net", "vgg16", "fid_inception"),
    } == set(registry.REGISTRY)
    for name, file in registry.REGISTRY.items():
        assert file.name == name
        assert file.address.startswith("https://")
        assert not Path(file.path).is_absolute()
        assert file.license
        assert file.purpose
        assert file.size > 0
        for checksum in filter(None, file.checksums().values()):
            assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", checksum)
    assert len({file.path for file in registry.REGISTRY.values()}) == len(registry.REGISTRY)
    assert len(registry.REGISTRY["wildlife_textures"].members) == 20


@pytest.mark.parametrize(
    ("module", "source", "names"),
    [
        ("pytorch_fid", "inception.py", ["fid_inception"]),
        ("pytorch_pretrained_biggan", "model.py", ["biggan_deep_256", "biggan_deep_256_config"]),
        ("torchvision", "models/vgg.py", ["vgg16"]),
    ],
)
def test_addresses_are_those_of_the_installed_libraries(module: str, source: str, names: list[str]) -> None:
    # Their source is read, not imported: importing all three takes many seconds.
    text = (Path(importlib.util.find_spec(module).origin).parent / source).read_text()
    for name in names:
        assert registry.REGISTRY[name].url in text


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["cgn_colored_mnist", "cgn_double_colored_mnist", "cgn_wildlife_mnist", "wildlife_textures"]
)
def test_real_files_verify(name: str, data_dir: Path) -> None:
    file = registry.REGISTRY[name]
    path = weights.locate(name, download=False)
    assert path == data_dir / file.path
    assert weights.status(file) == ("present", str(path))
    assert file.size == sum((path / member).stat().st_size for member in file.checksums())


@pytest.mark.data
def test_real_teacher_loads_on_the_cpu(data_dir: Path) -> None:
    state = weights.load_state_dict(data_dir / "cgn/cgn_double_colored_mnist.pth")
    assert len(state) == 57
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}


STATE = {"a.weight": torch.arange(12.0).view(3, 4), "a.steps": torch.tensor(7)}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_state_dict_formats_and_truncation(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    state = weights.load_state_dict(path)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)

    content = path.read_bytes()
    for length in (0, 1, 10, len(content) // 2, len(content) - 8):
        broken = tmp_path / f"broken{path.suffix}"
        broken.write_bytes(content[:length])
        with pytest.raises(InputError, match="cannot be read as weights") as caught:
            weights.load_state_dict(broken)
        assert str(broken) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_state_dict_changes_do_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path)
    checksum = project_files.sha256(path)
    weights.load_state_dict(path)["a.weight"].zero_()
    assert project_files.sha256(path) == checksum == hashlib.sha256(path.read_bytes()).hexdigest()


class _Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_state_dict_runs_no_code_and_takes_nothing_but_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps({"a": _Payload()}, protocol=2))
    torch.save({"a": _Payload()}, "evil_zip.pth")
    for name in ("evil.pth", "evil_zip.pth"):
        with pytest.raises(InputError, match="cannot be read as weights"):
            weights.load_state_dict(Path(name))
    assert not Path("executed").exists()
    for content in ([torch.ones(1)], {"model": STATE, "step": 3}):
        torch.save(content, "other.pth")
        with pytest.raises(InputError, match="something else than a dictionary of tensors"):
            weights.load_state_dict(Path("other.pth"))
    with pytest.raises(InputError, match="no weight file"):
        weights.load_state_dict(Path("nowhere.pth"))


@pytest.mark.parametrize("key", [3, ("a", "b")])
def test_names_of_tensors_are_text(tmp_path: Path, key: object) -> None:
    torch.save({key: torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="something else than a dictionary of tensors"):
        weights.load_state_dict(tmp_path / "other.pth")


# --- what the user put there and is not the file that it should be


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(CONTENT[:5000]), "is corrupt: its SHA-256 starts with"),
    "empty": (lambda path: path.write_bytes(b""), "is corrupt: its SHA-256 starts with"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": _Payload()})), "is corrupt: its SHA-256 starts with"),
    "folder": (folder, "is a folder"),
    "link": (dangling, "is a link to a file that does not exist"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_of_the_user_is_an_error_whatever_is_in_the_cache(
    places: Places, server: Server, toy: registry.WeightFile, kind: str
) -> None:
    damage, words = DAMAGE[kind]
    places.put(places.cache, toy.path, CONTENT)
    own = places.put(places.data, toy.path, CONTENT)
    damage(own)
    with pytest.raises(InputError, match=rf"^{re.escape(str(own))} {words}.*; delete it, or replace it with") as told:
        weights.locate("toy")
    assert not isinstance(told.value, Unavailable)
    assert weights.status(toy)[0] == "corrupt"
    assert server.asked == []


def test_a_file_that_may_not_be_read_is_an_error(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = places.put(places.data, toy.path, CONTENT)

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(weights, "sha256", refuse)
    with pytest.raises(InputError, match=rf"^{own} cannot be read \(Permission denied\); delete it, or replace it"):
        weights.locate("toy")


def test_only_an_absent_file_is_unavailable(places: Places, server: Server, toy: registry.WeightFile) -> None:
    server.answers.clear()
    with pytest.raises(Unavailable):
        weights.locate("toy")
    places.put(places.cache, toy.path, b"junk")
    with pytest.raises(InputError, match="delete it") as told:
        weights.locate("toy", download=False)  # the cache is mended by downloads alone
    assert not isinstance(told.value, Unavailable)


def test_a_damaged_part_of_a_folder_is_an_error_even_where_others_are_missing(
    places: Places, toy: registry.WeightFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {member: hashlib.sha256(content).hexdigest() for member, content in MEMBERS.items()}
    change(monkeypatch, toy, path="group", sha256=None, members=members)
    own = places.put(places.data, "group/b/1.jpg", b"spoilt")
    with pytest.raises(InputError, match=rf"^{re.escape(str(own))} is corrupt"):
        weights.locate("toy", download=False)
