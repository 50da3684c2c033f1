"""Inferers by name, such as `crf:5`, `tta:flip scales=0.5,1` or `window:513 overlap=0.33`, or several joined by `+`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.crf import DenseCRF
from beyondpixel.experiments.inference.mean_field import import_package
from beyondpixel.experiments.inference.sliding import DEFAULT_OVERLAP, SlidingWindow
from beyondpixel.experiments.inference.tta import TestTimeAugmentation
from beyondpixel.lightning_modules.inferer import Inferer

DEFAULT_STEPS = 5
EXPECTED = (
    "crf:STEPS, 'tta:flip scales=0.5,1', 'window:PIXELS overlap=0.33' or memory:exchanged, or several joined by +"
)


@dataclass(frozen=True)
class Chain:
    """Nested inferers: each uses the one before it as the network.

    Args:
        inferers: the innermost first.

    Example:
        >>> import torch
        >>> chain = Chain([SlidingWindow(8), TestTimeAugmentation(flip=True)])
        >>> chain(torch.zeros(1, 3, 9, 12), lambda crop: crop[:, :2]).shape
        torch.Size([1, 2, 9, 12])
    """

    inferers: Sequence[Inferer]

    def __call__(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (N, C, H, W) of normalized images (N, 3, H, W)."""
        for inferer in self.inferers:
            network = partial(_infer, inferer, network)
        return network(images)

    @property
    def crf_seconds(self) -> float | None:
        """Median CPU time of the CRF per image, on one core; None without one, or before the first."""
        seconds = [one for crf in self.inferers if isinstance(crf, DenseCRF) for one in crf.cpu_seconds]
        return statistics.median(seconds) if seconds else None


def _infer(inferer: Inferer, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return inferer(images, network)


@dataclass(frozen=True)
class InfererOptions:
    """Options of an inferer: crops are inside augmented passes, the CRF comes last, whatever order is given.

    Attributes:
        memory: MCIBI's memory with its rows exchanged, or None for the unchanged memory.
        window: crops of an image, or None for whole images.
        tta: passes that are averaged, or None for one.
        crf_steps: mean-field steps of the CRF, or None for none.
    """

    memory: Inferer | None = None
    window: SlidingWindow | None = None
    tta: TestTimeAugmentation | None = None
    crf_steps: int | None = None

    @property
    def axes(self) -> dict[str, str | None]:
        """`memory_rows`, `tta`, `window`, `postprocess`: axes of a comparison, None where not used."""
        scales = "" if self.tta is None else ",".join(f"{scale:g}" for scale in self.tta.scales)
        tta = " ".join(["flip"] * (self.tta is not None and self.tta.flip) + [f"scales={scales}"] * (scales != "1"))
        overlap = "" if self.window is None else f" overlap={self.window.overlap:.3g}"
        return {
            "memory_rows": None if self.memory is None else "exchanged",
            "tta": None if self.tta is None else tta or "scales=1",
            "window": None if self.window is None else f"{self.window.size}{overlap}",
            "postprocess": None if self.crf_steps is None else f"crf:{self.crf_steps}",
        }

    @property
    def slug(self) -> str:
        """Unique folder name for these options.

        Example:
            >>> parse_inferer("crf:10+tta:flip scales=0.5,1").slug
            'tta-flip-scales-0.5-1-crf-10'
        """
        axes = self.axes
        parts = [f"{name} {axes[name]}" for name in ("memory_rows", "tta", "window") if axes[name]]
        parts.append(axes["postprocess"] or "")
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts)).strip("-")

    def build(self, data: SegmentationDataModule) -> Chain:
        """Build the inferer for images that a data module normalizes.

        Raises:
            UserError: if the CRF would see the padding of batches.
        """
        inferers: list[Inferer] = [one for one in (self.memory, self.window, self.tta) if one is not None]
        if self.crf_steps is not None:
            if not data.fixed_size and data.image_size is None and data.eval_batch_size > 1:
                raise UserError(
                    f"the CRF would see the padding in batches of {data.eval_batch_size} images of different sizes: "
                    "set --data.eval_batch_size 1"
                )
            inferers.append(DenseCRF(self.crf_steps, data.mean, data.std))
        return Chain(inferers)


@torch.no_grad()
def exchanged_memory(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Predict with the memory of each class replaced by that of the class before it, cyclically.

    The score falls if the network uses its memory's information about classes, and stays if the memory only adds
    parameters. The memory is restored afterwards.

    Returns:
        Logits (N, C, H, W) of normalized images (N, 3, H, W).

    Raises:
        UserError: if the network is not an MCIBIModule with a memory.

    Example:
        >>> from beyondpixel.lightning_modules import MCIBIModule
        >>> module = MCIBIModule(num_classes=4, encoder="resnet18", channels=32, attention_channels=16).eval()
        >>> exchanged_memory(torch.zeros(1, 3, 33, 47), module).shape
        torch.Size([1, 4, 33, 47])
    """
    memory: Any = getattr(getattr(network, "network", None), "memory", None)
    if memory is None:
        raise UserError(
            "inferer 'memory:exchanged': expected MCIBIModule with memory 'features' or 'statistics', got "
            f"{type(network).__name__}, which has no memory of classes"
        )
    own = {name: state.clone() for name, state in memory.state_dict().items()}
    try:
        memory.load_state_dict({name: state.roll(1, dims=0) for name, state in own.items()})
        return network(images)
    finally:
        memory.load_state_dict(own)


def parse_inferer(text: str) -> InfererOptions:
    """Parse an inferer from a command line or a run spec.

    Raises:
        UserError: for an unknown inferer, numbers out of range, or a CRF whose package is not installed.

    Example:
        >>> options = parse_inferer("window:513 overlap=0.25+crf:10")
        >>> options.window, options.tta, options.crf_steps
        (SlidingWindow(size=513, overlap=0.25), None, 10)
    """
    found: dict[str, Any] = {}
    for part in str(text).split("+"):
        name, _, arguments = part.strip().partition(":")
        if name not in PARSERS:
            raise UserError(f"inferer {text!r}: expected {EXPECTED}, got {part.strip()!r}")
        key, parse = PARSERS[name]
        if key in found:
            raise UserError(f"inferer {text!r}: {name} is given twice; expected it once")
        try:
            found[key] = parse(arguments.split())
        except (ValueError, ModuleNotFoundError) as error:
            raise UserError(f"inferer {part.strip()!r}: {error}") from error
    return InfererOptions(**found)


def _parse_crf(arguments: list[str]) -> int:
    steps = arguments or [str(DEFAULT_STEPS)]
    if len(steps) > 1 or not re.fullmatch("[0-9]{1,4}", steps[0]) or int(steps[0]) < 1:
        raise ValueError(f"expected crf:STEPS with 1 to 9999 steps, such as crf:5, got {' '.join(arguments)!r}")
    import_package()
    return int(steps[0])


def _parse_window(arguments: list[str]) -> SlidingWindow:
    size, *options = arguments or [""]
    overlap = options[0].removeprefix("overlap=") if options else str(DEFAULT_OVERLAP)
    if len(options) > 1 or (options and not options[0].startswith("overlap=")):
        raise ValueError(f"expected window:PIXELS overlap=SHARE, got {' '.join(arguments)!r}")
    return SlidingWindow(_number(size, int, "size"), _number(overlap, float, "overlap"))


def _parse_tta(arguments: list[str]) -> TestTimeAugmentation:
    scales: tuple[float, ...] = (1.0,)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "scales" and equals:
            scales = tuple(_number(text, float, "scales") for text in value.split(","))
        elif argument != "flip":
            raise ValueError(f"expected flip, scales=0.5,1,1.5 or both with a space between, got {argument!r}")
    if not arguments:
        raise ValueError("expected flip, scales=0.5,1,1.5 or both with a space between, got nothing")
    return TestTimeAugmentation(scales, flip="flip" in arguments)


def _parse_memory(arguments: list[str]) -> Inferer:
    if arguments != ["exchanged"]:
        raise ValueError(f"expected memory:exchanged, got {' '.join(arguments) or 'nothing'!r}")
    return exchanged_memory


def _number(text: str, kind: type, name: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected {'a whole number' if kind is int else 'numbers'}, got {text!r}") from error


PARSERS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "crf": ("crf_steps", _parse_crf),
    "window": ("window", _parse_window),
    "tta": ("tta", _parse_tta),
    "memory": ("memory", _parse_memory),
}
