"""Ways to predict faster give the same classes: torch.compile and bfloat16."""

import pytest
import torch

from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.experiments.inference.inferers import InfererOptions, parse_inferer
from beyondpixel.lightning_modules import DeepLabModule


@pytest.fixture
def module() -> DeepLabModule:
    torch.manual_seed(0)
    module = DeepLabModule(4, encoder="resnet18", norm_momentum=0.5)
    with torch.no_grad():
        module.train()(torch.randn(2, 3, 65, 65))
    return module.eval()


IMAGES = torch.nn.functional.interpolate(
    torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(3)), size=(49, 67), mode="bicubic"
)


@pytest.mark.parametrize("words", [None, "tta:flip"])
@torch.inference_mode()
def test_bfloat16(module: DeepLabModule, words: str | None) -> None:
    options = InfererOptions() if words is None else parse_inferer(words)
    module.inferer = options.build(ShapesDataModule())
    exact = module.infer(IMAGES).softmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        probs = module.infer(IMAGES).float().softmax(1)
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 49, 67))
    # bfloat16 has 8 bits: two to three digits
    assert (probs - exact).abs().mean() < 0.02
    assert (probs.argmax(1) == exact.argmax(1)).float().mean() > 0.97


@pytest.mark.slow
@torch.inference_mode()
def test_compiled(module: DeepLabModule) -> None:
    # the "aot_eager" backend traces and lowers everything and leaves out the C++ compiler, which takes minutes
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for images in (IMAGES, IMAGES[..., :40, :50]):
        torch.testing.assert_close(compiled(images), module(images), rtol=1e-4, atol=1e-5)
