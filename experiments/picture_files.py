"""Endings of picture files."""

from pathlib import Path

from beyondpixel.experiments.errors import UserError

ENDINGS = (".png", ".pdf", ".svg")


def check_ending(option: str, file: Path | None) -> None:
    """Raise a UserError unless the file, if one is given, has an ending of `ENDINGS`.

    Example:
        >>> from pathlib import Path
        >>> check_ending("--plot", Path("plot.gif"))
        Traceback (most recent call last):
        beyondpixel.experiments.errors.UserError: --plot: expected a file that ends in .png, .pdf, .svg, got plot.gif
    """
    if file is not None and file.suffix.lower() not in ENDINGS:
        raise UserError(f"{option}: expected a file that ends in {', '.join(ENDINGS)}, got {file}")
