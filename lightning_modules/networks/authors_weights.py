"""Conversion of the RMI authors' DeepLab weights to this package's names."""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from beyondpixel.losses.functional.arguments import check_choice

_ENCODER_AND_ASPP = (
    (r"^backbone\.", "encoder.model."),
    (r"^aspp\.aspp1\.", "decoder.aspp.branches.0."),
    (r"^aspp\.aspp2\.", "decoder.aspp.branches.1."),
    (r"^aspp\.aspp3\.", "decoder.aspp.branches.2."),
    (r"^aspp\.aspp4\.", "decoder.aspp.branches.3."),
    (r"\.atrous_conv\.", ".0."),
    (r"(branches\.\d)\.bn\.", r"\1.1."),
    (r"^aspp\.global_avg_pool\.1\.", "decoder.aspp.image.0."),
    (r"^aspp\.global_avg_pool\.2\.", "decoder.aspp.image.1."),
    (r"^aspp\.conv1\.", "decoder.aspp.fuse.0."),
    (r"^aspp\.bn1\.", "decoder.aspp.fuse.1."),
)
_HEAD = {
    "v3": ((r"^last_conv\.", "classifier."),),
    "v3plus": (
        (r"^decoder\.conv1\.", "decoder.reduce.0."),
        (r"^decoder\.bn1\.", "decoder.reduce.1."),
        (r"^decoder\.last_conv\.([01])\.", r"decoder.fuse.0.\1."),
        (r"^decoder\.last_conv\.3\.", "decoder.fuse.1.0."),
        (r"^decoder\.last_conv\.4\.", "decoder.fuse.1.1."),
        (r"^decoder\.last_conv\.7\.", "classifier."),
    ),
}


def convert_authors_state_dict(state: Mapping[str, Tensor], *, variant: Literal["v3", "v3plus"]) -> dict[str, Tensor]:
    """Rename the weights of the published code of Zhao et al. (NeurIPS 2019) for `DeepLab`.

    Args:
        state: the authors' state dict, names to tensors; names may start with `module.`, as DataParallel saves them.
        variant: the network that the state dict is from.

    Returns:
        The same tensors under the names of
        `DeepLab(C, variant=variant, encoder="resnet101s", decoder="paper", dilate_last_stage=False)`, whose
        `load_state_dict` accepts them with `strict=True`.

    Raises:
        ValueError: for an unknown variant, or a name that this network does not have.

    Example:
        >>> import torch
        >>> list(convert_authors_state_dict({"last_conv.bias": torch.zeros(21)}, variant="v3"))
        ['classifier.bias']
    """
    check_choice("variant", variant, _HEAD)
    converted = {}
    for name, tensor in state.items():
        ours = name.removeprefix("module.")
        for theirs, replacement in (*_ENCODER_AND_ASPP, *_HEAD[variant]):
            ours = re.sub(theirs, replacement, ours)
        if not ours.startswith(("encoder.", "decoder.aspp.", "decoder.reduce.", "decoder.fuse.", "classifier.")):
            raise ValueError(
                f"state has {name!r}, which the authors' {variant!r} does not have; pass their network's state dict "
                "(not a checkpoint that contains one) and its variant"
            )
        converted[ours] = tensor
    return converted
