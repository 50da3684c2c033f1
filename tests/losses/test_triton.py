"""The Triton kernels without a GPU: their results in Triton's interpreter, and what they compile to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA wheels only")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """What went wrong in each case, "" where nothing did."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(HERE / "triton_interpreter.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, str] = json.loads(done.stdout)
    return results


@pytest.mark.slow
def test_interpreted_kernels_give_what_the_plain_operators_give(
    interpreted: dict[str, str], load_file: Callable[[Path], ModuleType]
) -> None:
    cases = load_file(HERE / "triton_interpreter.py")
    assert len(interpreted) == len(cases.POOLINGS) + len(cases.REGIONS) + len(cases.EDGES)
    assert {case: error for case, error in interpreted.items() if error} == {}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_without_spills_and_fits_shared_memory(
    load_file: Callable[[Path], ModuleType], capability: int
) -> None:
    module = load_file(HERE / "triton_kernels.py")
    kernels = module.report(capability)
    assert {kernel.name.split()[0] for kernel in kernels} >= {"pool_forward", "pool_backward", "moments_forward"}
    for kernel in kernels:
        assert kernel.spilled_bytes == 0, kernel
        assert kernel.shared_bytes <= module.SHARED_LIMIT, kernel
        assert kernel.registers <= 255, kernel
