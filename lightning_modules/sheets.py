"""Pictures in rows and titled columns with a legend below, as one picture."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Swatches = Mapping[str, Color | Picture]  # what a colour or pattern stands for

PAPER: Color = (255, 255, 255)
INK: Color = (24, 24, 27)
FAINT_INK: Color = (98, 98, 107)
FRAME: Color = (208, 208, 214)
_LEAST_TILE, _LARGEST_TILE = 320, 800  # pixels of width: smaller pictures are enlarged, larger ones reduced


def sheet(
    columns: Mapping[str, Sequence[Picture]],
    *,
    legends: Mapping[str, Swatches] | None = None,
    heading: str | None = None,
    photos: Collection[str] = ("image",),
) -> Image.Image:
    """Lay pictures out in rows and columns.

    Small pictures are enlarged by a whole factor, so that each pixel of a mask stays a sharp square; very large ones
    are reduced.

    Args:
        columns: from the title to its pictures from top to bottom, (H, W, 3) uint8 RGB. Lines after a title's first
            are set smaller and greyer. All pictures of a row should have one size.
        legends: from a legend's name to what its colours (or hatchings, as a picture) stand for.
        heading: a line above all.
        photos: titles of the columns that are resized smoothly.

    Raises:
        ValueError: if there is no picture, or columns differ in length.

    Example:
        >>> grey = np.full((60, 80, 3), 128, dtype=np.uint8)
        >>> picture = sheet({"image": [grey, grey], "truth": [grey, grey]}, legends={"Classes": {"road": (90, 60, 90)}})
        >>> picture.mode, picture.width > 2 * 320
        ('RGB', True)
    """
    lengths = {title: len(pictures) for title, pictures in columns.items()}
    if not lengths or set(lengths.values()) - {max(lengths.values())} or not max(lengths.values()):
        raise ValueError(f"columns must hold equally many pictures, at least one, got {lengths}")

    widest = max(picture.shape[1] for pictures in columns.values() for picture in pictures)
    scale = max(1, -(-_LEAST_TILE // widest)) if widest <= _LARGEST_TILE else _LARGEST_TILE / widest
    tile_width = round(widest * scale)
    gap = max(8, tile_width // 40)
    margin = 2 * gap
    width = len(columns) * tile_width + (len(columns) - 1) * gap + 2 * margin
    # type grows with the sheet, because a wide one is shown scaled down
    size = max(16, round(width / 72))
    labels = [text for name, swatches in (legends or {}).items() for text in (name, *swatches)]
    typeface = _typeface([heading or "", *columns, *labels])
    fonts = {name: typeface(round(ratio * size)) for name, ratio in (("heading", 1.25), ("title", 1.1), ("text", 1.0))}

    rows = list(zip(*columns.values(), strict=True))
    row_heights = [round(max(picture.shape[0] for picture in row) * scale) for row in rows]
    heading_lines = _wrap(heading or "", fonts["heading"], width - 2 * margin)
    heading_height = round(1.7 * size * len(heading_lines) + 0.4 * size) if heading else 0
    titles = [_title_lines(title, fonts, tile_width) for title in columns]
    title_height = round(1.5 * size * max(map(len, titles)) + 0.4 * size)
    legend_lines = _break_legends(legends or {}, fonts["text"], size, width - 2 * margin)
    line_height = round(1.8 * size)
    legend_height = line_height * len(legend_lines) + (2 * gap if legend_lines else 0)
    height = 2 * margin + heading_height + title_height + sum(row_heights) + gap * (len(rows) - 1) + legend_height

    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    top = margin
    for line, text in enumerate(heading_lines):
        draw.text((margin, top + 1.7 * size * line), text, font=fonts["heading"], fill=INK)
    top += heading_height
    lefts = [margin + index * (tile_width + gap) for index in range(len(columns))]
    for left, lines in zip(lefts, titles, strict=True):
        for line, (text, font, fill) in enumerate(lines):
            draw.text((left, top + 1.5 * size * line), text, font=font, fill=fill)
    top += title_height
    for row, row_height in zip(rows, row_heights, strict=True):
        for left, title, picture in zip(lefts, columns, row, strict=True):
            smooth = title in photos and scale != 1
            tile = Image.fromarray(picture).resize(
                (round(picture.shape[1] * scale), round(picture.shape[0] * scale)),
                Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST,
            )
            canvas.paste(tile, (left, top))
            draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=FRAME)
        top += row_height + gap
    top += gap
    for line_of_entries in legend_lines:
        for left, label, color in line_of_entries:
            _draw_entry(canvas, (margin + left, top), label, color, font=fonts["text"], size=size)
        top += line_height
    return canvas


def _typeface(texts: Sequence[str]) -> Callable[[int], Font]:
    """Pillow's own typeface; it has little beyond ASCII, so other texts are set in Matplotlib's DejaVu Sans."""
    if all(text.isascii() for text in texts):
        return ImageFont.load_default
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return lambda size: ImageFont.truetype(path, round(0.92 * size))


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than ``width``, broken at spaces; a single word may be wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _title_lines(title: str, fonts: Mapping[str, Font], width: int) -> list[tuple[str, Font, Color]]:
    first, *others = title.splitlines() or [""]
    lines = [(text, fonts["title"], INK) for text in _wrap(first, fonts["title"], width)]
    return lines + [(text, fonts["text"], FAINT_INK) for other in others for text in _wrap(other, fonts["text"], width)]


def _break_legends(
    legends: Mapping[str, Swatches], font: Font, size: int, width: int
) -> list[list[tuple[int, str, Color | Picture | None]]]:
    """Lines of (left, label, colour); a legend's name has no colour and stands in a column of its own."""
    lines: list[list[tuple[int, str, Color | Picture | None]]] = []
    name_width = max((round(font.getlength(name)) for name in legends), default=0) + size
    for name, swatches in legends.items():
        line: list[tuple[int, str, Color | Picture | None]] = [(0, name, None)]
        left = name_width
        for label, color in swatches.items():
            needed = round(1.6 * size + font.getlength(label))
            if left + needed > width and left > name_width:
                lines.append(line)
                line, left = [], name_width
            line.append((left, label, color))
            left += needed + round(1.3 * size)
        lines.append(line)
    return lines


def _draw_entry(
    canvas: Image.Image,
    corner: tuple[int, int],
    label: str,
    color: Color | Picture | None,
    *,
    font: Font,
    size: int,
) -> None:
    draw = ImageDraw.Draw(canvas)
    left, top = corner
    if color is None:
        draw.text((left, top), label, font=font, fill=FAINT_INK)
        return
    side = round(1.05 * size)
    box = (left, top + round(0.08 * size))
    if isinstance(color, tuple):
        canvas.paste(color, (*box, box[0] + side, box[1] + side))
    else:
        pattern = np.tile(color, (-(-side // color.shape[0]), -(-side // color.shape[1]), 1))[:side, :side]
        canvas.paste(Image.fromarray(np.ascontiguousarray(pattern)), box)
    draw.rectangle((box[0] - 1, box[1] - 1, box[0] + side, box[1] + side), outline=FRAME)
    draw.text((left + round(1.5 * size), top), label, font=font, fill=INK)
