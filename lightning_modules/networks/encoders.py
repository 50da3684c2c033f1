"""Encoders by name, from segmentation-models-pytorch (SMP) and timm, dilated to output stride 8 or 16."""

import difflib
from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import nn

from beyondpixel.lightning_modules.networks.alignment import FeatureGrid, probe_grid
from beyondpixel.lightning_modules.networks.pretrained import fill_encoder, read_pretrained

# Rates of ASPP at each output stride (Chen et al., arXiv 1706.05587, section 4): they double with the resolution.
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}

# Listed in errors: one of each family that can be dilated. Others are found by trying.
DILATABLE = (
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet101s",
    "resnext50_32x4d",
    "mobilenet_v2",
    "efficientnet-b0",
    "tu-regnety_016",
    "tu-convnext_tiny",
)

# SMP's EfficientNets keep the layers after the last feature map
_UNUSED_LAYERS = (("_conv_head", "_bn1"), ("conv_head", "bn2"))

# grids of encoders built before, by name and output stride
_grids: dict[tuple[str, int], FeatureGrid] = {}


def encoder_names() -> list[str]:
    """Return all encoder names of SMP and timm; not all of these encoders can be dilated.

    Example:
        >>> {"resnet50", "mobilenet_v2", "resnet101s"} <= set(encoder_names())
        True
    """
    return sorted({*smp.encoders.get_encoder_names(), *timm.list_models()})


def resolve_encoder_name(name: str) -> str:
    """Return SMP's name of an encoder: its own names come first, timm's have the prefix `tu-`.

    Raises:
        ValueError: if neither library has it; the message lists the closest names.

    Example:
        >>> resolve_encoder_name("resnet50"), resolve_encoder_name("tu-resnet50"), resolve_encoder_name("resnet101s")
        ('resnet50', 'tu-resnet50', 'tu-resnet101s')
    """
    if name in smp.encoders.get_encoder_names():
        return name
    bare = name.removeprefix("tu-")
    if timm.is_model(bare) and ("." not in bare or timm.is_model_pretrained(bare)):
        return f"tu-{bare}"
    known = [*encoder_names(), *timm.list_pretrained()]
    close = difflib.get_close_matches(bare, known, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"for example {', '.join(DILATABLE)}"
    raise ValueError(f"unknown encoder {name!r}: neither segmentation-models-pytorch nor timm offers it; {hint}")


def build_encoder(
    name: str, *, output_stride: int, weights: str | None = None, dilate_last_stage: bool = True
) -> tuple[Any, FeatureGrid]:
    """Build an encoder whose last stages are dilated instead of strided.

    The papers' backbone, the ResNet-101 whose first convolution is three 3x3 ones (64, 64 and 128 channels), is
    `resnet101s`, from timm. SMP's `resnet101` and torchvision's have a single 7x7 convolution.

    At output stride 16, SMP and timm dilate the last stage by 2 (in timm's ResNets all but its first 3x3 convolution).
    The RMI authors remove the stride and keep the dilation at 1: `dilate_last_stage=False`.

    Args:
        name: an SMP name; or a timm name with or without `tu-`, also with a tag (`resnet50.a1_in1k`).
        output_stride: 8 or 16.
        weights: see `read_pretrained`.
        dilate_last_stage: whether the last stage is dilated at output stride 16; at 8 it always is.

    Returns:
        The encoder, which maps (N, 3, H, W) to a list of feature maps from fine to coarse, with index 2 at stride 4
        and the last at `output_stride`, and has `out_channels` (one number per map); and the grid of its features.

    Raises:
        ValueError: for an unknown name, a stride that is not 8 or 16, an encoder that cannot be dilated to it, or
            `dilate_last_stage=False` at stride 8.

    Example:
        >>> encoder, grid = build_encoder("resnet18", output_stride=16)
        >>> encoder.out_channels, grid
        ([3, 64, 64, 128, 256, 512], FeatureGrid(stride=16, align_corners=True))
    """
    if output_stride not in (8, 16):
        raise ValueError(f"output_stride must be 8 or 16, got {output_stride!r}")
    if output_stride == 8 and not dilate_last_stage:
        raise ValueError("dilate_last_stage must be true with output_stride=8, where the stage before is dilated, too")
    resolved = resolve_encoder_name(name)
    # read first, as it may fail, and building takes a second
    pretrained = None if weights is None else read_pretrained(resolved, weights)
    try:
        encoder, grid = _build_dilated(resolved, output_stride)
    except Exception as error:  # each architecture raises its own error, always for this reason
        raise ValueError(
            f"encoder {name!r} cannot be dilated to output_stride={output_stride} "
            f"({str(error) or type(error).__name__}); these can, among others: {', '.join(DILATABLE)}"
        ) from error
    if not dilate_last_stage:
        _remove_dilation(encoder)
    if pretrained is not None:
        fill_encoder(encoder, pretrained, name=name, weights=str(weights))
    return encoder, grid


def _build_dilated(resolved: str, output_stride: int) -> tuple[Any, FeatureGrid]:
    encoder: Any = smp.encoders.get_encoder(resolved, weights=None, output_stride=output_stride)
    _pad_symmetrically(encoder)
    if (resolved, output_stride) not in _grids:
        _grids[resolved, output_stride] = probe_grid(encoder, output_stride)
    for layers in _UNUSED_LAYERS:
        if hasattr(encoder, layers[0]):
            for layer in layers:  # DDP rejects trainable parameters without gradient
                getattr(encoder, layer).requires_grad_(False)
    return encoder, _grids[resolved, output_stride]


def _pad_symmetrically(encoder: nn.Module) -> None:
    """Give SMP's EfficientNets the padding that TensorFlow, where they are from, uses at sizes that fit the grid.

    It pads odd sizes by the same on both sides, and even ones by one more at the end. SMP computes the padding for the
    size of the pretraining and uses it for all, which shifts the features by up to 15 pixels at stride 16.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and isinstance(getattr(module, "static_padding", None), nn.ZeroPad2d):
            vertical, horizontal = (side // 2 for side in module.kernel_size)
            module.static_padding = nn.ZeroPad2d((horizontal, horizontal, vertical, vertical))


def _remove_dilation(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            if not isinstance(module.padding, str):
                vertical, horizontal = module.padding
                module.padding = (vertical // module.dilation[0], horizontal // module.dilation[1])
            module.dilation = (1, 1)
