"""A user's own images, without target, for prediction."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.files import FileDataset, Pair
from beyondpixel.datamodules.datasets.labels import LabelTable


def image_dataset(path: Path) -> FileDataset:
    """Return a data set of the image at `path`, or of all in the folder `path` by name; any format that Pillow reads.

    Raises:
        DataError: There is no image.
    """
    files = images_among(path.iterdir()) if path.is_dir() else [path]
    if not files or not path.exists():
        raise data_error(
            f"predict_path {path} {'contains no images' if path.exists() else 'does not exist'}",
            expected="an image or a folder of images",
            remedy="give the path of one, such as --data.predict_path photos/",
        )
    pairs = [Pair(file.stem, file, None) for file in files]
    return FileDataset(
        pairs, LabelTable({}), name=f"predict_path {path}", remedy="remove or replace the file", convert_images=True
    )


def images_among(paths: Iterable[Path]) -> list[Path]:
    """Return the paths with an extension known to Pillow, sorted, without hidden files such as macOS's `._a.jpg`."""
    known = Image.registered_extensions()
    return sorted(path for path in paths if path.suffix.lower() in known and not path.name.startswith("."))
