import pytest
import torch
from torch import Tensor, nn

from beyondpixel.lightning_modules.networks import FeatureGrid, build_encoder


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 80), (65, 81), (513, 479)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_upsampling_puts_values_where_they_were_computed(
    stride: int, size: tuple[int, int], align_corners: bool
) -> None:
    grid = FeatureGrid(stride=stride, align_corners=align_corners)
    height, width = grid.padded_size(size)
    # where the features' centres are, in pixels: 0, s, 2s, ... or the middle of each patch
    first = 0.0 if align_corners else (stride - 1) / 2
    count = (width - 1) // stride + 1 if align_corners else width // stride
    centres = (first + stride * torch.arange(count)).expand(1, 1, 2, count)
    columns = grid.upsample(centres, (height, width))[0, 0, 0]
    inside = slice(0, width) if align_corners else slice(stride // 2, width - stride // 2)
    torch.testing.assert_close(columns[inside], torch.arange(float(width))[inside])


def test_padding_is_least_and_zero_and_behind() -> None:
    grid = FeatureGrid(stride=16, align_corners=True)
    assert grid.padded_size((513, 513)) == (513, 513)
    assert grid.padded_size((512, 514)) == (513, 529)
    assert grid.padded_size((1, 3)) == (17, 17)
    assert FeatureGrid(stride=8, align_corners=False).padded_size((8, 9)) == (8, 16)
    images = torch.rand(1, 3, 5, 20)
    padded = grid.pad(images)
    assert padded.shape == (1, 3, 17, 33)
    torch.testing.assert_close(padded[..., :5, :20], images, rtol=0, atol=0)
    assert padded.count_nonzero() == images.count_nonzero()


def _centre_of_view(encoder: nn.Module, size: int, index: int) -> float:
    """Mean column that the middle row's feature ``index`` sees, where all weights are alike and all activations live.

    With constant positive weights, the gradient of a feature in the image is the number of paths from each pixel.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
            module.double()
        elif isinstance(module, nn.BatchNorm2d):
            module.double()
    encoder.eval()
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    features: Tensor = encoder(image)[-1]
    features[0, :, features.shape[-2] // 2, index].sum().backward()
    assert image.grad is not None
    seen = image.grad.sum(dim=(0, 1, 2))
    return float((seen * torch.arange(size)).sum() / seen.sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet101s", "mobilenet_v2", "efficientnet-b0", "efficientnet-b1"])
def test_features_of_strided_convolutions_are_centered_align_corners(name: str) -> None:
    encoder, grid = build_encoder(name, output_stride=16)
    assert grid.align_corners
    # max pooling routes gradients to one of equal pixels; an average sees its whole window
    for parent in list(encoder.modules()):
        for child_name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, child_name, nn.AvgPool2d(3, stride=2, padding=1))
            if isinstance(child, nn.ReLU6):
                setattr(parent, child_name, nn.ReLU())
    # the middle of 257 pixels is feature 8 of 17, which the borders' padding affects alike on both sides
    assert _centre_of_view(encoder, 257, 8) == pytest.approx(128, abs=0.01)


def test_patches_are_told_from_pixels() -> None:
    assert not build_encoder("tu-convnext_atto", output_stride=16)[1].align_corners


@pytest.mark.parametrize(("align_corners", "shift"), [(True, 0.5), (False, 0.0)])
@pytest.mark.parametrize("stride", [8, 16])
def test_framed_labels_fit_upsampling_that_is_not_aligned_with_corners(
    align_corners: bool, shift: float, stride: int
) -> None:
    """Features that hold the column they were computed at give back each pixel's own column, or half a pixel more."""
    grid = FeatureGrid(stride=stride, align_corners=align_corners)
    height, width = 37, 90
    padded = grid.padded_size((height, width))
    rows, columns = (length // stride + (1 if align_corners else 0) for length in padded)
    centres = torch.arange(columns, dtype=torch.float64) * stride + (0 if align_corners else (stride - 1) / 2)
    target = torch.arange(width).expand(1, height, width).contiguous()
    framed = grid.pad_target(target, ignore_index=255)
    features = centres.expand(1, 1, rows, columns).contiguous()
    fine = nn.functional.interpolate(features, size=framed.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    assert framed.shape[-2:] == (rows * stride, columns * stride)
    assert (framed != 255).sum() == height * width
    inside = (framed != 255) & (framed >= stride) & (framed < centres[-1])
    torch.testing.assert_close(fine[inside], framed[inside].double() + shift)
