"""Which test images a comparison shows, and that it shows them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beyondpixel.experiments.compare import qualitative
from beyondpixel.experiments.compare.qualitative import both_ends, by_boundaries, draw, mean_ratio
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.rebuilding import build_data, load_model
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules.pictures import comparison_sheet


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


@pytest.mark.parametrize("recorded", [True, False])
def test_the_sheet_shows_these_images_and_says_by_which_rule(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    shutil.copytree(run.path, tmp_path / "other")
    other = RunFolder(tmp_path / "other")
    content = torch.load(other.last_checkpoint, weights_only=True)
    content["state_dict"]["network.classifier.bias"][3] += 0.4  # another model, which sees more of a class
    torch.save(content, other.last_checkpoint)
    data = build_data(run.config)
    samples = {sample.id: sample for sample in data.dataset("test")}
    if recorded:
        union = np.full((5, 1), 10)
        for folder, intersections in ((run, [5, 5, 5, 5, 5]), (other, [6, 1, 5, 9, 4])):
            arrays = {"boundary_intersection": np.array(intersections)[:, None], "boundary_union": union}
            np.savez(folder.path / "test_images.npz", id=np.array(list(samples)), **arrays)
        names = [list(samples)[index] for index in (3, 0, 4, 1)]  # gains of 0.4, 0.1, ..., -0.1, -0.4
    shown: dict[str, Any] = {}

    def sheet(images: Any, targets: Any, first: Any, second: Any, **rest: Any) -> Image.Image:
        shown.update(images=images, targets=targets, first=first[1], second=second[1], **rest)
        return comparison_sheet(images, targets, first, second, **rest)

    monkeypatch.setattr(qualitative, "comparison_sheet", sheet)
    draw(run, other, tmp_path / "new" / "sheet.png", titles=("CE\n1 %", "RMI\n2 %"))
    assert Image.open(tmp_path / "new" / "sheet.png").mode == "RGB"
    if recorded:
        assert (
            "furthest behind, of 5, by boundary IoU of the image: +40.0, +10.0, -10.0, -40.0 points" in shown["heading"]
        )
    else:
        models = [load_model(folder) for folder in (run, other)]
        right = {}
        for name, sample in samples.items():
            assert sample.mask is not None
            image = data.normalize({"image": torch.from_numpy(sample.image).permute(2, 0, 1)[None]})["image"]
            with torch.no_grad():
                masks = [model(image).argmax(1)[0].numpy() for model in models]
            valid = sample.mask != 255
            right[name] = (masks[1] == sample.mask)[valid].mean() - (masks[0] == sample.mask)[valid].mean()
        ordered = sorted(right, key=lambda name: -right[name])
        names = [*ordered[:2], *ordered[-2:]]
        assert "share of pixels that are right (no boundary areas were recorded)" in shown["heading"]
    for index, name in enumerate(names):
        np.testing.assert_array_equal(shown["images"][index], samples[name].image)
        np.testing.assert_array_equal(shown["targets"][index], samples[name].mask)
    assert any((one != two).any() for one, two in zip(shown["first"], shown["second"], strict=True))
