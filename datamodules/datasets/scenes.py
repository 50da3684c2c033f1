"""Generated street scenes: thin poles, signs, wires and fences, small and touching objects, texture, light and noise.

A scene is painted from far to near, each shape into the image and the label map at once, so the target is exact.
Lengths are in units of a 96th of the height, so a scene looks the same at any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from beyondpixel.datamodules.datasets.base import Pixels

Color = tuple[int, int, int]
Point = tuple[float, float]

CLASSES: dict[str, Color] = {
    "sky": (112, 172, 224),
    "building": (150, 84, 72),
    "road": (110, 84, 130),
    "pavement": (226, 160, 210),
    "tree": (72, 148, 60),
    "car": (28, 62, 190),
    "person": (226, 38, 60),
    "fence": (196, 150, 96),
    "pole": (90, 90, 90),
    "sign": (246, 206, 30),
    "wire": (20, 20, 20),
}
BACKGROUND = ("sky", "building", "road", "pavement")
# standard deviation of each class's own texture, coarse and fine, in gray levels
_TEXTURE = {"building": (9, 6), "road": (5, 6), "pavement": (6, 7), "tree": (20, 18), "person": (6, 5)}


@dataclass(frozen=True)
class SceneStyle:
    """Settings that the scenes of a data set have in common.

    Attributes:
        size: Height and width.
        classes: Names of the classes, which give the label values; others are not drawn.
        thickness: Factor of the width of poles, signs, wires and fences.
    """

    size: tuple[int, int]
    classes: tuple[str, ...]
    thickness: float


class ScenePainter:
    """Paints one scene; everything besides the style is drawn from the generator."""

    def __init__(self, style: SceneStyle, rng: np.random.Generator) -> None:
        self.style = style
        self.rng = rng
        self.height, self.width = style.size
        self.unit = self.height / 96
        # RGB and the label, so that both are painted at once
        self.canvas: Pixels = np.zeros((self.height, self.width, 4), dtype=np.uint8)
        self.horizon = self.height * rng.uniform(0.36, 0.52)
        self.vanishing = self.width * rng.uniform(0.25, 0.75)

    def paint(self) -> tuple[Pixels, Pixels]:
        """Paint the image, uint8 (H, W, 3) in RGB, and its labels, uint8 (H, W)."""
        self._sky()
        self._buildings()
        self._ground()
        self._objects()
        return self._photograph(), np.ascontiguousarray(self.canvas[..., 3])

    def _sky(self) -> None:
        top, bottom = self._tint((96, 148, 210), 26), self._tint((196, 208, 222), 22)
        blend = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None]
        gradient = np.array(top, dtype=np.float32) * (1 - blend) + np.array(bottom, dtype=np.float32) * blend
        self.canvas[..., :3] = gradient.astype(np.uint8)
        self.canvas[..., 3] = self.style.classes.index("sky")
        for _ in range(self.rng.integers(0, 4)):
            center = (self._x(), self.rng.uniform(0, self.horizon * 0.8))
            radii = (self.rng.uniform(8, 26) * self.unit, self.rng.uniform(2, 5) * self.unit)
            self._ellipse("sky", center, radii, self._tint((226, 228, 232), 12))

    def _buildings(self) -> None:
        x = -self.rng.uniform(0, 20) * self.unit
        while x < self.width:
            width = self.rng.uniform(14, 42) * self.unit
            if self.rng.random() < 0.8:
                top = self.horizon - self.rng.uniform(8, 40) * self.unit
                self._building(x, top, x + width)
            x += width * self.rng.uniform(0.85, 1.1)

    def _building(self, left: float, top: float, right: float) -> None:
        wall = self._tint([(168, 150, 132), (150, 92, 76), (126, 126, 132), (196, 186, 160)][self.rng.integers(4)], 18)
        bottom = self.horizon + 2 * self.unit
        if self.rng.random() < 0.35:
            peak = (left + right) / 2, top - self.rng.uniform(5, 11) * self.unit
            self._polygon("building", [(left, top), peak, (right, top)], _shade(wall, 0.6))
        self._box("building", ((left, top), (right, bottom)), wall)
        pane = _shade(wall, self.rng.choice([0.5, 0.6, 1.35]))
        step_x, step_y = self.rng.uniform(4.5, 8) * self.unit, self.rng.uniform(6, 9) * self.unit
        side = self.rng.uniform(0.4, 0.55)
        for y in np.arange(top + step_y * 0.4, bottom - step_y * 0.6, step_y):
            for x in np.arange(left + step_x * 0.4, right - step_x * 0.6, step_x):
                self._box("building", ((x, y), (x + step_x * side, y + step_y * 0.5)), pane)

    def _ground(self) -> None:
        pavement, road = self._tint((158, 152, 146), 16), self._tint((92, 92, 98), 14)
        self._box("pavement", ((-1, self.horizon), (self.width, self.height)), pavement)
        near, far = self.rng.uniform(0.55, 1.0) * self.width, 3 * self.unit
        foot = self.vanishing + self.rng.uniform(-0.2, 0.2) * self.width
        middle = np.array([foot, self.height]), np.array([self.vanishing, self.horizon])
        edge = [(self.vanishing - far, self.horizon), (self.vanishing + far, self.horizon)]
        self._polygon("road", [*edge, (foot + near / 2, self.height), (foot - near / 2, self.height)], road)
        for start in np.arange(0.05, 0.95, 0.16):
            (x0, y0), (x1, y1) = (
                middle[0] + (middle[1] - middle[0]) * (1 - (1 - t) ** 2) for t in (start, start + 0.07)
            )
            half = (1 - start) ** 2 * 1.6 * self.unit
            if half > 0.4:
                mark = [(x0 - half, y0), (x0 + half, y0), (x1 + half * 0.7, y1), (x1 - half * 0.7, y1)]
                self._polygon("road", mark, self._tint((206, 206, 200), 10))

    def _objects(self) -> None:
        """Paint everything that stands on the ground, from far to near; cars and persons in touching groups."""
        self._wires()
        objects: list[tuple[float, str]] = []
        for kind, low, high in (("tree", 1, 4), ("fence", 0, 3), ("car", 1, 4), ("person", 1, 5), ("pole", 2, 6)):
            objects += [(self.rng.beta(1.2, 2.0), kind) for _ in range(self.rng.integers(low, high))]
        for depth, kind in sorted(objects):
            if kind in self.style.classes:
                foot = self.horizon + 1.5 * self.unit + depth * (self.height - self.horizon) * 0.85
                scale = (0.55 + 1.1 * depth) * self.unit
                getattr(self, f"_{kind}")(foot, scale)

    def _tree(self, foot: float, scale: float) -> None:
        x, leaves = self._x(), self._tint((74, 112, 52), 22)
        crown = foot - self.rng.uniform(20, 30) * scale
        self._box("tree", ((x - 1.2 * scale, crown), (x + 1.2 * scale, foot)), self._tint((92, 70, 50), 10))
        for _ in range(self.rng.integers(6, 10)):
            center = x + self.rng.normal(0, 5) * scale, crown + self.rng.normal(0, 4) * scale
            radius = self.rng.uniform(3.5, 7) * scale
            self._ellipse("tree", center, (radius, radius), _shade(leaves, self.rng.uniform(0.75, 1.2)))

    def _fence(self, foot: float, scale: float) -> None:
        left = self._x() - 20 * scale
        right = left + self.rng.uniform(30, 70) * scale
        top = foot - self.rng.uniform(8, 12) * scale
        color, width = self._tint((126, 108, 92), 34), self._width(1.3 * scale)
        for y in (top + scale, foot - 3 * scale):
            self._line("fence", (left, y), (right, y), width, color)
        for x in np.arange(left, right, max(3.6 * scale, width + 2)):
            self._line("fence", (x, top), (x, foot), width, color)

    def _car(self, foot: float, scale: float) -> None:
        x = self._x()
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            length, body = self.rng.uniform(17, 22) * scale, self._tint((130, 100, 100), 70)
            waist, roof = foot - 5 * scale, foot - 8.5 * scale
            cabin = [(x + length * part, y) for part, y in ((0.15, waist), (0.3, roof), (0.7, roof), (0.88, waist))]
            self._polygon("car", cabin, _shade(body, 0.9))
            glass = [(x + length * part, y) for part, y in ((0.24, waist), (0.34, roof + scale), (0.66, roof + scale))]
            self._polygon("car", [*glass, (x + length * 0.76, waist)], self._tint((58, 68, 78), 14))
            self._box("car", ((x, waist), (x + length, foot - 1.2 * scale)), body)
            for wheel in (0.22, 0.78):
                self._ellipse("car", (x + length * wheel, foot - 1.6 * scale), (1.9 * scale,) * 2, (30, 30, 32))
            x += length * self.rng.uniform(0.96, 1.05)

    def _person(self, foot: float, scale: float) -> None:
        x = self._x()
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            tall = self.rng.uniform(14, 18) * scale
            coat, legs = self._tint((120, 90, 90), 70), self._tint((56, 56, 74), 24)
            hip, neck = foot - 0.46 * tall, foot - 0.84 * tall
            for side in (-1, 1):
                step = side * self.rng.uniform(0.4, 1.8) * scale
                self._line("person", (x + side * 0.5 * scale, hip), (x + step, foot), max(1, round(1.5 * scale)), legs)
            body = [(x - 2.1 * scale, neck), (x + 2.1 * scale, neck), (x + 1.7 * scale, hip), (x - 1.7 * scale, hip)]
            self._polygon("person", body, coat)
            head = self._tint((198, 156, 130), 28)
            self._ellipse("person", (x, neck - 1.3 * scale), (1.4 * scale, 1.8 * scale), head)
            x += self.rng.uniform(4, 5.6) * scale

    def _pole(self, foot: float, scale: float) -> None:
        x, width, color = self._x(), self._width(1.7 * scale), self._tint((112, 114, 112), 34)
        top = foot - self.rng.uniform(22, 46) * scale
        self._line("pole", (x, foot), (x + self.rng.normal(0, 0.7) * scale, top), width, color)
        if "sign" in self.style.classes and self.rng.random() < 0.65:
            self._sign((x, top + self.rng.uniform(0, 6) * scale), scale)
        elif self.rng.random() < 0.6:
            reach = self.rng.choice([-1, 1]) * self.rng.uniform(5, 9) * scale
            self._line("pole", (x, top), (x + reach, top), self._width(1.2 * scale), color)

    def _sign(self, center: Point, scale: float) -> None:
        (x, y), radius = center, self.rng.uniform(2.4, 3.8) * scale * self.style.thickness
        kind = self.rng.integers(3)
        if kind == 0:
            self._ellipse("sign", center, (radius, radius), self._tint((196, 40, 40), 26))
            self._ellipse("sign", center, (radius * 0.55,) * 2, self._tint((226, 222, 216), 14))
        elif kind == 1:
            self._box(
                "sign", ((x - radius * 1.3, y - radius), (x + radius * 1.3, y + radius)), self._tint((40, 84, 168), 26)
            )
        else:
            corners = [(x, y - radius * 1.2), (x + radius * 1.2, y + radius), (x - radius * 1.2, y + radius)]
            self._polygon("sign", corners, self._tint((226, 180, 44), 24))

    def _wires(self) -> None:
        if "wire" not in self.style.classes:
            return
        dark = self._tint((46, 46, 52), 18)
        start, end = self.rng.uniform(0.02, 0.5, size=2) * self.horizon
        sag = self.rng.uniform(1, 8) * self.unit
        x = np.linspace(0, self.width - 1, 16)
        for strand in range(self.rng.integers(0, 3)):
            across = x / self.width
            y = start + (end - start) * across + sag * 4 * across * (1 - across) + strand * 6 * self.unit
            points = np.stack([x, y], axis=1).round().astype(np.int32)
            cv2.polylines(self.canvas, [points], False, self._ink("wire", dark), self._width(1.6 * self.unit))

    def _photograph(self) -> Pixels:
        """Add texture, light, a shadow, the blur of a lens and the noise of a sensor."""
        size = (self.width, self.height)
        coarse_cells = (max(2, self.width // 5), max(2, self.height // 5))
        coarse = cv2.resize(self._noise(coarse_cells), size, interpolation=cv2.INTER_LINEAR)
        strengths = np.array([_TEXTURE.get(name, (3, 3)) for name in self.style.classes], dtype=np.float32)
        coarse_strength, fine_strength = strengths[self.canvas[..., 3]].transpose(2, 0, 1)
        texture = coarse * coarse_strength + self._noise(size) * fine_strength

        light = np.array(self.rng.uniform(0.75, 1.2)) + np.linspace(-1, 1, self.width) * self.rng.uniform(-0.2, 0.2)
        brightness = np.repeat(light.astype(np.float32)[None], self.height, axis=0)
        if self.rng.random() < 0.6:
            x, reach = self._x(), self.rng.uniform(10, 45) * self.unit
            lean = self.rng.uniform(-30, 30) * self.unit
            shadow = [
                (x, self.horizon),
                (x + reach, self.horizon),
                (x + reach + lean, self.height),
                (x + lean, self.height),
            ]
            cv2.fillConvexPoly(brightness, _pixels(shadow), 0.62)

        lit = (self.canvas[..., :3].astype(np.float32) + texture[..., None]) * brightness[..., None]
        lit = cv2.GaussianBlur(lit, (3, 3), 0.45 * self.unit)
        sensor = self._noise((self.width, self.height * 3)).reshape(self.height, self.width, 3)
        return np.asarray(np.clip(lit + sensor * self.rng.uniform(3, 9), 0, 255), dtype=np.uint8)

    def _noise(self, size: tuple[int, int]) -> NDArray[np.float32]:
        return self.rng.standard_normal((size[1], size[0]), dtype=np.float32)

    def _x(self) -> float:
        return float(self.rng.uniform(0, self.width))

    def _width(self, units: float) -> int:
        return max(1, round(units * self.style.thickness))

    def _tint(self, color: Color, spread: int) -> Color:
        """Draw a color near `color`: one brightness for all channels and a little hue."""
        shift = self.rng.uniform(-spread, spread) + self.rng.uniform(-spread / 2, spread / 2, size=3)
        red, green, blue = np.clip(np.array(color) + shift, 0, 255).astype(int).tolist()
        return red, green, blue

    def _ink(self, name: str, color: Color) -> tuple[int, int, int, int]:
        return *color, self.style.classes.index(name)

    def _polygon(self, name: str, points: Sequence[Point], color: Color) -> None:
        cv2.fillPoly(self.canvas, [_pixels(points)], self._ink(name, color))

    def _box(self, name: str, corners: tuple[Point, Point], color: Color) -> None:
        (left, top), (right, bottom) = corners
        rows = slice(max(0, round(top)), max(0, round(bottom)))
        columns = slice(max(0, round(left)), max(0, round(right)))
        self.canvas[rows, columns] = self._ink(name, color)

    def _ellipse(self, name: str, center: Point, radii: Point, color: Color) -> None:
        x, y = round(center[0]), round(center[1])
        axes = round(radii[0]), round(radii[1])
        cv2.ellipse(self.canvas, (x, y), axes, 0, 0, 360, self._ink(name, color), cv2.FILLED)

    def _line(self, name: str, start: Point, end: Point, width: int, color: Color) -> None:
        first, last = _pixels([start, end]).tolist()
        cv2.line(self.canvas, first, last, self._ink(name, color), width)


def _pixels(points: Sequence[Point]) -> NDArray[np.int32]:
    return np.array(points).round().astype(np.int32)


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, int(channel * factor)) for channel in color)
    return red, green, blue
