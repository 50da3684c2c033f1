"""Ways to predict faster give the same classes: torch.compile and bfloat16."""

import pytest
import torch

from beyondpixel.experiments.inference.protocol import Protocol
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


@pytest.mark.parametrize("tta", [None, "flip"])
def test_bfloat16(module: DeepLabModule, tta: str | None) -> None:
    protocol = Protocol.parse(tta=tta)
    exact = protocol.network_probs(module, IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        probs = protocol.network_probs(module, IMAGES)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 49, 67))
    # bfloat16 has 8 bits: two to three digits
    assert (probs - exact).abs().mean() < 0.02
    assert (probs.argmax(1) == exact.argmax(1)).float().mean() > 0.97


@pytest.mark.slow
def test_compiled(module: DeepLabModule) -> None:
    exact = Protocol().network_probs(module, IMAGES)
    # the "aot_eager" backend traces and lowers everything and leaves out the C++ compiler, which takes minutes
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(Protocol().network_probs(compiled, IMAGES), exact, rtol=1e-4, atol=1e-5)
    smaller = IMAGES[..., :40, :50]
    torch.testing.assert_close(
        Protocol().network_probs(compiled, smaller), Protocol().network_probs(module, smaller), rtol=1e-4, atol=1e-5
    )
