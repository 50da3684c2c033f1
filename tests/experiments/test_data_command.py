"""`beyondpixel data` as it is typed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    assert "mean RGB 90.0 90.0 90.0, standard deviation 0.0 0.0 0.0" in said
    (row,) = (line for line in said[: said.index("Folder val:")].splitlines() if "leaf" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["leaf", "12", "25.00 %", "2"]
    assert said.endswith("Folder: no fault found\n")
    with Image.open(tmp_path / "grid.png") as grid:
        assert min(grid.size) > 300


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "camvid"], "data check camvid needs --root DIR, the folder of the data set"),
        (["check", "folder", "--root", "nowhere"], "nowhere"),
        (["get", "sbd", "--root", "nowhere"], "sbd adds to voc, which is not, or not completely, in .*nowhere"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["data", *words])
    assert not list(tmp_path.iterdir())
