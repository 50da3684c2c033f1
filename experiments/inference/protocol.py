"""How images are predicted beyond one look at each: scales, flips, windows and a CRF, said in a few words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.crf import DenseCRF, import_package
from beyondpixel.experiments.inference.sliding import average_windows, window_starts
from beyondpixel.experiments.inference.tta import average_views

DEFAULT_OVERLAP = 1 / 3


@dataclass(frozen=True)
class Protocol:
    """An inference protocol; the default is the papers': each image once, whole, at its own size.

    Attributes:
        scales: factors at which images are seen.
        flip: whether they are seen mirrored as well.
        window: side of sliding windows in pixels; None looks at whole images.
        overlap: share of a window that the next one covers as well.
        crf: the post-processing; None for none.

    Example:
        >>> protocol = Protocol.parse(tta="scales=0.5,1 flip", window=513, postprocess="crf:5")
        >>> protocol.scales, protocol.flip, protocol.crf.steps
        ((0.5, 1.0), True, 5)
        >>> protocol.words
        {'tta': 'scales=0.5,1 flip', 'window': '513 overlap=0.333', 'postprocess': 'crf:5'}
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    overlap: float = DEFAULT_OVERLAP
    crf: DenseCRF | None = None

    @classmethod
    def parse(
        cls,
        *,
        tta: str | None = None,
        window: int | None = None,
        overlap: float | None = None,
        postprocess: str | None = None,
    ) -> Protocol:
        """From the words of the command line or of a run spec.

        Args:
            tta: `flip`, `scales=0.5,1,1.5` or both, with a space between.
            window: side of sliding windows.
            overlap: share of a window that the next one covers as well; a third if None.
            postprocess: `crf:STEPS`, or `crf` for 5 steps.

        Raises:
            UserError: for words that mean nothing, numbers out of range, or a CRF whose package is missing.
        """
        if overlap is not None and window is None:
            raise UserError("--overlap is that of sliding windows: give --window PIXELS as well, or leave it out")
        overlap = DEFAULT_OVERLAP if overlap is None else overlap
        scales, flip = parse_tta(tta)
        if window is not None:
            try:
                window_starts(window, window, overlap)
            except ValueError as error:
                raise UserError(f"--window, --overlap: {error}") from error
        return cls(scales=scales, flip=flip, window=window, overlap=overlap, crf=parse_postprocess(postprocess))

    @property
    def is_default(self) -> bool:
        """Whether this is one look at each image and nothing after it."""
        return self == Protocol()

    @property
    def views(self) -> int:
        """How often each image is seen."""
        return len(self.scales) * (2 if self.flip else 1)

    @property
    def words(self) -> dict[str, str | None]:
        """`tta`, `window`, `postprocess` as short texts, None where not used: the axes of a comparison."""
        scales = "scales=" + ",".join(f"{scale:g}" for scale in self.scales) if self.scales != (1.0,) else ""
        return {
            "tta": " ".join(filter(None, [scales, "flip" if self.flip else ""])) or None,
            "window": None if self.window is None else f"{self.window} overlap={self.overlap:.3g}",
            "postprocess": None if self.crf is None else f"crf:{self.crf.steps}",
        }

    def network_probs(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Softmax probabilities before any post-processing.

        A model that was trained with sigmoids (BCE, RMI) is read by softmax, too: the largest class is the same, and
        one image has one distribution over classes, which averages and the CRF need.

        Args:
            forward: from (N, 3, h, w) images to (N, C, h, w) logits.
            images: (N, 3, H, W), normalised.

        Returns:
            float32 (N, C, H, W).
        """

        def whole(images: Tensor) -> Tensor:
            return forward(images).float().softmax(dim=1)

        def windows(images: Tensor) -> Tensor:
            assert self.window is not None
            return average_windows(whole, images, window=self.window, overlap=self.overlap)

        with torch.inference_mode():
            predict = whole if self.window is None else windows
            return average_views(predict, images, scales=self.scales, flip=self.flip)


def parse_tta(text: str | None) -> tuple[tuple[float, ...], bool]:
    """Scales and flip from `flip`, `scales=0.5,1,1.5` or both.

    Example:
        >>> parse_tta("scales=0.5,1,1.5 flip"), parse_tta("flip"), parse_tta(None)
        (((0.5, 1.0, 1.5), True), ((1.0,), True), ((1.0,), False))
    """
    scales: tuple[float, ...] = (1.0,)
    flip = False
    for word in (text or "").split():
        key, equals, value = word.partition("=")
        if word == "flip":
            flip = True
        elif key == "scales" and equals:
            scales = _scales(value)
        else:
            raise UserError(f"--tta: expected 'flip', 'scales=0.5,1,1.5' or both with a space between, got {text!r}")
    return scales, flip


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise UserError(
            f"--tta: scales are numbers with commas between, as in scales=0.5,1,1.5, got {text!r}"
        ) from error
    if not all(0 < scale < float("inf") for scale in scales) or len(set(scales)) < len(scales):
        raise UserError(f"--tta: scales must be positive and distinct, got {text}")
    return scales


def parse_postprocess(text: str | None) -> DenseCRF | None:
    """The CRF from `crf:5`; None for none.

    Raises:
        UserError: for another word, a number of steps that is none, or if its package is missing.
    """
    if text is None:
        return None
    name, colon, steps = text.partition(":")
    if name != "crf" or (colon and not (steps.isdecimal() and int(steps) > 0)):
        raise UserError(f"--postprocess: expected crf:STEPS with 1 step or more, such as crf:5, got {text!r}")
    try:
        import_package()
    except ModuleNotFoundError as error:
        raise UserError(f"--postprocess {text}: {error}") from error
    return DenseCRF(steps=int(steps)) if colon else DenseCRF()


def as_logits(probs: Tensor) -> Tensor:
    """Logits whose softmax is `probs`: their logarithm, finite where they are zero.

    Example:
        >>> as_logits(torch.tensor([0.25, 0.75])).softmax(0)
        tensor([0.2500, 0.7500])
    """
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
