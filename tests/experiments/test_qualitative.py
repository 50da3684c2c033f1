"""Which test images a comparison shows, and that it shows them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.experiments.compare import qualitative
from beyondpixel.experiments.compare.qualitative import both_ends, by_boundaries, draw, mean_ratio
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run_folder import RunFolder


def areas(folder: Path, ids: list[str], intersection: list[list[int]], union: list[list[int]]) -> RunFolder:
    folder.mkdir()
    arrays = {"id": np.array(ids), "boundary_intersection": np.array(intersection), "boundary_union": np.array(union)}
    np.savez(folder / "test_images.npz", **arrays)
    return RunFolder(folder)


def test_gains_in_boundary_iou_by_hand(tmp_path: Path) -> None:
    first = areas(tmp_path / "a", ["x", "y", "z"], [[5, 0], [2, 2], [0, 0]], [[10, 0], [4, 8], [0, 0]])
    # the other run saw the images in another order
    second = areas(tmp_path / "b", ["y", "x", "z"], [[1, 2], [9, 0], [0, 0]], [[4, 8], [10, 1], [0, 0]])
    choice = by_boundaries(first, second)
    assert choice is not None
    # x: (0.9 + 0) / 2 - 0.5; y: (0.25 + 0.25) / 2 - (0.5 + 0.25) / 2; z has no boundary at all
    assert choice.gains == pytest.approx({"x": -0.05, "y": -0.125})
    assert list(choice.gains) == ["x", "y"]
    assert choice.rule == "boundary IoU of the image"


def test_runs_without_areas_and_of_other_images(tmp_path: Path) -> None:
    first = areas(tmp_path / "a", ["x"], [[1]], [[2]])
    assert by_boundaries(first, RunFolder(tmp_path / "nothing")) is None
    (tmp_path / "old").mkdir()
    np.savez(tmp_path / "old" / "test_images.npz", id=np.array(["x"]), intersection=np.array([[1]]))
    assert by_boundaries(RunFolder(tmp_path / "old"), first) is None
    with pytest.raises(UserError, match="were tested on different images"):
        by_boundaries(first, areas(tmp_path / "b", ["y"], [[1]], [[2]]))


def test_both_ends_and_no_image_twice() -> None:
    gains = {str(index): -float(index) for index in range(9)}
    assert list(both_ends(gains)) == ["0", "1", "7", "8"]
    for number in range(5):
        few = dict(list(gains.items())[:number])
        assert both_ends(few) == few


def test_a_class_in_neither_is_left_out_of_the_mean() -> None:
    ratios = mean_ratio(np.array([[1, 0, 0], [0, 0, 0]]), np.array([[4, 0, 2], [0, 0, 0]]))
    assert ratios[0] == pytest.approx(0.125)
    assert np.isnan(ratios[1])
