"""Which test images a comparison shows, and that it shows them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.experiments.compare import qualitative
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.qualitative import draw_rows, draw_runs, image_scores
from beyondpixel.experiments.compare.rows import compare_runs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules.visualization import busiest_crop, comparison_grid


def recorded(
    folder: Path, ids: list[str], intersection: list[list[int]], union: list[list[int]], *, boundary: bool = True
) -> RunFolder:
    hits, target = np.array(intersection), np.array(union)
    counts = (hits, hits, target) if not boundary else (0 * hits, 0 * hits, target, hits, target)
    ImageCounts(np.array(ids), *counts).save(folder / "test_images.npz")
    return RunFolder(folder)


@pytest.mark.parametrize("boundary", [True, False])
def test_gains_by_hand(tmp_path: Path, boundary: bool) -> None:
    ids, first = ["x", "y", "z"], [[5, 0], [2, 2], [0, 0]]
    one = recorded(tmp_path / "a", ids, first, [[10, 0], [4, 8], [0, 0]], boundary=boundary)
    # the other run saw the images in another order
    two = recorded(
        tmp_path / "b", ["y", "x", "z"], [[1, 2], [9, 0], [0, 0]], [[4, 8], [10, 1], [0, 0]], boundary=boundary
    )
    scores, rule = image_scores(one, two)
    # x: 0.5 and (0.9 + 0) / 2; y: (0.5 + 0.25) / 2 and (0.25 + 0.25) / 2; z has no pixel of any class
    assert scores.index.tolist() == ["x", "y"]
    np.testing.assert_allclose(scores, [[0.5, 0.45], [0.375, 0.25]])
    assert rule == ("boundary IoU" if boundary else "IoU")


def test_runs_without_counts_and_of_other_images(tmp_path: Path) -> None:
    first = recorded(tmp_path / "a", ["x"], [[1]], [[2]])
    with pytest.raises(UserError, match="test_images.npz is missing"):
        image_scores(first, RunFolder(tmp_path / "nothing"))
    with pytest.raises(UserError, match="were tested on different images"):
        image_scores(first, recorded(tmp_path / "b", ["y"], [[1]], [[2]]))


def test_rows_that_cannot_be_drawn(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "ce", 1, 0.5, evaluations={"crf:5": 0.6})
    with pytest.raises(UserError, match="--grid needs the baseline row and another row with a result"):
        draw_rows(compare_runs(read_runs([tmp_path]), "test/mIoU"), tmp_path / "x.png")
    make_run(tmp_path, "ce", 1, 0.5, table="u")
    with pytest.raises(UserError, match="--grid compares rows of one table, got t, u"):
        draw_rows(compare_runs(read_runs([tmp_path]), "test/mIoU"), tmp_path / "x.png")


def test_the_baseline_and_the_best_other_row_are_drawn(
    tmp_path: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, "ce", 1, 0.50, evaluations={"crf:5": 0.9})
    for row, scores in (("bce", (0.52, 0.40)), ("rmi", (0.51, 0.55))):
        for seed, score in enumerate(scores, start=1):
            make_run(tmp_path, row, seed, score)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(qualitative, "draw_runs", lambda *runs, titles: drawn.update(runs=runs, titles=titles))
    draw_rows(compare_runs(read_runs([tmp_path]), "test/mIoU"), tmp_path / "x.png")
    assert [run.path for run in drawn["runs"][:2]] == [tmp_path / "t" / row / "seed1" for row in ("ce", "rmi")]
    assert drawn["titles"] == ("ce\ntest/mIoU (%) 50.00", "rmi\ntest/mIoU (%) 51.00")


# gains are 0.1, -0.4, 0, 0.4, -0.1; of few images none is shown twice
@pytest.mark.parametrize("order", [[3, 0, 4, 1], [3, 0, 2, 1], [0, 2, 1], [0, 1], [0]])
def test_the_grid_shows_these_images_and_says_by_which_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    number = 5 if 4 in order else max(order) + 1
    settings = {"num_train": 1, "num_val": 1, "num_test": number, "image_size": (40, 56), "num_workers": 0}
    data = ShapesDataModule(normalization="imagenet", **settings)
    data.setup("test")
    samples = {sample.id: sample for sample in data.dataset("test")}
    ids, union, hits = list(samples), [[10]] * number, [6, 1, 5, 9, 4]
    first = recorded(tmp_path / "a", ids, [[5]] * number, union)
    second = recorded(tmp_path / "b", ids, [[count] for count in hits[:number]], union)
    names = [ids[index] for index in order]
    for run in (first, second):
        run.config = {}

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    other_data = ShapesDataModule(normalization="inception", **settings)

    def constant(checkpoint: Path, config: dict[str, Any]) -> Any:
        """A model of class 1 for images as ImageNet normalizes them, one of class 2 for values of -1..1."""
        is_first = checkpoint == first.last_checkpoint

        def predict(image: torch.Tensor) -> torch.Tensor:
            pixels = image[0].movedim(0, -1)
            seen = 255 * (pixels * std + mean if is_first else (pixels + 1) / 2)
            known = any((seen - torch.from_numpy(sample.image)).abs().max() < 0.01 for sample in samples.values())
            favored = (1 if is_first else 2) if known else 0
            return torch.eye(11)[favored].reshape(1, 11, 1, 1).expand(1, 11, *image.shape[-2:])

        return predict, data if is_first else other_data

    shown: dict[str, Any] = {}

    def sheet(images: Any, targets: Any, first: Any, second: Any, **rest: Any) -> Figure:
        shown.update(images=images, targets=targets, first=first[1], second=second[1], **rest)
        return comparison_grid(images, targets, first, second, **rest)

    monkeypatch.setattr(qualitative, "load_trained", constant)
    monkeypatch.setattr(qualitative, "comparison_grid", sheet)
    draw_runs(first, second, tmp_path / "new" / "sheet.png", titles=("CE\n1 %", "RMI\n2 %"))
    assert (tmp_path / "new" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert shown["captions"][1] == [f"boundary IoU {10 * hits[index]}.0" for index in order]
    points = ", ".join(f"{10 * (hits[index] - 5):+}.0" for index in order)
    assert f"furthest behind, of {number}, by boundary IoU of the image: {points} points" in shown["heading"]
    # the first is right about class 1 alone and the second about class 2
    differing = [np.isin(samples[name].mask, (1, 2)) for name in names]
    assert shown["crops"] == [busiest_crop(mask) for mask in differing]
    for index, name in enumerate(names):
        np.testing.assert_array_equal(shown["images"][index], samples[name].image)
        np.testing.assert_array_equal(shown["targets"][index], samples[name].mask)
        assert (shown["first"][index] == 1).all()
        assert (shown["second"][index] == 2).all()
