"""Predictions as files: real images in, read back and compared with the network's own output."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.inference.crf import DenseCRF
from beyondpixel.experiments.inference.submission import VOC_COMPETITIONS
from beyondpixel.experiments.rebuilding import build_data, load_model
from beyondpixel.experiments.run_folder import RunFolder

SIZES = {"a": (37, 61), "b": (37, 61), "sub/c": (50, 33), "d": (64, 64)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photographs in three sizes, one in a folder below, beside a text file."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (height // 6, width // 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(file)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def any_size(run: RunFolder) -> RunFolder:
    """A run whose data set works at the images' own sizes: its class file stands in for a folder of images."""
    classes = [{"name": f"class{index}", "color": [20 * index, 255 - 20 * index, 7]} for index in range(11)]
    (run.path / "classes.yaml").write_text(repr({"masks": "index", "classes": classes, "void": [255]}))
    folder = {"class_path": "beyondpixel.datamodules.FolderDataModule", "init_args": {"root": str(run.path)}}
    run.config = {**run.config, "data": folder}
    return run


def predict(run: RunFolder, photos: Path, output: Path, *words: str) -> None:
    main(["predict", f"--ckpt_path={run.last_checkpoint}", "--images", str(photos), f"--output={output}", *words])


def expected_probs(run: RunFolder, file: Path, *, crf: DenseCRF | None = None) -> np.ndarray:
    module, data = load_model(run), build_data(run.config)
    picture = np.asarray(Image.open(file).convert("RGB"))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    image = (image - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    with torch.no_grad():
        probs: np.ndarray = module(image).softmax(1)[0].numpy()
    return probs if crf is None else crf(picture, probs)


def test_names_sizes_classes_and_palette(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    predict(any_size, photos, tmp_path / "out")
    palette = build_data(any_size.config).palette
    for name, size in SIZES.items():
        picture = Image.open(tmp_path / "out" / f"{name}.png")
        classes = np.asarray(picture)
        assert (picture.mode, classes.shape) == ("P", size)
        probs = expected_probs(any_size, photos / f"{name}.png")
        assert (classes == probs.argmax(0)).mean() > 0.999  # a tie may fall otherwise in another batch
        assert len(np.unique(classes)) > 1
        colors = np.asarray(picture.convert("RGB"))
        assert tuple(colors[0, 0]) == palette[classes[0, 0]]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "a.png", "b.png", "d.png", "predictions.json", "sub",
    ]  # fmt: skip


def test_overlays_probabilities_and_colours(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    words = ("--overlays", "--probabilities", "--colors", "rgb", "--batch_size", "2")
    predict(any_size, photos, tmp_path / "out", *words)
    palette = np.asarray(build_data(any_size.config).palette)
    for name, size in SIZES.items():
        probs = np.load(tmp_path / "out" / "probabilities" / f"{name}.npz")["probs"]
        assert (probs.dtype, probs.shape) == (np.float16, (11, *size))
        expected = expected_probs(any_size, photos / f"{name}.png")
        np.testing.assert_allclose(probs, expected, atol=1e-3)
        colors = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert (colors == palette[expected.argmax(0)]).all(-1).mean() > 0.999
        overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / f"{name}.png")).astype(float)
        photo = np.asarray(Image.open(photos / f"{name}.png")).astype(float)
        np.testing.assert_allclose(overlay, (0.4 * photo + 0.6 * colors).round(), atol=1)


def test_a_run_at_a_fixed_size_gives_predictions_of_the_images_size(
    run: RunFolder, photos: Path, tmp_path: Path
) -> None:
    predict(run, photos / "sub", tmp_path / "out", "--probabilities")
    module, data = load_model(run), build_data(run.config)
    picture = Image.open(photos / "sub" / "c.png").resize((56, 40), Image.Resampling.BICUBIC)
    image = data.normalize({"image": torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None]})["image"]
    with torch.no_grad():
        probs = F.interpolate(module(image).softmax(1), size=(50, 33), mode="bilinear")[0].numpy()
    written = np.load(tmp_path / "out" / "probabilities" / "c.npz")["probs"]
    assert written.shape == (11, 50, 33)
    np.testing.assert_allclose(written, probs, atol=0.05)  # another library's resizing


def test_crf_and_views(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    predict(any_size, photos, tmp_path / "out", "--postprocess", "crf:2", "--probabilities")
    for name in SIZES:
        probs = np.load(tmp_path / "out" / "probabilities" / f"{name}.npz")["probs"]
        expected = expected_probs(any_size, photos / f"{name}.png", crf=DenseCRF(steps=2))
        np.testing.assert_allclose(probs, expected, atol=2e-3)
    predict(any_size, photos, tmp_path / "views", "--tta", "scales=0.5,1 flip", "--window", "48")
    assert (tmp_path / "views" / "sub" / "c.png").exists()


def test_what_is_done_is_skipped_and_what_is_missing_is_done(
    any_size: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(any_size, photos, out)
    (out / "d.png").unlink()
    (out / "a.png").write_bytes(b"mine")  # would be replaced if it were predicted again
    predict(any_size, photos, out)
    assert "3 of 4 images are predicted already and kept" in capsys.readouterr().out
    assert (out / "d.png").exists()
    assert (out / "a.png").read_bytes() == b"mine"
    with pytest.raises(SystemExit, match=r"holds predictions made otherwise \(tta was None and is flip\)"):
        predict(any_size, photos, out, "--tta", "flip")
    predict(any_size, photos, out, "--tta", "flip", "--overwrite")
    assert Image.open(out / "a.png").size == (61, 37)


def test_unreadable_images_are_listed_and_the_rest_is_done(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(whole[: len(whole) // 2])
    (photos / "z.jpg").write_text("not an image")
    with pytest.raises(SystemExit) as stopped:
        predict(any_size, photos, tmp_path / "out")
    message = str(stopped.value.code)
    assert "2 of 5 images could not be read; the others are done:" in message
    assert "a.png: is damaged" in message
    assert "z.jpg: is not an image" in message
    assert sorted(file.stem for file in (tmp_path / "out").rglob("*.png")) == ["b", "c", "d"]


def test_kinds_of_images_and_a_list_of_names(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "b.png").convert("L").save(photos / "grey.png")
    Image.open(photos / "b.png").convert("RGBA").save(photos / "clear.webp", lossless=True)
    (tmp_path / "names.txt").write_text("grey\nclear.webp\nsub/c\n")
    predict(any_size, photos, tmp_path / "out", f"--names={tmp_path / 'names.txt'}")
    assert sorted(file.stem for file in (tmp_path / "out").rglob("*.png")) == ["c", "clear", "grey"]


def test_archive_for_vocs_server(
    any_size: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="VOC has 21 classes with background, but the model has 11"):
        predict(any_size, photos, tmp_path / "out", "--submission", "voc")
    monkeypatch.setattr("beyondpixel.experiments.inference.submission.VOC_CLASSES", 11)
    for name, competition in VOC_COMPETITIONS.items():
        predict(any_size, photos, tmp_path / "out", "--submission", name)
        with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
            files = {member.name for member in archive if member.isfile()}
            root = f"results/VOC2012/Segmentation/{competition}_test_cls"
            assert files == {f"{root}/{letter}.png" for letter in "abcd"}
            content = archive.extractfile(f"{root}/d.png")
            assert content is not None
            assert content.read() == (tmp_path / "out" / "d.png").read_bytes()
    assert list(VOC_COMPETITIONS.values()) == ["comp6", "comp5", "comp6"]
    with pytest.raises(SystemExit, match="the server reads class numbers: leave out --colors rgb"):
        predict(any_size, photos, tmp_path / "rgb", "--submission", "voc", "--colors", "rgb")


def test_no_archive_of_an_incomplete_set(
    any_size: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beyondpixel.experiments.inference.submission.VOC_CLASSES", 11)
    (photos / "a.png").write_text("broken")
    with pytest.raises(SystemExit, match="1 of 4 images could not be read"):
        predict(any_size, photos, tmp_path / "out", "--submission", "voc")
    assert not (tmp_path / "out" / "results.tgz").exists()


def test_a_folder_without_write_permission(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    privileged = os.geteuid() == 0  # root may write anywhere
    if privileged:
        for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        with pytest.raises(SystemExit, match=r"--output: .*locked/out cannot be written to \(Permission denied\)"):
            predict(any_size, photos, locked / "out")
    finally:
        if privileged:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "nowhere"], "--images: there is no file or folder nowhere"),
        (["--images", "empty"], "--images: the folder empty holds no images"),
        (
            ["--images", "twice"],
            "--images: predictions of twice/same.jpg and twice/same.png would overwrite each other",
        ),
        (["--images", "nowhere", "--ckpt_path", "lost.ckpt"], "there is no checkpoint lost.ckpt"),
        (["--images", "photos", "--names", "list.txt"], "list.txt names x, not found among --images"),
        (["--images", "photos", "--batch_size", "0"], "--batch_size must be 1 or more, got 0"),
        (["--images", "photos", "--ckpt_path", "lost.ckpt"], "there is no checkpoint lost.ckpt"),
    ],
)
def test_mistakes_are_one_message(
    any_size: RunFolder, photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    Path("twice").mkdir()
    for ending in ("png", "jpg"):
        Image.new("RGB", (8, 8)).save(f"twice/same.{ending}")
    Path("list.txt").write_text("a\nx\n")
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"--ckpt_path={any_size.last_checkpoint}", "--output=out", *words])
    assert message in str(stopped.value.code)
    assert not Path("out").exists()


def test_without_images_it_is_lightnings(run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    main(["predict", f"--ckpt_path={run.last_checkpoint}", "--tta", "flip"])
    written = sorted((run.path / "predictions").rglob("*.png"))
    assert len(written) == 5
    with torch.no_grad():
        batch = next(iter(build_data(run.config).test_dataloader()))
        module, images = load_model(run), batch["image"]
        probs = module(images).softmax(1) + module(images.flip(3)).softmax(1).flip(3)
    assert (np.asarray(Image.open(written[0])) == probs[0].argmax(0).numpy()).mean() > 0.999
