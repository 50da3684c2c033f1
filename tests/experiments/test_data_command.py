"""`beyondpixel data` as it is typed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from beyondpixel.datamodules import FolderDataModule, download
from beyondpixel.experiments.cli import main

CLASSES = "masks: index\nclasses:\n  - {name: ground, color: [0, 0, 0]}\n  - {name: leaf, color: [0, 160, 0]}\n"


@pytest.fixture
def leaves(tmp_path: Path) -> Path:
    """Two training images of 6 × 4 pixels, a quarter of them leaf, and one image in each other split."""
    root = tmp_path / "leaves"
    root.mkdir()
    (root / "classes.yaml").write_text(CLASSES)
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((4, 6), dtype=np.uint8)
            mask[:2, :3] = 1
            Image.fromarray(np.full((4, 6, 3), 90, dtype=np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    return root


def test_check_counts_and_draws(leaves: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["data", "check", "folder", "--root", str(leaves), "--grid", str(tmp_path / "grid.png"), "--samples", "1"])
    said = capsys.readouterr().out
    assert "Folder train: 2 images, 6x4 (2)" in said
    (row,) = (line for line in said[: said.index("Folder val:")].splitlines() if "leaf" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["leaf", "12", "25.00 %", "2"]
    assert said.endswith("Folder: no fault found\n")
    with Image.open(tmp_path / "grid.png") as grid:
        assert min(grid.size) > 300


def test_the_grids_heading_counts_what_is_drawn(
    leaves: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headings = []
    saved = Figure.savefig

    def savefig(figure: Figure, file: Path) -> None:
        headings.append(figure.texts[0].get_text())
        saved(figure, file)

    monkeypatch.setattr(Figure, "savefig", savefig)
    main(["data", "check", "folder", "--root", str(leaves), "--grid", str(leaves / "grid.png"), "--samples", "2"])
    assert headings == ["Folder: samples of train (2), val (1), test (1)"]


def test_check_lists_all_faults_and_fails(leaves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((4, 6), 7, dtype=np.uint8)).save(leaves / "masks" / "train" / "0.png")
    Image.fromarray(np.zeros((5, 6), dtype=np.uint8)).save(leaves / "masks" / "val" / "0.png")
    grid = leaves.parent / "grid.png"
    with pytest.raises(SystemExit, match="Folder cannot be used as it is: see train, val above"):
        main(["data", "check", "folder", "--root", str(leaves), "--grid", str(grid)])
    # the others are drawn: one of train, one of test
    with Image.open(grid) as image:
        assert min(image.size) > 300
    said = " ".join(capsys.readouterr().out.split())
    assert "holds label 7 (24 pixels); allowed are labels 0-1, 255" in said
    assert "is 6x5, but its image 0.png is 6x4 (width x height)" in said


def test_a_bad_class_file_is_named_with_an_example(leaves: Path) -> None:
    """Its error is raised from another one, and the parser wraps it in a third."""
    (leaves / "classes.yaml").write_text("masks: index\nclasses: []\n")
    message = (
        r"The class file \S*leaves/classes.yaml cannot be used:\s+has no list of classes\s+.*for example:\s+masks:"
    )
    with pytest.raises(SystemExit, match=message):
        main(["data", "check", "folder", "--root", str(leaves)])


def test_mean_and_std_go_into_the_class_file_as_they_are_printed(
    leaves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(leaves / "images" / "train" / f"{index}.png")
    main(["data", "check", "folder", "--root", str(leaves)])
    said = capsys.readouterr().out
    lines = [line for line in said[: said.index("Folder val:")].splitlines() if line.startswith(("mean: ", "std: "))]
    (leaves / "classes.yaml").write_text(CLASSES + "\n".join(lines))
    data = FolderDataModule(str(leaves))
    np.testing.assert_allclose(data.mean, (pixels / 255).mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(data.std, (pixels / 255).std((0, 1, 2)), atol=5e-5)


def test_check_takes_the_options_of_the_data_module(leaves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mask in leaves.glob("masks/*/*.png"):
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    words = ["data", "check", "folder", "--root", str(leaves), "--data.mask_suffix", "_mask"]
    main(words)
    assert capsys.readouterr().out.endswith("Folder: no fault found\n")
    Image.fromarray(np.full((4, 6), 90, dtype=np.uint8)).save(leaves / "images" / "val" / "0.png")
    with pytest.raises(SystemExit, match="cannot be used as it is: see val above"):
        main(words)
    main([*words, "--data.convert_images", "true"])
    assert capsys.readouterr().out.endswith("Folder: no fault found\n")
    main([*words, "--data.val_split=null"])
    assert "Folder val:" not in capsys.readouterr().out


def test_check_accepts_what_training_skips(leaves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (leaves / "masks" / "train" / "0.png").write_text("no image")
    words = ["data", "check", "folder", "--root", str(leaves), "--data.on_error", "skip"]
    main(words)
    said = capsys.readouterr().out
    assert "0.png: is not an image" in said
    assert said.endswith("Folder: no fault found, except 1 training samples that on_error skip leaves out\n")
    (leaves / "masks" / "val" / "0.png").write_text("no image")
    with pytest.raises(SystemExit, match="cannot be used as it is: see val above"):
        main(words)


@pytest.mark.parametrize("name", ["voc", "sbd"])
def test_get_names_the_command_that_comes_next(
    name: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of VOC reads trainaug, which is there after both downloads alone."""
    monkeypatch.setattr(download, "get", lambda *args, **kwargs: True)
    main(["data", "get", name, "--root", "VOC"])
    following = {"voc": "data get sbd --root VOC", "sbd": "data check voc --root VOC --grid voc.png"}
    assert capsys.readouterr().out.endswith(f": beyondpixel {following[name]}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "shapes", "--data.nun_train", "3"], "--data.nun_train: unknown key; did you mean num_train"),
        (["check", "shapes", "--data.x", "3"], "--data.x: unknown key; expected one of num_train, num_val, "),
        (["check", "shapes", "--data.num_train", "few"], "--data.num_train: expected int, got 'few'"),
        (["check", "shapes", "--data.class_path", "VOCDataModule"], "--data.class_path: unknown key"),
        (["check", "shapes", "--model.lr", "1"], "--model.lr: unknown key; data check takes --data.KEY"),
        (["check", "camvid"], "data check camvid needs --root DIR, the folder of the data set"),
        (["check", "folder", "--root", "nowhere"], "nowhere"),
        (["get", "sbd", "--root", "nowhere"], "sbd extends voc, which is missing or incomplete in .*nowhere"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["data", *words])
    assert not list(tmp_path.iterdir())
