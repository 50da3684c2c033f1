"""Pixel counts of images on disk: what is written comes back, and a damaged file is named with its remedy."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import ImageCounts

NAMES = ("id", "intersection", "predicted", "target", "boundary_intersection", "boundary_union")
REMEDY = "; remove it, or test the run again to renew it"


def arrays() -> dict[str, np.ndarray]:
    counts = np.arange(6, dtype=np.int64).reshape(2, 3)
    return {"id": np.array(["a", "b"]), "intersection": counts, "predicted": counts + 1, "target": counts + 2}


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    counts = ImageCounts(**arrays())
    with_boundaries = ImageCounts(**arrays(), boundary_intersection=counts.target, boundary_union=counts.union)
    for written in (counts, with_boundaries):
        written.save(tmp_path / "run" / "test_images.npz")
        read = ImageCounts.load(tmp_path / "run" / "test_images.npz")
        for name in NAMES:
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["test_images.npz"]


def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(file: Any, **arrays: Any) -> None:
        with file if hasattr(file, "write") else Path(file).open("wb") as open_file:
            open_file.write(b"half")
        raise RuntimeError("stopped")

    counts = ImageCounts(**arrays())
    counts.save(tmp_path / "test_images.npz")
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", half)
        with pytest.raises(RuntimeError, match="stopped"):
            counts.save(tmp_path / "test_images.npz")
    assert len(ImageCounts.load(tmp_path / "test_images.npz")) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["test_images.npz"]


def test_narrow_integers_are_read_as_int64(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: a if name == "id" else a.astype(np.uint8) for name, a in arrays().items()})
    counts = ImageCounts.load(tmp_path / "a.npz")
    assert counts.intersection.dtype == counts.union.dtype == np.int64


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_images.npz is missing: .* test the run again"):
        ImageCounts.load(tmp_path / "test_images.npz")


@pytest.mark.parametrize("length", [0, 3, 100, -30, -1])
def test_a_file_cut_short(tmp_path: Path, length: int) -> None:
    file = tmp_path / "test_images.npz"
    ImageCounts(**arrays()).save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=rf"test_images.npz cannot be read \(.+\){REMEDY}"):
        ImageCounts.load(file)


def test_changed_data(tmp_path: Path) -> None:
    file = tmp_path / "test_images.npz"
    ImageCounts(**arrays()).save(file)
    content = file.read_bytes()
    start = content.index(b"target.npy") + len("target.npy") + 30  # within the compressed array
    file.write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
    with pytest.raises(UserError, match=rf"cannot be read .*{REMEDY}"):
        ImageCounts.load(file)


def test_one_array_alone(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.ones(3))
    (tmp_path / "test_images.npz").write_bytes(content.getvalue())
    with pytest.raises(UserError, match=f"cannot be read .*{REMEDY}"):
        ImageCounts.load(tmp_path / "test_images.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"intersection": None, "predicted": None},
            "lacks intersection, predicted: expected id, intersection, predicted, target",
        ),
        ({"id": None}, "lacks id: expected id"),
        (
            {"intersection": np.ones((2, 2), dtype=int)},
            "intersection must have the shape (images, classes) = (2, 3), got (2, 2)",
        ),
        (
            {"target": np.ones((2, 2), dtype=int)},
            "intersection must have the shape (images, classes) = (2, 2), got (2, 3)",
        ),
        ({"target": np.array(3)}, "intersection must have the shape (images, classes) = (2, 0), got (2, 3)"),
        ({"boundary_union": np.ones((1, 3), dtype=int)}, "boundary_union must have the shape"),
        ({"id": np.array(["a", "a"])}, "id must be one-dimensional with distinct entries, got 1 distinct of 2"),
        ({"id": np.array(["a", "b", "c"])}, "intersection must have the shape (images, classes) = (3, 3), got (2, 3)"),
        (
            {"id": np.array("a")},
            "id must be one-dimensional with distinct entries, got 1 distinct of 1 in the shape ()",
        ),
        ({"id": np.array(["a", None])}, "cannot be read (Object arrays cannot be loaded"),
        ({"target": np.full((2, 3), 0.5)}, "Cannot cast array data from dtype('float64')"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, changed: dict[str, np.ndarray | None], message: str) -> None:
    file = tmp_path / "test_images.npz"
    np.savez(file, **{name: array for name, array in {**arrays(), **changed}.items() if array is not None})
    with pytest.raises(UserError, match=rf"test_images.npz:? {re.escape(message)}.*{REMEDY}"):
        ImageCounts.load(file)


def test_shapes_and_ids_must_fit() -> None:
    counts = np.ones((2, 3), dtype=np.int64)
    with pytest.raises(ValueError, match=r"predicted must have the shape \(images, classes\) = \(2, 3\), got \(2, 2\)"):
        ImageCounts(np.array(["a", "b"]), counts, counts[:, :2], counts)
    with pytest.raises(ValueError, match="id must be one-dimensional with distinct entries"):
        ImageCounts(np.array(["a", "a"]), counts, counts, counts)
