"""Console of the tables and messages that commands print."""

import os
import sys

from rich.console import Console

FILE_WIDTH = 200


def make_console() -> Console:
    """Create a console of standard output; a pipe or file without COLUMNS is `FILE_WIDTH` wide, not 80."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if has_width else FILE_WIDTH)
