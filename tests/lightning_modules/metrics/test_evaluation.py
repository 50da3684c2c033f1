"""All scores together: one pass, one process or two, and image by image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from beyondpixel.lightning_modules.metrics import EvaluationScores

Make = Callable[..., Any]
NAMES = list("abcde")
README = Path(__file__).resolve().parents[3] / "lightning_modules" / "metrics" / "README.md"


def _scores(maps: list[Any], ids: list[str]) -> EvaluationScores:
    scores = EvaluationScores(5, class_names=NAMES, structure=True)
    for (preds, target), name in zip(maps, ids, strict=True):
        scores.update(torch.from_numpy(preds), torch.from_numpy(target), [name])
    return scores


def test_areas_of_each_image_add_up_to_the_scores(label_maps: Make) -> None:
    scores = EvaluationScores(5, class_names=NAMES, structure=True)
    for seed in range(3):
        preds, target = label_maps(seed, images=2)
        scores.update(torch.from_numpy(preds), torch.from_numpy(target), [f"{seed}a", f"{seed}b"])
        for image, name in enumerate(("a", "b")):
            counts = scores.per_image()
            assert counts is not None
            place = counts.id.index(f"{seed}{name}")
            valid = target[image] != 255
            for index in range(5):
                is_pred, is_true = (preds[image] == index) & valid, target[image] == index
                assert counts.intersection[place, index] == (is_pred & is_true).sum()
                assert counts.predicted[place, index] == is_pred.sum()
                assert counts.truth[place, index] == is_true.sum()
    assert counts.id == ["0a", "0b", "1a", "1b", "2a", "2b"]
    summary = scores.summary()
    union = (counts.predicted + counts.truth - counts.intersection).sum(axis=0)
    iou = counts.intersection.sum(axis=0) / np.where(union == 0, np.nan, union)
    assert summary["mIoU"].item() == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert counts.boundary_intersection is not None
    assert counts.boundary_union is not None
    strips = counts.boundary_union.sum(axis=0)
    boundary_iou = counts.boundary_intersection.sum(axis=0) / np.where(strips == 0, np.nan, strips)
    assert summary["boundary_IoU"].item() == pytest.approx(np.nanmean(boundary_iou), rel=1e-12)


def test_the_mean_without_unprinted_classes(label_maps: Make) -> None:
    scores = _scores([label_maps(0)], ["x"])
    summary = scores.summary(unprinted_classes=["b"])
    others = [summary[f"IoU/{name}"].item() for name in "acde"]
    assert summary["mIoU_4"].item() == pytest.approx(np.nanmean(others), rel=1e-12)
    assert summary["mIoU_4"] != summary["mIoU"]
    with pytest.raises(ValueError, match=r"unprinted_classes must be among \['a', .*, got \['sky'\]"):
        scores.summary(unprinted_classes=["sky"])


def test_reset_in_inference_mode_forgets_everything(label_maps: Make) -> None:
    scores = EvaluationScores(5, class_names=NAMES, structure=True)
    with torch.inference_mode():
        preds, target = label_maps(0)
        scores.update(torch.from_numpy(preds), torch.from_numpy(target), ["x", "y"])
        scores.reset()
    assert scores.per_image() is None
    again, fresh = label_maps(1, images=1), _scores([label_maps(1, images=1)], ["z"])
    scores.update(*map(torch.from_numpy, again), ["z"])
    for name, value in scores.summary().items():
        torch.testing.assert_close(value, fresh.summary()[name], rtol=0, atol=0, equal_nan=True)


def test_images_with_one_id_are_not_kept(label_maps: Make) -> None:
    with pytest.warns(UserWarning, match="two images of the set have the same id"):
        assert _scores([label_maps(0, images=1)] * 2, ["x", "x"]).per_image() is None


def test_without_structure_or_ids(label_maps: Make) -> None:
    scores = EvaluationScores(5)
    preds, target = map(torch.from_numpy, label_maps(0))
    scores.update(preds, target)
    assert scores.per_image() is None
    assert not [name for name in scores.summary() if "boundary" in name or "trimap" in name or "small" in name]
    scores.update(preds, target, ["x", "y"])
    counts = scores.per_image()
    assert counts is not None
    assert counts.boundary_union is None


def test_every_name_is_explained(label_maps: Make) -> None:
    explained = README.read_text()
    for name in _scores([label_maps(0)], ["x"]).summary(["e"]):
        stem = name.replace("mIoU_4", "mIoU_<k>")
        first, _, last = stem.partition("/")
        last = {"": "", **dict.fromkeys(NAMES, "/<class>")}.get(last, "/<width>")
        assert f"`{first}{last}`" in explained, name


def _score_in_process(rank: int, folder: str, shares: list[list[tuple[str, Any]]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    scores = EvaluationScores(5, class_names=NAMES, structure=True)
    for name, (preds, target) in shares[rank]:
        scores.update(torch.from_numpy(preds), torch.from_numpy(target), [name])
    torch.save({"summary": scores.summary(), "images": tuple(scores.per_image() or ())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("filler", [True, False])
def test_two_processes_equal_one(label_maps: Make, tmp_path: Path, filler: bool) -> None:
    """Five images in turn; the second process is short of one, and gets the first image again, void, where filled."""
    images = [(f"image{index}", label_maps(index, images=1, size=(20 + index, 31))) for index in range(5)]
    alone = _scores([maps for _, maps in images], [name for name, _ in images])
    expected = alone.per_image()
    assert expected is not None
    name, (preds, target) = images[0]
    shares = [images[0::2], images[1::2] + [(name, (preds, np.full_like(target, 255)))] * filler]
    # forked processes need not import everything again, which would take most of a minute
    mp.start_processes(_score_in_process, args=(str(tmp_path), shares), nprocs=2, start_method="fork")
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert saved["images"][0] == expected.id
        for ours, theirs in zip(saved["images"][1:], expected[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert list(saved["summary"]) == list(alone.summary())
        for score, value in alone.summary().items():
            torch.testing.assert_close(saved["summary"][score], value, rtol=1e-12, atol=0, equal_nan=True)
