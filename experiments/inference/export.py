"""A trained network for use without this package: ONNX, or a plain state dict."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import config_beside, load_module
from beyondpixel.lightning_modules import SegmentationModule

TOLERANCE = 1e-4
# an odd size, a multiple of the strides, the papers' kind of size (a multiple plus one), and a batch of several
CHECKED_SIZES = ((1, 75, 101), (1, 64, 96), (2, 97, 129), (3, 50, 33))


def export(
    checkpoint: Path, output: Path, *, format: Literal["onnx", "state_dict"], config_file: Path | None = None
) -> None:
    """Write the network of a checkpoint, and say how it is used.

    Args:
        checkpoint: of a run.
        output: the file to write.
        format: "onnx", a graph from `images` float32 (N, 3, H, W), normalised, any N, H and W, to `logits`
            (N, C, H, W); or "state_dict", the weights of `module.network`.
        config_file: the run's config; the one beside the checkpoint's folder if None.

    Raises:
        UserError: if the checkpoint cannot be loaded, a package is missing, the output cannot be written, or ONNX
            Runtime's logits are off by more than 1e-4 of the largest.
    """
    module = load_module(checkpoint, config_beside(checkpoint, config_file))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if format == "onnx":
            difference = write_onnx(module, output)
            print(
                f"{output}: ONNX Runtime's logits differ from PyTorch's by at most {difference:.1e} of the largest, at "
                f"{len(CHECKED_SIZES)} sizes"
            )
        else:
            torch.save(module.network.state_dict(), output)
            print(f"{output}: load it with {type(module).__name__}(...).network.load_state_dict(torch.load(FILE))")
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror or error})") from error


def write_onnx(module: SegmentationModule, output: Path) -> float:
    """Write the network as one ONNX file and run it.

    Returns:
        The largest difference to PyTorch's logits over several sizes, as a share of the largest logit.

    Raises:
        UserError: if a package is missing, or the difference is above 1e-4; then the file is removed.
    """
    runtime = _require("onnxruntime")
    _require("onnx")
    _require("onnxscript")  # torch's exporter is written in it
    network = module.network.cpu().eval()
    _trace(network, output)
    session = runtime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    difference = max(_difference(network, session, *size) for size in CHECKED_SIZES)
    if not difference <= TOLERANCE:
        output.unlink()
        raise UserError(
            f"--format onnx: ONNX Runtime's logits differ from PyTorch's by {difference:.1e} of the largest, more than "
            f"{TOLERANCE:.0e}; no file is kept. Use --format state_dict"
        )
    return difference


def _trace(network: nn.Module, output: Path) -> None:
    sizes = {0: "batch", 2: "height", 3: "width"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program: Any = torch.onnx.export(
                network,
                (torch.zeros(2, 3, 75, 101),),
                dynamo=True,
                dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in sizes.items()},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
    except RuntimeError as error:  # torch.onnx's errors are of this kind
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--format onnx: {type(network).__name__} cannot be traced for images of any size ({reason}); "
            "use --format state_dict"
        ) from error
    program.save(output, external_data=False)


@torch.inference_mode()
def _difference(network: nn.Module, session: Any, batch: int, height: int, width: int) -> float:
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
    expected: Tensor = network(images)
    (logits,) = session.run(None, {"images": images.numpy()})
    return float((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max())


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format onnx needs the package {package}, which is not installed: pip install 'beyondpixel[export]'"
        ) from error
