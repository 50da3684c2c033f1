"""Reference implementations of the tests, which are the baselines of the benchmarks."""

import importlib.util
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parents[2] / "tests"


def load_from_tests(file: str) -> ModuleType:
    """Import a file of the tests, which are not a package.

    Args:
        file: its path below `tests/`.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = TESTS / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
