"""JPEGs are decoded by another library than Pillow: the pixels, and what is refused, must be Pillow's."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules.datasets.errors import BadFileError
from beyondpixel.datamodules.datasets.reading import read_image


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
