"""What image files are read as, and which are refused; JPEGs are decoded by another library, to the same pixels."""

import errno
import itertools
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules.datasets.errors import BadFileError
from beyondpixel.datamodules.datasets.labels import LabelTable
from beyondpixel.datamodules.datasets.reading import read_image, read_mask


def photo(height: int, width: int) -> Image.Image:
    """Smooth colors with noise, so that all coefficients of a JPEG are used."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8))


def by_pillow(file: Path) -> np.ndarray | None:
    try:
        with Image.open(file) as image:
            return np.asarray(image) if image.mode == "RGB" else None
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize(
    ("subsampling", "progressive", "quality"), list(itertools.product((0, 1, 2), (False, True), (40, 95)))
)
def test_a_jpeg_has_pillows_pixels(tmp_path: Path, subsampling: int, progressive: bool, quality: int) -> None:
    file = tmp_path / "photo.jpg"
    photo(61, 83).save(file, quality=quality, subsampling=subsampling, progressive=progressive)
    expected = by_pillow(file)
    assert expected is not None
    pixels = read_image(file)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(pixels, expected)


def test_of_damaged_jpegs_the_same_are_refused(tmp_path: Path) -> None:
    """Cut off, with flipped bits or a run of zeros: one error that names the file, or the pixels that Pillow sees."""
    file, rng = tmp_path / "photo.jpg", random.Random(0)
    photo(120, 160).save(file, quality=90)
    whole = file.read_bytes()
    refused = 0
    for number in range(150):
        content = bytearray(whole)
        if number % 3 == 0:
            del content[rng.randrange(len(content)) :]
        elif number % 3 == 1:
            for _ in range(rng.randrange(1, 6)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            start = rng.randrange(len(content) - 50)
            content[start : start + 50] = bytes(50)
        file.write_bytes(content)
        expected = by_pillow(file)
        if expected is None:
            refused += 1
            with pytest.raises(BadFileError, match=r"photo\.jpg: is "):
                read_image(file)
        else:
            np.testing.assert_array_equal(read_image(file), expected)
    assert 50 <= refused < 150


def test_sixteen_bits_become_eight_from_black_to_white(tmp_path: Path) -> None:
    """A step of 8 bits is 257 of 16."""
    values = {0: 0, 128: 0, 129: 1, 257: 1, 32767: 127, 32768: 128, 65406: 254, 65407: 255, 65535: 255}
    Image.fromarray(np.array([list(values)], dtype=np.uint16)).save(tmp_path / "gray.png")
    pixels = read_image(tmp_path / "gray.png", convert=True)
    assert pixels[0].tolist() == [[value] * 3 for value in values.values()]


@pytest.mark.parametrize(("mode", "said"), [("L", "grayscale"), ("CMYK", "CMYK")])
def test_a_jpeg_of_another_kind_is_refused_by_name(tmp_path: Path, mode: str, said: str) -> None:
    file = tmp_path / "photo.jpg"
    photo(24, 32).convert(mode).save(file)
    with pytest.raises(BadFileError, match=f"photo.jpg: is {said}, not 8-bit RGB"):
        read_image(file)


def write_sixteen_bits(file: Path) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 1 << 16, (8, 9, 3), dtype=np.uint16)
    assert cv2.imwrite(str(file), values[..., ::-1])  # which takes BGR
    return values


@pytest.mark.parametrize("name", ["color.png", "color.tif"])
def test_sixteen_bits_in_color_are_refused_or_become_eight(tmp_path: Path, name: str) -> None:
    values = write_sixteen_bits(tmp_path / name)
    with pytest.raises(BadFileError, match=rf"{name}: is 16-bit, not 8-bit RGB"):
        read_image(tmp_path / name)
    assert np.abs(read_image(tmp_path / name, convert=True) - values / 257).max() < 1


@pytest.mark.parametrize("name", ["color.png", "color.tif"])
def test_eight_bits_in_color_are_read(tmp_path: Path, name: str) -> None:
    photo(8, 9).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(photo(8, 9)))


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_thirty_two_bits_are_refused(tmp_path: Path, dtype: type, mode: str) -> None:
    Image.fromarray(np.full((4, 5), 70000, dtype=dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(BadFileError, match=rf"depth.tif: is 32-bit \(Pillow mode {mode}\), not 8-bit RGB"):
        read_image(tmp_path / "depth.tif")
    message = rf"depth.tif: is 32-bit \(Pillow mode {mode}\): which values .*; store it as 8-bit RGB"
    with pytest.raises(BadFileError, match=message):
        read_image(tmp_path / "depth.tif", convert=True)


def test_sixteen_bit_gray_in_a_mode_of_thirty_two_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 32768, dtype=np.uint16)).save(tmp_path / "gray.pgm")
    assert Image.open(tmp_path / "gray.pgm").mode == "I"
    assert (read_image(tmp_path / "gray.pgm", convert=True) == 128).all()


@pytest.mark.parametrize("orientation", range(10))
def test_of_all_orientations_the_rotated_are_refused(tmp_path: Path, orientation: int) -> None:
    """2 to 8 are rotated or mirrored; 0 is "unknown", and 9 has no meaning."""
    image, file = photo(24, 32), tmp_path / "photo.jpg"
    image.getexif()[0x0112] = orientation
    image.save(file, exif=image.getexif())
    if 2 <= orientation <= 8:
        with pytest.raises(BadFileError, match=r"is stored rotated \(EXIF orientation\)"):
            read_image(file)
    else:
        assert read_image(file).shape == (24, 32, 3)


@pytest.mark.parametrize("convert", [False, True])
def test_an_image_above_pillows_limit_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: bool
) -> None:
    photo(24, 32).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 // 2 - 1)  # twice as many are an error
    with pytest.raises(BadFileError, match=r"photo.png: has more than about 178 million pixels.*cut .* into tiles"):
        read_image(tmp_path / "photo.png", convert=convert)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mask.jp2", {"irreversible": True, "quality_mode": "rates", "quality_layers": [20]}, "a JPEG 2000"),
        ("mask.tif", {"compression": "jpeg"}, "compressed as JPEG"),
    ],
)
def test_masks_in_lossy_formats_are_refused(tmp_path: Path, name: str, options: dict[str, object], said: str) -> None:
    mask, table = np.zeros((64, 64), dtype=np.uint8), LabelTable({label: label for label in range(20)})
    mask[20:40, 10:50], mask[30:, 30:] = 3, 7
    file = tmp_path / name
    Image.fromarray(mask).save(file, **options)
    changed = np.asarray(Image.open(file))
    assert (changed != mask).any()
    assert changed.max() < 20  # so the labels alone do not give it away
    with pytest.raises(BadFileError, match=rf"{name}: is {said}, which can change labels; .* such as PNG"):
        read_mask(file, table)
    Image.fromarray(mask).save(tmp_path / "lossless.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_mask(tmp_path / "lossless.tif", table), mask)


def test_an_error_of_the_system_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "photo.png"
    photo(8, 9).save(file)

    def refuse(path: Path) -> Image.Image:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(BadFileError, match=r"photo.png: cannot be read \(Permission denied\)$"):
        read_image(file)


def write_png(file: Path, rows: list[list[int]], *, bits: int, palette: bytes = b"") -> None:
    """Write a gray or palette PNG with few bits per pixel, which Pillow cannot write as gray."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = [np.packbits([int(bit) for value in row for bit in f"{value:0{bits}b}"]).tobytes() for row in rows]
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 3 if palette else 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + pixels + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_masks_of_few_bits_are_refused_and_palette_masks_read(tmp_path: Path, bits: int) -> None:
    """Pillow reads their highest label as 255, which would be void."""
    highest, file = (1 << bits) - 1, tmp_path / "mask.png"
    rows, table = [[0, highest, 0], [highest, highest, 0]], LabelTable({0: 0, highest: 1, 255: 255})
    write_png(file, rows, bits=bits)
    assert np.asarray(Image.open(file)).tolist() == [[0, 255, 0], [255, 255, 0]]
    with pytest.raises(BadFileError, match=f"mask.png: is {bits}-bit grayscale; store its labels in 8 bits"):
        read_mask(file, table)
    write_png(file, rows, bits=bits, palette=bytes(3 * (highest + 1)))
    np.testing.assert_array_equal(read_mask(file, table), [[0, 1, 0], [1, 1, 0]])
