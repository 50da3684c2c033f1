"""Geometry of feature maps: the positions of their values in the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PROBE_SIZE = 64


@dataclass(frozen=True)
class FeatureGrid:
    """The geometry of an encoder's feature maps: pads images to fit it and upsamples features without a shift.

    There are two kinds of encoders. If strided layers pad symmetrically (ResNet, MobileNet, ...), feature k of a row is
    centered on pixel `stride * k`: the grid begins on the image's first pixel, and it ends on the last one if the size
    is a multiple of the stride plus one, such as the papers' 513. At such sizes, bilinear interpolation with
    `align_corners=True` puts every value exactly where it was computed. At other sizes it would stretch the grid, by up
    to `stride - 1` pixels at the far border and by a different amount for each crop size. So images are padded at the
    right and bottom to the next size that fits, with zeros, the mean color of normalized images (as in the papers).

    If images are cut into patches (ConvNeXt), feature k covers pixels `stride * k` to `stride * (k + 1) - 1`; multiples
    of the stride fit, and `align_corners=False` is exact.

    Args:
        stride: pixels between two values of the last feature map.
        align_corners: True for the first kind, False for patches.

    Example:
        >>> grid = FeatureGrid(stride=16, align_corners=True)
        >>> grid.padded_size((360, 480)), grid.padded_size((513, 513))
        ((369, 481), (513, 513))
    """

    stride: int
    align_corners: bool

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest (height, width) of at least `size` that fits the grid."""
        extra = 1 if self.align_corners else 0
        # ceiling division without negative numbers, which ONNX would round in the other direction
        steps = ((length - extra + self.stride - 1) // self.stride for length in size)
        height, width = (max(step, 1) * self.stride + extra for step in steps)
        return height, width

    def pad(self, images: Tensor) -> Tensor:
        """Pad (N, C, H, W) images at the right and bottom with zeros to a size that fits."""
        height, width = images.shape[-2:]
        padded_height, padded_width = self.padded_size((height, width))
        return F.pad(images, (0, padded_width - width, 0, padded_height - height))

    def pad_target(self, target: Tensor, *, ignore_index: int) -> Tensor:
        """Pad (N, H, W) labels with void so that every feature is at the center of its own square of pixels.

        Upsampling with `align_corners=False` assumes that. A feature centered on a pixel is then off by half a pixel,
        since an even square has no center pixel.

        Example:
            >>> grid = FeatureGrid(stride=4, align_corners=True)
            >>> grid.pad_target(torch.zeros(1, 2, 3, dtype=torch.long), ignore_index=9)[0, :, 0].tolist()
            [9, 9, 9, 9, 9, 9, 9, 9]
            >>> grid.pad_target(torch.zeros(1, 2, 3, dtype=torch.long), ignore_index=9)[0, :, 2].tolist()
            [9, 9, 0, 0, 9, 9, 9, 9]
        """
        height, width = target.shape[-2:]
        padded_height, padded_width = self.padded_size((height, width))
        before, after = (self.stride // 2, (self.stride - 1) // 2) if self.align_corners else (0, 0)
        right, below = padded_width - width + after, padded_height - height + after
        return F.pad(target, (before, right, before, below), value=ignore_index)

    def upsample(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Upsample (N, C, h, w) bilinearly to (N, C, *size), a finer map of the same padded image."""
        return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=self.align_corners)


def check_images(images: Tensor) -> None:
    """Raise a ValueError unless images are a batch of three-channel images.

    Example:
        >>> check_images(torch.zeros(3, 8, 8))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: images must be (N, 3, H, W), got (3, 8, 8); repeat the channel of gray images three times, ...
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be (N, 3, H, W), got {tuple(images.shape)}; "
            "repeat the channel of gray images three times, and add the batch axis to a single image"
        )


def probe_grid(encoder: nn.Module, stride: int) -> FeatureGrid:
    """Determine an encoder's grid by running it on two tiny images; its BatchNorm statistics do not change.

    Args:
        encoder: maps (N, 3, H, W) to feature maps from fine to coarse; index 2 is at stride 4.
        stride: expected stride of the last map.

    Raises:
        ValueError: if the encoder's maps are not at strides 4 and `stride`.

    Example:
        >>> from segmentation_models_pytorch.encoders import get_encoder
        >>> probe_grid(get_encoder("resnet18", output_stride=8), stride=8)
        FeatureGrid(stride=8, align_corners=True)
    """
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
        one_larger = encoder(torch.zeros(1, 3, _PROBE_SIZE + 1, _PROBE_SIZE + 1))
    encoder.train(was_training)
    strides = [_PROBE_SIZE // feature.shape[-1] for feature in features]
    if len(strides) < 3 or strides[2] != 4 or strides[-1] != stride:
        raise ValueError(f"its feature maps have the strides {strides}; expected 4 at index 2 and {stride} at the end")
    return FeatureGrid(stride=stride, align_corners=one_larger[-1].shape[-1] == _PROBE_SIZE // stride + 1)
