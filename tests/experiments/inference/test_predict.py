"""Predictions as files: real images in, read back and compared with the network's own output."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.cli import main
from beyondpixel.experiments.inference.checkpoints import load_trained
from beyondpixel.experiments.inference.mean_field import mean_field
from beyondpixel.experiments.inference.outputs import VOC_COMPETITIONS
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule

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


def data_of(run: RunFolder) -> SegmentationDataModule:
    return load_trained(run.last_checkpoint)[1]


def expected_probs(run: RunFolder, file: Path, *, crf_steps: int = 0) -> np.ndarray:
    module, data = load_trained(run.last_checkpoint)
    picture = np.asarray(Image.open(file).convert("RGB"))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    image = (image - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    with torch.no_grad():
        probs: np.ndarray = module(image).softmax(1)[0].numpy()
    return mean_field(picture, probs, steps=crf_steps) if crf_steps else probs


def test_names_sizes_classes_and_palette(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    predict(any_size, photos, tmp_path / "out")
    palette = data_of(any_size).palette
    for name, size in SIZES.items():
        picture = Image.open(tmp_path / "out" / f"{name}.png")
        classes = np.asarray(picture)
        assert (picture.mode, classes.shape) == ("P", size)
        probs = expected_probs(any_size, photos / f"{name}.png")
        assert (classes == probs.argmax(0)).mean() > 0.999
        assert len(np.unique(classes)) > 1
        colors = np.asarray(picture.convert("RGB"))
        assert tuple(colors[0, 0]) == palette[classes[0, 0]]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "a.png", "b.png", "d.png", "predictions.json", "sub",
    ]  # fmt: skip


def test_overlays_probabilities_and_colors(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    words = ("--overlays", "--probabilities", "--colors", "rgb")
    predict(any_size, photos, tmp_path / "out", *words)
    palette = np.asarray(data_of(any_size).palette)
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
    module, data = load_trained(run.last_checkpoint)
    picture = Image.open(photos / "sub" / "c.png").resize((56, 40), Image.Resampling.BICUBIC)
    image = data.normalize({"image": torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None]})["image"]
    with torch.no_grad():
        probs = F.interpolate(module(image).softmax(1), size=(50, 33), mode="bilinear")[0].numpy()
    written = np.load(tmp_path / "out" / "probabilities" / "c.npz")["probs"]
    assert written.shape == (11, 50, 33)
    np.testing.assert_allclose(written, probs, atol=0.05)  # another library's resizing


def test_crf_and_passes(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    predict(any_size, photos, tmp_path / "out", "--inferer", "crf:2", "--probabilities")
    for name in SIZES:
        probs = np.load(tmp_path / "out" / "probabilities" / f"{name}.npz")["probs"]
        expected = expected_probs(any_size, photos / f"{name}.png", crf_steps=2)
        np.testing.assert_allclose(probs, expected, atol=2e-3)
    predict(any_size, photos, tmp_path / "passes", "--inferer", "tta:flip scales=0.5,1+window:48")
    assert (tmp_path / "passes" / "sub" / "c.png").exists()


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
    with pytest.raises(SystemExit, match=r"holds predictions with other settings \(tta was None and is flip\)"):
        predict(any_size, photos, out, "--inferer", "tta:flip")
    predict(any_size, photos, out, "--inferer", "tta:flip", "--overwrite")
    assert Image.open(out / "a.png").size == (61, 37)


def test_unreadable_images_are_listed_and_the_rest_is_done(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(whole[: len(whole) // 2])
    (photos / "z.jpg").write_text("not an image")
    with pytest.raises(SystemExit) as stopped:
        predict(any_size, photos, tmp_path / "out")
    message = str(stopped.value.code)
    assert "2 of 5 images could not be predicted; the others are done:" in message
    assert "a.png: is damaged" in message
    assert "z.jpg: is not an image" in message
    assert sorted(file.stem for file in (tmp_path / "out").rglob("*.png")) == ["b", "c", "d"]


def test_a_list_of_names(any_size: RunFolder, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("b\nd.png\nsub/c\n\n")
    predict(any_size, photos, tmp_path / "out", f"--names={tmp_path / 'names.txt'}")
    assert sorted(file.stem for file in (tmp_path / "out").rglob("*.png")) == ["b", "c", "d"]


def test_odd_images(any_size: RunFolder, tmp_path: Path) -> None:
    """Modes that stand for the same colors give the same prediction, whatever size and name the image has."""
    photos = tmp_path / "photos"
    photos.mkdir()
    gray = Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 7), dtype=np.uint8)).resize((41, 30))
    gray.convert("RGB").save(photos / "a.name with.dots.png")
    gray.save(photos / "gray.png")
    gray.convert("RGBA").save(photos / "alpha.webp", lossless=True)
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(photos / "deep.png")
    gray.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(photos / "palette.gif")
    turned = gray.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees clockwise
    turned.save(photos / "turned.tiff", exif=exif)
    for width, height in ((1, 1), (1, 40), (333, 3)):
        Image.new("RGB", (width, height), (40, 90, 200)).save(photos / f"{width}x{height}.bmp")
    (photos / "._mac.jpg").write_bytes(b"hidden")
    predict(any_size, photos, tmp_path / "out")
    written = {file.name.removesuffix(".png"): file for file in (tmp_path / "out").glob("*.png")}
    assert set(written) == {
        *("a.name with.dots", "gray", "alpha", "deep", "palette", "turned"),
        *("1x1", "1x40", "333x3"),
    }
    expected = np.asarray(Image.open(written["a.name with.dots"]))
    for name in ("gray", "alpha", "deep", "palette", "turned"):
        np.testing.assert_array_equal(np.asarray(Image.open(written[name])), expected, err_msg=name)
    assert [Image.open(written[name]).size for name in ("1x1", "1x40", "333x3")] == [(1, 1), (1, 40), (333, 3)]


def test_one_image_too_large_for_the_memory_is_listed(
    any_size: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = DeepLabModule.forward

    def limited(self: DeepLabModule, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] == (64, 64):
            torch.empty(2**50, dtype=torch.int64)  # a real refusal of the allocator
        return forward(self, images)

    monkeypatch.setattr(DeepLabModule, "forward", limited)
    with pytest.raises(SystemExit, match=r"1 of 4 images .*\n  d \(64x64\) does not fit the memory: predict crops"):
        predict(any_size, photos, tmp_path / "out")
    assert sorted(file.stem for file in (tmp_path / "out").rglob("*.png")) == ["a", "b", "c"]


def test_predictions_inside_the_folder_of_images(any_size: RunFolder, photos: Path) -> None:
    before = {file: file.read_bytes() for file in photos.rglob("*.*")}
    with pytest.raises(
        SystemExit, match=r"--output: .* is the folder of the images, in which predictions would overwr"
    ):
        predict(any_size, photos, photos)
    assert {file: file.read_bytes() for file in photos.rglob("*.*")} == before
    for _ in range(2):  # the second time, predictions are no images
        predict(any_size, photos, photos / "out")
    assert sorted(file.stem for file in (photos / "out").rglob("*.png")) == ["a", "b", "c", "d"]


def test_predictions_in_a_folder_that_contains_the_folder_of_images(any_size: RunFolder, photos: Path) -> None:
    for _ in range(2):
        predict(any_size, photos, photos.parent)
    assert all((photos.parent / f"{name}.png").is_file() for name in SIZES)


def test_archive_for_vocs_server(
    any_size: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="VOC has 21 classes with background, but the model has 11"):
        predict(any_size, photos, tmp_path / "out", "--submission", "voc")
    monkeypatch.setattr("beyondpixel.experiments.inference.outputs.VOC_CLASSES", 11)
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
    monkeypatch.setattr("beyondpixel.experiments.inference.outputs.VOC_CLASSES", 11)
    (photos / "a.png").write_text("broken")
    with pytest.raises(SystemExit, match="1 of 4 images could not be predicted"):
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
        with pytest.raises(SystemExit, match=r"--output: .*locked/out.* cannot be written \(Permission denied\)"):
            predict(any_size, photos, locked / "out")
    finally:
        if privileged:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "nowhere"], "--images: no file or folder nowhere"),
        (["--images", "empty"], "--images: the folder empty holds no images"),
        (
            ["--images", "twice"],
            "--images: predictions of twice/same.jpg and twice/same.png would overwrite each other",
        ),
        (["--images", "photos", "--names", "list.txt"], "list.txt names x, not found among the images"),
        (["--images", "photos", "--names", "photos"], "--names: photos cannot be read"),
        (["--names", "list.txt"], "--names selects among --images: add --images, or omit --names"),
        (["--images", "photos", "--ckpt_path", "lost.ckpt"], "no checkpoint lost.ckpt: expected a file"),
        (["--images", "photos", "--ckpt_path", "best"], "--ckpt_path best: of which run? Add --config RUN/config.yaml"),
        (["--images", "photos", "--inferer", "blur"], "inferer 'blur': expected crf:STEPS"),
        (["--images", "photos", "--device", "gpu"], "Expected one of cpu, cuda"),
        (["--images", "photos", "--data.roots", "x"], "roots"),
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


def test_what_other_settings_have_made_is_not_done(
    any_size: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(any_size, photos, out)
    predict(any_size, photos / "a.png", out, "--inferer", "tta:flip", "--overwrite")
    capsys.readouterr()
    predict(any_size, photos, out, "--inferer", "tta:flip")
    assert f"1 of {len(SIZES)} images are predicted already and kept" in capsys.readouterr().out


def test_the_datas_images_are_predicted_at_their_own_size(any_size: RunFolder, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (any_size.path / folder / "test").mkdir(parents=True)
    Image.new("RGB", (30, 20), (90, 20, 200)).save(any_size.path / "images" / "test" / "a.png")
    Image.new("L", (30, 20)).save(any_size.path / "masks" / "test" / "a.png")
    words = [
        f"--ckpt_path={any_size.last_checkpoint}",
        f"--output={tmp_path / 'out'}",
        "--data.image_size",
        "[40, 64]",
        "--data.crop_size",
        "32",
    ]
    main(["predict", *words])
    (written,) = (tmp_path / "out").rglob("a.png")
    assert Image.open(written).size == (30, 20)
    own = any_size.path / "images"
    with pytest.raises(SystemExit, match="--output: predictions would overwrite the images"):
        main(["predict", words[0], f"--output={own}"])
    assert Image.open(own / "test" / "a.png").mode == "RGB"


def test_without_images_they_are_the_datas(run: RunFolder, tmp_path: Path) -> None:
    words = ["predict", f"--config={run.config_file}", "--ckpt_path=last", "--inferer", "tta:flip"]
    main([*words, f"--output={tmp_path / 'test'}"])
    module, data = load_trained(run.last_checkpoint)
    assert len(list((tmp_path / "test").rglob("*.png"))) == len(data.dataset("test")) == 5
    sample = data.dataset("test")[0]
    image = data.normalize({"image": torch.from_numpy(sample.image).permute(2, 0, 1)[None]})["image"]
    with torch.no_grad():
        probs = module(image).softmax(1) + module(image.flip(3)).softmax(1).flip(3)
    written = np.asarray(Image.open(tmp_path / "test" / f"{sample.id}.png"))
    assert (written == probs[0].argmax(0).numpy()).mean() > 0.999
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg")
    main([*words, f"--output={tmp_path / 'mine'}", f"--data.predict_path={tmp_path / 'photo.jpg'}"])
    assert [file.name for file in (tmp_path / "mine").glob("*.png")] == ["photo.png"]
