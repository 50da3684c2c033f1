"""The Triton kernels without a GPU: their results in Triton's interpreter, and what they compile to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import PropertyMock

import pytest
import torch

from beyondpixel.losses.ops import operators, plain

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


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[PropertyMock]:
    """Stands for Triton's driver, of which a part is compiled when it is read first."""
    active = PropertyMock()
    monkeypatch.setattr("triton.runtime.driver", type("Driver", (), {"active": active})())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    operators._load_triton.cache_clear()
    yield active
    operators._load_triton.cache_clear()


def _on_cuda() -> ModuleType:
    preds = SimpleNamespace(device=torch.device("cuda"))
    return operators.implementation("auto", preds, fits_c=True, fits_triton=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler"),
        subprocess.CalledProcessError(1, ["gcc", "driver.c"]),
        FileNotFoundError("/sbin/ldconfig"),
        AssertionError("libcuda.so cannot found!"),
    ],
)
def test_where_triton_cannot_compile_its_driver_the_losses_go_on_plainly(
    driver: PropertyMock, error: Exception
) -> None:
    driver.side_effect = error
    with pytest.warns(UserWarning, match=r"plain PyTorch backend.* because Triton cannot be used \(") as caught:
        assert [_on_cuda(), _on_cuda()] == [plain, plain]
    assert len(caught) == 1


def test_where_it_can_the_kernels_run(driver: PropertyMock) -> None:
    assert _on_cuda().__name__ == "beyondpixel.losses.ops.triton"
    assert driver.called
