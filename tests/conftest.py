"""What every test may use."""

import importlib.util
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]

# Gloo looks the host's name up unless it is told an interface. There a forked process may wait for ever, if another
# thread of the tests' process, such as W&B's, was looking up a name: libc's lock is copied as it is held.
os.environ.setdefault("GLOO_SOCKET_IFNAME", next(name for _, name in socket.if_nameindex() if name.startswith("lo")))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test draws the same numbers each time it runs, alone or after others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests() -> Iterator[None]:
    """PyTorch compiles a function for at most eight kinds of arguments in a process."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and reference arrays: a folder `shared` beside the checkout, or where BEYONDPIXEL_SHARED points."""
    folder = Path(os.environ.get("BEYONDPIXEL_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference arrays or real data at {folder} (set BEYONDPIXEL_SHARED to use a copy elsewhere)")
    return folder


@pytest.fixture(scope="session")
def load_file() -> Callable[[Path], ModuleType]:
    """Imports a file that lies beside a test, once: with import mode importlib, a test cannot import it itself."""

    def load(file: Path) -> ModuleType:
        if file.stem not in sys.modules:
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[file.stem] = module
            spec.loader.exec_module(module)
        return sys.modules[file.stem]

    return load
