"""Extensions of image files that commands write."""

from pathlib import Path

from beyondpixel.experiments.errors import UserError

EXTENSIONS = (".png", ".pdf", ".svg")


def check_extension(option: str, file: Path | None) -> None:
    """Raise a UserError unless the file, if one is given, has an extension of `EXTENSIONS`.

    Example:
        >>> from pathlib import Path
        >>> check_extension("--plot", Path("plot.gif"))
        Traceback (most recent call last):
        beyondpixel.experiments.errors.UserError: --plot: expected a file that ends in .png, .pdf, .svg, got plot.gif
    """
    if file is not None and file.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{option}: expected a file that ends in {', '.join(EXTENSIONS)}, got {file}")
