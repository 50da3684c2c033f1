"""Export of a trained network: an ONNX graph, or a state dict."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.errors import UserError

TOLERANCE = 1e-4
# an odd size, a multiple of the strides, the papers' kind of size (a multiple plus one), and a batch of several
CHECKED_SIZES = ((1, 75, 101), (1, 64, 96), (2, 97, 129), (3, 50, 33))


def describe(data: SegmentationDataModule, *, normalize: bool = False) -> dict[str, Any]:
    """Describe the network for its users: `input`, `output`, `mean`, `std`, `class_names`, `palette`."""
    kind = "uint8, 0..255" if normalize else "float32, (x / 255 - mean) / std"
    size = (
        "any size" if data.image_size is None else "trained on images resized to {}x{} (HxW)".format(*data.image_size)
    )
    return {
        "input": f"images: (N, 3, H, W) RGB, {kind}; {size}",
        "output": "logits: (N, C, H, W); the class of a pixel is their argmax over C",
        "mean": list(data.mean),
        "std": list(data.std),
        "class_names": list(data.class_names),
        "palette": [list(color) for color in data.palette],
    }


def write_onnx(network: nn.Module, output: Path, metadata: Mapping[str, Any], *, normalize: bool = False) -> float:
    """Write a network as one ONNX file, and keep it if ONNX Runtime agrees with PyTorch.

    Args:
        network: the network.
        output: the file.
        metadata: metadata of the file, stored as JSON texts by name.
        normalize: whether the network takes uint8 images.

    Returns:
        The largest difference to PyTorch's logits over several sizes, as a share of the largest logit.

    Raises:
        UserError: if a package is missing, or the difference is above 1e-4; a file that was there before stays.
    """
    runtime = _require("onnxruntime")
    _require("onnx")
    _require("onnxscript")  # torch's exporter is written in it
    network = network.cpu().eval()
    part = output.with_name(f".{output.name}.part")
    try:
        _trace(network, part, metadata, torch.uint8 if normalize else torch.float32)
        session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        difference = max(_difference(network, session, size, normalize=normalize) for size in CHECKED_SIZES)
        if not difference <= TOLERANCE:
            raise UserError(
                f"--format onnx: ONNX Runtime's logits differ from PyTorch's by {difference:.1e} of the largest, more "
                f"than {TOLERANCE:.0e}; no file is kept. Use --format state_dict"
            )
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return difference


def _trace(network: nn.Module, output: Path, metadata: Mapping[str, Any], dtype: torch.dtype) -> None:
    sizes = {0: "batch", 2: "height", 3: "width"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program: Any = torch.onnx.export(
                network,
                (torch.zeros(2, 3, 75, 101, dtype=dtype),),
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
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(output, external_data=False)


@torch.inference_mode()
def _difference(network: nn.Module, session: Any, size: tuple[int, int, int], *, normalize: bool) -> float:
    batch, height, width = size
    generator = torch.Generator().manual_seed(height)
    if normalize:
        images = torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    else:
        images = torch.randn(batch, 3, height, width, generator=generator)
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
