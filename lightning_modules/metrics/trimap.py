"""Mean IoU in bands around the target's boundaries.

Kohli, Ladický and Torr, "Robust higher order potentials for enforcing label consistency" (IJCV 2009), and Krähenbühl
and Koltun (NeurIPS 2011), who plot it over the width of the band.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counts import CountMetric, count_codes, ratio
from beyondpixel.lightning_modules.metrics.neighborhoods import dilate, edges, with_void


class TrimapIoU(CountMetric):
    """Mean IoU over the pixels within 1, 2, 4, ... pixels of a boundary of the target.

    A valid pixel is in the band of width w if a pixel with another label is at most w away in the chessboard metric, so
    the band has w pixels on either side of a boundary, and a wider band contains the narrower ones. Void is another
    label (PASCAL VOC surrounds its objects with it), but void pixels are in no band; the image's border is no boundary.
    Pixels are counted over the whole set for each band, then IoU is computed, then the mean over the classes in target
    or prediction in the band.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        widths: widths of the bands in pixels, ascending.
        kwargs: further arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: if `widths` are not ascending positive numbers.

    Example:
        >>> target = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
        >>> metric = TrimapIoU(2, widths=(1, 4))
        >>> metric.update(torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 1]]]), target)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}  # 1/2 and 0, 4/5 and 3/4
        {'trimap_mIoU/1': 0.25, 'trimap_mIoU/4': 0.775}
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        widths: Sequence[int] = (1, 2, 4, 8, 16),
        **kwargs: Any,
    ) -> None:
        if not widths or min(widths) < 1 or sorted(set(widths)) != list(widths):
            raise ValueError(f"widths must be ascending numbers of pixels, 1 or more, got {list(widths)}")
        shape = (len(widths), num_classes, num_classes)
        super().__init__(num_classes, ignore_index, class_names, shape=shape, **kwargs)
        self.widths = tuple(widths)

    def count(self, preds: Tensor, target: Tensor) -> Tensor:
        """Compute the confusion matrix of each band's pixels that are in no narrower band."""
        valid = target != self.ignore_index
        near = edges(with_void(target, valid, self.num_classes), corners=True)
        outside = sum(~dilate(near, width - 1) for width in self.widths)  # number of bands without the pixel
        band = torch.from_numpy(outside).to(target.device)
        codes = (band * self.num_classes + target) * self.num_classes + preds
        return count_codes(codes, valid & (band < len(self.widths)), self.counts.shape)

    def compute(self) -> dict[str, Tensor]:
        """Return `trimap_mIoU/<width>` for each band; NaN for an empty band."""
        # torch has no deterministic cumulative sum of integers on CUDA, and the few bands are added as fast this way
        matrices = torch.stack([self.counts[: band + 1].sum(dim=0) for band in range(len(self.widths))])
        hits = matrices.diagonal(dim1=1, dim2=2)
        mean = ratio(hits, matrices.sum(dim=1) + matrices.sum(dim=2) - hits).nanmean(dim=1)
        return {f"trimap_mIoU/{width}": value for width, value in zip(self.widths, mean, strict=True)}
