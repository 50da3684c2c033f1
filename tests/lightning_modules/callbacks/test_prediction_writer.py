from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beyondpixel.lightning_modules.callbacks import PredictionWriter

Make = Callable[..., Any]


def test_classes_and_palette_are_in_the_files(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    module = tiny_module()
    run = trainer(callbacks=[PredictionWriter(tmp_path / "out")])
    run.predict(module, data, return_predictions=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test0.png", "test1.png", "test2.png"]
    for sample in data.samples("test"):
        with Image.open(tmp_path / "out" / f"{sample['id']}.png") as picture:
            classes = np.asarray(picture)
            colors = np.asarray(picture.convert("RGB"))
        with torch.no_grad():
            expected = module.eval()(sample["image"][None]).argmax(1)[0].numpy()
        np.testing.assert_array_equal(classes, expected)
        np.testing.assert_array_equal(colors, np.asarray(data.palette)[expected])


def _write(writer: PredictionWriter, run: Any, module: Any, prediction: dict[str, Any]) -> None:
    run.strategy.connect(module)
    writer.write_on_batch_end(run, module, prediction, None, {}, 0, 0)


def test_default_folder_and_ids_with_folders(tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    preds = torch.tensor([[[0, 1], [2, 0]]], dtype=torch.uint8)
    _write(PredictionWriter(), trainer(), tiny_module(), {"id": ["city/a.1"], "preds": preds})
    written = np.asarray(Image.open(tmp_path / "predictions" / "city" / "a.1.png"))
    np.testing.assert_array_equal(written, preds[0].numpy())


def test_more_classes_than_a_palette_holds(tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    preds = torch.tensor([[[0, 299]]])
    _write(PredictionWriter(tmp_path), trainer(), tiny_module(300), {"id": ["a"], "preds": preds})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), preds[0].numpy())


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["../outside"], "leads out of the folder of predictions"), (None, "named by the batch's 'id'")],
)
def test_bad_ids(tiny_module: Make, trainer: Make, tmp_path: Path, ids: Any, message: str) -> None:
    preds = torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        _write(PredictionWriter(tmp_path / "out"), trainer(), tiny_module(), {"id": ids, "preds": preds})
