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
from beyondpixel.lightning_modules.callbacks.sample_files import save_sample
from beyondpixel.lightning_modules.visualization import denormalize, prediction_grid

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


def test_drawn_every_n_epochs_and_at_the_end(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    run = trainer(max_epochs=5, callbacks=[PredictionImages(num_images=2, every_n_epochs=2)])
    run.fit(tiny_module(), data)
    assert _files(tmp_path) == ["val_epoch2.png", "val_epoch4.png", "val_epoch5.png"]
    run.test(run.lightning_module, data, verbose=False)
    assert _files(tmp_path)[0] == "test_epoch5.png"


def test_the_end_is_not_drawn_twice(data: Any, tiny_module: Make, trainer: Make) -> None:
    logger = ImageLogger()
    run = trainer(max_epochs=2, logger=logger, callbacks=[PredictionImages(every_n_epochs=1)])
    run.fit(tiny_module(), data)
    assert [call["step"] for call in logger.images] == [2, 4]


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
        heading="val, epoch 0, step 0",
    )
    expected.savefig(tmp_path / "expected.png")
    drawn = Image.open(tmp_path / "images" / "val_epoch0.png")
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(Image.open(tmp_path / "expected.png")))


def test_loggers_get_images_with_masks_and_labels(data: Any, tiny_module: Make, trainer: Make) -> None:
    logger = ImageLogger()
    module = tiny_module()
    trainer(logger=logger, callbacks=[PredictionImages(num_images=1)]).fit(module, data)
    (call,) = logger.images
    assert (call["key"], len(call["images"]), call["step"]) == ("val/predictions", 1, 2)
    (masks,) = call["masks"]
    np.testing.assert_array_equal(masks["target"]["mask_data"], data.samples("val")[0]["mask"])
    assert masks["prediction"]["mask_data"].shape == (33, 47)
    assert masks["prediction"]["class_labels"] == {0: "red", 1: "green", 2: "blue", 255: "not labeled"}


def test_training_is_not_disturbed(data: Any, tiny_module: Make, trainer: Make) -> None:
    """BatchNorm's statistics and the weights end as they would without images, within and after the epochs."""
    states = []
    for callbacks in ([], [PredictionImages(every_n_epochs=2)]):
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
    assert _files(tmp_path) == ["val_epoch0.png"]


def test_wandb_takes_them(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real logger, offline: a fixed few files."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    # an argument and not WANDB_MODE, which W&B reads once in a process
    logger = WandbLogger(project="test", save_dir=tmp_path, mode="offline")
    run = trainer(logger=logger, callbacks=[PredictionImages(num_images=2)])
    run.fit(tiny_module(), data)
    logger.experiment.finish()
    media = [path for path in tmp_path.rglob("media/images/**/*.png") if path.is_file()]
    assert len(media) == 2 * 3  # image, target and prediction of each


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"every_n_epochs": 0}])
def test_numbers_must_be_positive(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_images and every_n_epochs must be at least 1"):
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
    folder = tmp_path / "images" / "test"
    kinds = ("image.jpg", "prediction.png", "target.png")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}.{kind}" for name in chosen for kind in kinds
    )
    for name in chosen:
        with torch.no_grad():
            preds = module.eval()(samples[name]["image"][None]).argmax(1)[0].numpy()
        picture = Image.open(folder / f"{name}.prediction.png")
        np.testing.assert_array_equal(np.asarray(picture), preds)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(data.palette)[preds])
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}.target.png")), samples[name]["mask"])


def test_no_files_if_none_are_asked_for(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    trainer(callbacks=[PredictionImages(num_test_files=0)]).test(tiny_module(), data, verbose=False)
    assert not (tmp_path / "images" / "test").exists()


def test_an_id_with_slashes_stays_one_file_in_the_folder(tmp_path: Path) -> None:
    mask = np.array([[0, 9]])
    save_sample(
        tmp_path,
        "../a b/1",
        np.zeros((1, 2, 3), np.uint8),
        mask,
        mask % 2,
        palette=[(0, 0, 0), (9, 9, 9)],
        ignore_index=9,
    )
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "..%2Fa%20b%2F1.image.jpg"
    assert np.asarray(Image.open(tmp_path / "..%2Fa%20b%2F1.target.png")).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match="room for 255 classes and void, got 256"):
        save_sample(tmp_path, "x", np.zeros((1, 2, 3), np.uint8), mask, mask, palette=[(0, 0, 0)] * 256)
