"""A grid of images with titled columns, framed crops and legends, as a Matplotlib figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beyondpixel.lightning_modules.visualization.colors import VOID, Color, Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.transforms import Transform

Legends = Mapping[str, Mapping[str, Color | None]]
DPI = 72  # a point is a pixel
INK, FAINT_INK, LINE = "#18181b", "#62626b", "#d0d0d6"
ENLARGEMENT = 3  # of framed crops
_SMALLEST, _LARGEST = 320, 800  # pixels of width: smaller images are enlarged, larger ones reduced
_CHARACTER = 0.56  # mean width of a character in font sizes


class Crop(NamedTuple):
    """A rectangle of an image: its upper left corner and its size, in pixels."""

    top: int
    left: int
    height: int
    width: int


def busiest_crop(marked: NDArray[np.bool_]) -> Crop:
    """Find the crop, a third as high and wide as the image, with the most marked pixels; the first of equal ones.

    Args:
        marked: (H, W).

    Example:
        >>> marked = np.zeros((9, 12), dtype=bool)
        >>> marked[7, 10:] = True
        >>> busiest_crop(marked)
        Crop(top=5, left=8, height=3, width=4)
    """
    height, width = (max(1, length // ENLARGEMENT) for length in marked.shape)
    # sums over all crops from an integral image
    total = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return Crop(int(top), int(left), height, width)


def image_grid(
    columns: Mapping[str, Sequence[Image]],
    *,
    legends: Legends | None = None,
    heading: str = "",
    captions: Mapping[str, Sequence[str]] | None = None,
    crops: Sequence[Crop] | None = None,
    photos: Sequence[str] = ("image",),
) -> Figure:
    """Draw images in rows and columns.

    Small images are enlarged by an integer factor, so that each pixel of a mask stays a sharp square; very large ones
    are reduced. Save the figure with `figure.savefig("grid.png")`. The font size grows with the width, because wide
    figures are shown scaled down.

    Args:
        columns: titles to images from top to bottom, (H, W, 3) uint8 RGB. Lines after a title's first are lighter.
            All images of a row should have one size.
        legends: legend names to the colors of their entries; None is the stripes of void.
        heading: title of the figure.
        captions: column titles to a text in the corner of each of their images.
        crops: crop of each row; framed in the row's images, and enlarged in a row below.
        photos: titles of the columns that are resized smoothly.

    Raises:
        ValueError: if there is no image, or columns differ in length.

    Example:
        >>> import numpy as np
        >>> gray = np.full((60, 80, 3), 128, dtype=np.uint8)
        >>> figure = image_grid({"image": [gray], "target": [gray]}, legends={"Classes": {"road": (90, 60, 90)}})
        >>> figure.savefig("grid.png")  # doctest: +SKIP
    """
    lengths = dict(zip(columns, map(len, columns.values()), strict=True))
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"columns must have the same number of images, at least one, got {lengths}")
    rows = []
    for index in range(max(lengths.values())):
        texts = {title: column[index] for title, column in (captions or {}).items()}
        rows.append([_Tile(column[index], title in photos, texts.get(title)) for title, column in columns.items()])
        if crops:
            rows.append([tile.framed(crops[index]) for tile in rows[-1]])
    page = _Page(rows)
    page.add_heading(heading)
    page.add_columns(list(columns))
    page.add_legends(legends or {})
    for tiles, row in zip(rows, page.finish(), strict=True):
        for tile, ax in zip(tiles, row, strict=True):
            _draw(ax, tile, scale=page.scale, size=page.size)
    return page.figure


@dataclass
class _Tile:
    image: Image
    is_photo: bool
    caption: str | None = None
    frame: Crop | None = None

    def framed(self, crop: Crop) -> _Tile:
        """Frame the crop, and return it enlarged."""
        self.frame = crop
        part = self.image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return _Tile(part.repeat(ENLARGEMENT, axis=0).repeat(ENLARGEMENT, axis=1), self.is_photo)


def _draw(axes: Axes, tile: _Tile, *, scale: float, size: float) -> None:
    from matplotlib.patches import Rectangle

    smooth = tile.is_photo and scale != 1
    axes.imshow(tile.image, interpolation="lanczos" if smooth else "nearest")
    axes.set_anchor("NW")  # columns are as wide as the widest image; others keep their shape
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(LINE)
    if tile.frame is not None:
        top, left, height, width = tile.frame
        for color, line in (("black", 0.2), ("white", 0.1)):  # visible on any color
            axes.add_patch(
                Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=color, linewidth=line * size)
            )
    if tile.caption:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.2 * size}
        corner = (0.4 * size, -0.4 * size)
        style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "bbox": box}
        axes.annotate(tile.caption, (0, 1), corner, fontsize=0.9 * size, **style)


class _Page:
    """A figure that is filled from top to bottom; all sizes are in pixels."""

    def __init__(self, rows: Sequence[Sequence[_Tile]]) -> None:
        from matplotlib.figure import Figure

        widest = max(tile.image.shape[1] for row in rows for tile in row)
        self.scale = max(1, -(-_SMALLEST // widest)) if widest <= _LARGEST else _LARGEST / widest
        self.heights = [round(max(tile.image.shape[0] for tile in row) * self.scale) for row in rows]
        self.columns = len(rows[0])
        self.tile = round(widest * self.scale)
        self.gap = max(8, self.tile // 40)
        self.margin = 2 * self.gap
        self.content = self.columns * (self.tile + self.gap) - self.gap
        self.width = self.content + 2 * self.margin
        self.size: float = max(14.0, self.width / 78)  # font size
        self.line = 1.5 * self.size
        self.top: float = self.margin  # of what is added next
        # without pyplot, which has global state and may need a display
        self.figure = Figure(dpi=DPI, facecolor="white")

    def add_heading(self, heading: str) -> None:
        for text in _wrap(heading, self.content, 1.15 * self.size):
            self._write(0, self.top, text, fontsize=1.15 * self.size)
            self.top += 1.15 * self.line
        self.top += 0.3 * self.line

    def add_columns(self, titles: Sequence[str]) -> None:
        """Write the titles, and leave space for the images below."""
        wrapped = [_wrap(title, self.tile, self.size) for title in titles]
        for column, lines in enumerate(wrapped):
            for index, text in enumerate(lines):
                left = column * (self.tile + self.gap)
                self._write(left, self.top + self.line * index, text, color=INK if index == 0 else FAINT_INK)
        self.images_top = self.top + self.line * (max(map(len, wrapped)) + 0.2)
        self.top = self.images_top + sum(self.heights) + self.gap * len(self.heights) + 0.3 * self.line

    def add_legends(self, legends: Legends) -> None:
        indent = self.size * (_CHARACTER * max(map(len, legends), default=0) + 1)
        for name, colors in legends.items():
            self._write(0, self.top, name, color=FAINT_INK)
            widest = self.size * (max(map(len, colors), default=0) * _CHARACTER + 3.5)
            columns = max(1, int((self.content - indent) / widest))
            # Matplotlib fills legends column by column; entries should read row by row
            patches = [_patch(*entry) for entry in colors.items()]
            self.figure.legend(
                handles=[patch for column in range(columns) for patch in patches[column::columns]],
                ncols=columns,
                loc="upper left",
                bbox_to_anchor=(0, 1),
                bbox_transform=self._at(indent, self.top),
                fontsize=self.size,
                **{"frameon": False, "borderpad": 0, "borderaxespad": 0, "handlelength": 1, "handleheight": 1},
                **{"labelspacing": 0.5, "handletextpad": 0.5, "columnspacing": 1.5, "labelcolor": INK},
            )
            self.top += self.line * math.ceil(len(colors) / columns)

    def finish(self) -> NDArray[np.object_]:
        """End the page below what was added, and make the axes of the images."""
        height, lines = self.top + self.margin, len(self.heights)
        self.figure.set_size_inches(self.width / DPI, height / DPI)
        layout = {
            "left": self.margin / self.width,
            "right": 1 - self.margin / self.width,
            "top": 1 - self.images_top / height,
            "bottom": 1 - (self.images_top + sum(self.heights) + self.gap * (lines - 1)) / height,
            "wspace": self.gap / self.tile,
            "hspace": self.gap * lines / sum(self.heights),
            "height_ratios": self.heights,
        }
        return self.figure.subplots(lines, self.columns, squeeze=False, gridspec_kw=layout)

    def _write(self, left: float, top: float, text: str, **style: Any) -> None:
        style = {"fontsize": self.size, "color": INK, "va": "top", **style}
        self.figure.text(0, 1, text, transform=self._at(left, top), **style)

    def _at(self, left: float, top: float) -> Transform:
        """Move the figure's upper left corner to a point of the content."""
        from matplotlib.transforms import ScaledTranslation

        moved = ScaledTranslation((self.margin + left) / DPI, -top / DPI, self.figure.dpi_scale_trans)
        return self.figure.transFigure + moved


def _patch(name: str, color: Color | None) -> Patch:
    from matplotlib.patches import Patch

    light, dark = (f"#{bytes(stripe).hex()}" for stripe in VOID)
    if color is None:
        return Patch(label=name, facecolor=light, edgecolor=dark, hatch="//////", linewidth=0)
    return Patch(label=name, facecolor=f"#{bytes(color).hex()}", edgecolor=LINE)


def _wrap(text: str, width: float, size: float) -> list[str]:
    """Wrap text to lines of at most `width` pixels; a single word may be wider."""
    characters = max(1, int(width / (_CHARACTER * size)))
    return [line for part in text.splitlines() for line in textwrap.wrap(part, characters, break_long_words=False)]
