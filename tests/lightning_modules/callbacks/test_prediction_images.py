import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger, WandbLogger

from beyondpixel.lightning_modules.callbacks import PredictionImages
from beyondpixel.lightning_modules.callbacks.prediction_images import _side_by_side
from beyondpixel.lightning_modules.visualization import denormalize, prediction_grid
from beyondpixel.lightning_modules.visualization.sample_archive import read_samples, write_samples

Make = Callable[..., Any]


class ImageLogger(Logger):
    """Takes images as W&B's logger does."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "images"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images.append({"key": key, "images": images, "step": step, **kwargs})


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images").glob("*.png"))


def test_drawn_so_many_times_in_training_and_at_the_end(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
) -> None:
    logger = ImageLogger()
    run = trainer(max_epochs=5, logger=logger, callbacks=[PredictionImages(num_images=2, times=2)])
    run.fit(tiny_module(), data)
    assert [call["step"] for call in logger.images] == [6, 10]  # the first validation after half of 10 steps, the last
    assert _files(tmp_path) == ["val.png"]
    run.test(run.lightning_module, data, verbose=False)
    assert _files(tmp_path) == ["test.png", "val.png"]


def test_more_times_than_validations(data: Any, tiny_module: Make, trainer: Make) -> None:
    logger = ImageLogger()
    run = trainer(max_epochs=2, logger=logger, callbacks=[PredictionImages(times=9)])
    run.fit(tiny_module(), data)
    assert [call["step"] for call in logger.images] == [2, 4]  # and the end once


def test_a_drawing_after_the_last_step_leaves_frozen_parts_frozen(data: Any, tiny_module: Make, trainer: Make) -> None:
    logger, module = ImageLogger(), tiny_module()
    module.network.encoder.eval()
    trainer(max_epochs=2, max_steps=3, logger=logger, callbacks=[PredictionImages(times=1)]).fit(module, data)
    assert [call["step"] for call in logger.images] == [3]  # in training mode; the only validation is at step 2
    assert module.network.training
    assert not any(part.training for part in module.network.encoder.modules())


def test_without_validation_test_is_drawn(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    run = trainer(callbacks=[PredictionImages()], limit_val_batches=0)
    run.fit(tiny_module(), data)
    assert not (tmp_path / "images").exists()
    run.test(run.lightning_module, data, verbose=False)
    assert len(_files(tmp_path)) == 1


def test_the_grid_shows_the_first_images_of_validation(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
) -> None:
    module = tiny_module()
    trainer(callbacks=[PredictionImages(num_images=2)]).validate(module, data, verbose=False)
    samples = data.samples("val")
    with torch.no_grad():
        preds = [module.eval()(sample["image"][None]).argmax(1)[0].numpy() for sample in samples]
    expected = prediction_grid(
        [denormalize(sample["image"].numpy(), data.mean, data.std) for sample in samples],
        [sample["mask"].numpy() for sample in samples],
        preds,
        palette=data.palette,
        class_names=data.class_names,
        heading="val, step 0",
    )
    expected.savefig(tmp_path / "expected.png")
    drawn = Image.open(tmp_path / "images" / "val.png")
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(Image.open(tmp_path / "expected.png")))


def test_loggers_get_images_with_masks_and_labels(data: Any, tiny_module: Make, trainer: Make) -> None:
    logger = ImageLogger()
    trainer(logger=logger, callbacks=[PredictionImages(num_images=2)]).test(tiny_module(), data, verbose=False)
    (call,) = logger.images
    first, second = data.samples("test")[:2]
    assert (call["key"], len(call["images"]), call["step"]) == ("test/predictions", 1, 0)
    (masks,) = call["masks"]
    height, width = (max(len(first["mask"]), len(second["mask"])), first["mask"].shape[1] + second["mask"].shape[1])
    target = np.full((height, width), 255)
    target[: len(first["mask"]), : first["mask"].shape[1]] = first["mask"]
    target[: len(second["mask"]), first["mask"].shape[1] :] = second["mask"]
    np.testing.assert_array_equal(masks["target"]["mask_data"], target)
    assert masks["prediction"]["mask_data"].shape == call["images"][0].shape[:2] == (height, width)
    assert masks["prediction"]["class_labels"] == {0: "red", 1: "green", 2: "blue", 255: "not labeled"}


def test_images_of_several_heights_stand_side_by_side() -> None:
    low, high = np.array([[1, 2]]), np.array([[3], [4]])
    assert _side_by_side([low, high], fill=9).tolist() == [[1, 2, 3], [9, 9, 4]]
    assert _side_by_side([np.ones((1, 2, 3)), np.ones((2, 1, 3))], fill=0)[1].tolist() == [[0] * 3, [0] * 3, [1] * 3]


def test_training_is_not_disturbed(data: Any, tiny_module: Make, trainer: Make) -> None:
    """BatchNorm's statistics and the weights end as they would without images, within and after the epochs."""
    states = []
    for callbacks in ([], [PredictionImages(times=2)]):
        torch.manual_seed(3)
        module = tiny_module()
        trainer(max_epochs=3, callbacks=callbacks).fit(module, data)
        assert module.training
        states.append(module.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=0)


def test_without_a_data_module_colors_are_made_up(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    run = trainer(callbacks=[PredictionImages()])
    run.validate(tiny_module(), data.val_dataloader(), verbose=False)
    assert _files(tmp_path) == ["val.png"]


def test_wandb_takes_them(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real logger, offline: a fixed few files."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    # an argument and not WANDB_MODE, which W&B reads once in a process
    logger = WandbLogger(project="test", save_dir=tmp_path, mode="offline")
    run = trainer(logger=logger, callbacks=[PredictionImages(num_images=2)])
    run.fit(tiny_module(), data)
    run.test(run.lightning_module, data, verbose=False)
    logger.experiment.finish()
    media = [path for path in tmp_path.rglob("media/images/**/*.png") if path.is_file()]
    assert len(media) == 1 + 3  # the grid of validation; images, targets and predictions of the test


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"times": 0}])
def test_numbers_must_be_positive(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_images and times must be at least 1"):
        PredictionImages(**arguments)
    with pytest.raises(ValueError, match="num_test_files must be 0 or more, got -1"):
        PredictionImages(num_test_files=-1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_test_saves_the_images_of_the_lowest_checksums_one_by_one(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path, batch_size: int
) -> None:
    module = tiny_module()
    data.batch_size = batch_size
    samples = {sample["id"]: sample for sample in data.samples("test")}
    chosen = sorted(samples, key=lambda name: zlib.crc32(name.encode()))[:2]
    trainer(callbacks=[PredictionImages(num_test_files=2)]).test(module, data, verbose=False)
    saved = read_samples(tmp_path / "images" / "test.zip")
    assert sorted(saved) == sorted(chosen)
    for name in chosen:
        images = {kind: Image.open(io.BytesIO(content)) for kind, content in saved[name].items()}
        assert set(images) == {"image.jpg", "prediction.png", "target.png"}
        with torch.no_grad():
            preds = module.eval()(samples[name]["image"][None]).argmax(1)[0].numpy()
        np.testing.assert_array_equal(np.asarray(images["prediction.png"]), preds)
        colors = np.asarray(images["prediction.png"].convert("RGB"))
        np.testing.assert_array_equal(colors, np.asarray(data.palette)[preds])
        np.testing.assert_array_equal(np.asarray(images["target.png"]), samples[name]["mask"])


def test_two_processes_and_any_precision_save_the_same_images(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
) -> None:
    data.sizes["test"] = 5
    saved = []
    for options in ({}, {"devices": 2, "strategy": "ddp_fork"}, {"precision": "bf16-true"}):
        folder = tmp_path / str(len(saved))
        callback = PredictionImages(num_test_files=3)
        trainer(callbacks=[callback], default_root_dir=folder, **options).test(tiny_module(), data, verbose=False)
        saved.append(sorted(read_samples(folder / "images" / "test.zip")))
    assert saved[0] == saved[1] == saved[2]
    assert len(saved[0]) == 3


def test_no_files_if_none_are_asked_for(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    trainer(callbacks=[PredictionImages(num_test_files=0)]).test(tiny_module(), data, verbose=False)
    assert not (tmp_path / "images" / "test.zip").exists()


def test_an_id_with_slashes_and_void_of_another_label(tmp_path: Path) -> None:
    mask, file = np.array([[0, 9]]), tmp_path / "test.zip"
    samples = {"../a b/1": (np.zeros((1, 2, 3), np.uint8), mask, mask % 2)}
    write_samples(file, samples, [(0, 0, 0), (9, 9, 9)], ignore_index=9)
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist())[0] == "..%2Fa%20b%2F1.image.jpg"
    target = read_samples(file)["../a b/1"]["target.png"]
    assert np.asarray(Image.open(io.BytesIO(target))).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match="room for 255 classes and void, got 256"):
        write_samples(file, samples, [(0, 0, 0)] * 256)
