"""Generated street scenes, the data set that needs no files."""

import hashlib
import zlib
from typing import Any, ClassVar, Literal

import numpy as np

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import Sample, SegmentationDataset
from beyondpixel.datamodules.datasets.scenes import BACKGROUND, CLASSES, ScenePainter, SceneStyle
from beyondpixel.datamodules.options import require


class GeneratedScenes(SegmentationDataset):
    """Scenes that are painted on access; scene `index` depends on (style, scene_seed, split, index) alone."""

    def __init__(self, style: SceneStyle, *, split: str, length: int, scene_seed: int) -> None:
        self.style = style
        self.ids = [f"{split}_{index:05d}" for index in range(length)]
        # a number for the split that is the same in every process, unlike hash()
        self._key = [scene_seed, zlib.crc32(split.encode())]

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([*self._key, index])
        image, labels = ScenePainter(self.style, rng).paint()
        return Sample(image, labels, self.ids[index])

    def fingerprint(self) -> str:
        """Return a short hash of the settings and the first scene."""
        digest = hashlib.sha256(repr((self.style, self._key, len(self))).encode())
        digest.update(self[0].image.tobytes())
        return digest.hexdigest()[:16]


class ShapesDataModule(SegmentationDataModule):
    """Generated street scenes with thin poles, signs, wires and fences, small and touching objects, texture and noise.

    Nothing is downloaded or read. Scenes depend on (scene_seed, split, index) alone, so that runs with different seeds
    train and are tested on the same ones, and are kept in memory once painted.

    Args:
        num_train: Training images.
        num_val: Validation images.
        num_test: Test images.
        image_size: Height and width of the scenes.
        scene_seed: Seed of the scenes; another one makes another data set.
        thickness: Factor of the width of poles, signs, wires and fences; at 1 the thinnest are one pixel wide at the
            default size.
        classes: The classes to draw, in label order; None draws all eleven. The background classes (sky, building,
            road and pavement) are required.
        crop_size: Side, or height and width, of the training crops; None is the image size.
        scales: Lowest and highest factor of the random rescaling of training images.
        eval_batch_size: Images per evaluation step of each process.
        cache: "ram" keeps the scenes; None paints them again in each epoch.
        **common: As for `SegmentationDataModule`.
    """

    dataset_name: ClassVar[str] = "Shapes"
    splits = ("train", "val", "test")

    # of 500 training scenes at the default settings
    mean = (0.46, 0.48, 0.50)
    std = (0.18, 0.17, 0.22)

    def __init__(
        self,
        *,
        num_train: int = 400,
        num_val: int = 100,
        num_test: int = 100,
        image_size: tuple[int, int] = (96, 128),
        scene_seed: int = 0,
        thickness: float = 1.0,
        classes: list[str] | None = None,
        crop_size: int | tuple[int, int] | None = None,
        scales: tuple[float, float] = (0.75, 1.5),
        eval_batch_size: int = 16,
        cache: Literal["ram"] | None = "ram",
        **common: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            crop_size=image_size if crop_size is None else crop_size,
            scales=scales,
            eval_batch_size=eval_batch_size,
            cache=cache,
            **common,
        )
        self.class_names = list(CLASSES) if classes is None else list(classes)
        unknown = [name for name in self.class_names if name not in CLASSES]
        missing = [name for name in BACKGROUND if name not in self.class_names]
        if unknown or missing:
            raise ValueError(
                f"classes must be some of {', '.join(CLASSES)}, with {', '.join(BACKGROUND)} among them; "
                + (f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}")
            )
        require(thickness > 0, "thickness", "positive", thickness)
        require(scene_seed >= 0, "scene_seed", "at least 0", scene_seed)
        self.palette = [CLASSES[name] for name in self.class_names]
        self.thickness = thickness
        self.scene_seed = scene_seed
        self._lengths = {"train": num_train, "val": num_val, "test": num_test}
        for split, length in self._lengths.items():
            require(length >= 1, f"num_{split}", "at least 1", length)

    def load_split(self, split: str) -> GeneratedScenes:
        """Return the scenes of a split."""
        assert self.image_size is not None
        style = SceneStyle(self.image_size, tuple(self.class_names), self.thickness)
        return GeneratedScenes(style, split=split, length=self._lengths[split], scene_seed=self.scene_seed)
