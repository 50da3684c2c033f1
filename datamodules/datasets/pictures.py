"""A user's own pictures, without truth, for prediction."""

from pathlib import Path

from PIL import Image

from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.files import FileSamples, Pair
from beyondpixel.datamodules.datasets.labels import LabelTable


def picture_samples(path: Path) -> FileSamples:
    """The picture at `path`, or all pictures in the folder `path` by name; any kind that Pillow reads.

    Raises:
        DataError: There is no picture.
    """
    known = Image.registered_extensions()
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in known) if path.is_dir() else [path]
    if not files or not path.exists():
        raise data_error(
            f"predict_path {path} {'holds no pictures' if path.exists() else 'does not exist'}",
            [],
            expected="a picture or a folder of pictures",
            remedy="give the path of one, such as --data.predict_path photos/",
        )
    pairs = [Pair(file.stem, file, None) for file in files]
    return FileSamples(
        pairs, LabelTable({}), name=f"predict_path {path}", remedy="remove or replace the file", convert_images=True
    )
