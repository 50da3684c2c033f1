"""Reference implementations of the tests, which are the baselines of the benchmarks."""

import runpy
from pathlib import Path
from types import SimpleNamespace

TESTS = Path(__file__).resolve().parents[2] / "tests"


def load_from_tests(file: str) -> SimpleNamespace:
    """Execute a file of the tests, which are not a package, and return what it defines.

    Args:
        file: its path below `tests/`.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    return SimpleNamespace(**runpy.run_path(str(TESTS / file)))
