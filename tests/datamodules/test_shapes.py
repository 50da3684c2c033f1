"""Generated scenes."""

import subprocess
import sys

import numpy as np
import pytest

from beyondpixel.datamodules import ShapesDataModule


def test_scenes_depend_on_seed_split_and_index_alone() -> None:
    first, again = (ShapesDataModule(num_train=8, num_workers=0) for _ in range(2))
    for index in (5, 0, 3):
        np.testing.assert_array_equal(first.dataset("train")[index].image, again.dataset("train")[index].image)
        np.testing.assert_array_equal(first.dataset("train")[index].mask, again.dataset("train")[index].mask)
    # not on how many there are
    more = ShapesDataModule(num_train=80)
    np.testing.assert_array_equal(first.dataset("train")[7].image, more.dataset("train")[7].image)
    for other in (
        first.dataset("val")[0],
        first.dataset("train")[1],
        ShapesDataModule(scene_seed=1).dataset("train")[0],
    ):
        assert (first.dataset("train")[0].mask != other.mask).mean() > 0.05


@pytest.mark.slow
def test_another_process_paints_the_same() -> None:
    code = (
        "import zlib; from beyondpixel.datamodules import ShapesDataModule;"
        "print(zlib.crc32(ShapesDataModule().dataset('val')[2].image.tobytes()))"
    )
    import zlib

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == zlib.crc32(ShapesDataModule().dataset("val")[2].image.tobytes())


def test_every_class_is_there_and_thin_ones_are_thin() -> None:
    data = ShapesDataModule(num_train=60)
    counts = np.zeros(data.num_classes)
    for sample in data.dataset("train"):
        counts += np.bincount(sample.mask.ravel(), minlength=data.num_classes)
    share = dict(zip(data.class_names, counts / counts.sum(), strict=True))
    assert len(share) == 11
    assert min(share.values()) > 0.002
    thin = sum(share[name] for name in ("pole", "sign", "fence", "wire"))
    assert 0.01 < thin < 0.1


def test_thickness() -> None:
    def pixels(thickness: float) -> int:
        data = ShapesDataModule(num_train=20, thickness=thickness)
        wire = data.class_names.index("wire")
        return sum(int((sample.mask == wire).sum()) for sample in data.dataset("train"))

    assert pixels(3.0) > 1.7 * pixels(1.0)


def test_size_and_classes_are_adjustable() -> None:
    names = ["sky", "building", "road", "pavement", "car"]
    data = ShapesDataModule(num_test=3, num_train=8, image_size=(64, 160), classes=names, batch_size=8)
    assert data.class_names == names
    assert data.num_classes == len(data.palette) == 5
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (8, 3, 64, 160)
    (batch,) = data.test_dataloader()
    assert batch["mask"].max() == 4
    assert batch["id"] == ["test_00000", "test_00001", "test_00002"]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="unknown: horse"):
        ShapesDataModule(classes=["sky", "building", "road", "pavement", "horse"])
    with pytest.raises(ValueError, match="missing: road, pavement"):
        ShapesDataModule(classes=["sky", "building"])
    with pytest.raises(ValueError, match="thickness must be positive"):
        ShapesDataModule(thickness=0)
    with pytest.raises(ValueError, match="scene_seed must be at least 0, got -1"):
        ShapesDataModule(scene_seed=-1)
    with pytest.raises(ValueError, match="num_val must be at least 1, got 0"):
        ShapesDataModule(num_val=0)
    with pytest.raises(ValueError, match=r"crop_size must be positive, got \(0, 0\)"):
        ShapesDataModule(crop_size=0)
    with pytest.raises(ValueError, match="has 4 images, fewer than one batch of 8"):
        ShapesDataModule(num_train=4).train_dataloader()


def test_statistics_are_those_of_the_scenes() -> None:
    data = ShapesDataModule(num_train=150)
    pixels = np.stack([sample.image for sample in data.dataset("train")]).reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), data.mean, atol=0.02)
    np.testing.assert_allclose(pixels.std(0), data.std, atol=0.02)


def test_a_cache_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}[name])
    with pytest.raises(MemoryError, match='omit cache="ram"'):
        ShapesDataModule(num_train=100).train_dataloader()
