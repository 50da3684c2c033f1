"""Words to protocols, and what they do to probabilities."""

import sys

import pytest
import torch
from torch import nn

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.crf import DenseCRF, import_package
from beyondpixel.experiments.inference.protocol import Protocol, as_logits


def test_nothing_said_is_one_look_at_the_whole_image() -> None:
    protocol = Protocol.parse()
    assert protocol.is_default
    assert protocol.words == {"tta": None, "window": None, "postprocess": None}
    images, network = torch.randn(2, 3, 9, 11), nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        assert torch.equal(protocol.network_probs(network, images), network(images).softmax(1))


def test_words_there_and_back() -> None:
    protocol = Protocol.parse(tta="flip scales=0.5,1,1.75", window=65, overlap=0.25, postprocess="crf:10")
    assert protocol == Protocol((0.5, 1.0, 1.75), True, 65, 0.25, DenseCRF(steps=10))
    assert protocol.views == 6
    assert protocol.words == {
        "tta": "scales=0.5,1,1.75 flip",
        "window": "65 overlap=0.25",
        "postprocess": "crf:10",
    }
    assert Protocol.parse(postprocess="crf").words["postprocess"] == "crf:5"


def test_windows_lie_within_views() -> None:
    seen: list[tuple[int, ...]] = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape[2:]))
        return images[:, :2]

    probs = Protocol.parse(tta="scales=0.5,1", window=16, overlap=0.0).network_probs(network, torch.zeros(1, 3, 24, 32))
    assert seen == [(12, 16), *[(16, 16)] * 4]
    torch.testing.assert_close(probs, torch.full((1, 2, 24, 32), 0.5))


def test_half_precision_logits_become_full_precision_probabilities() -> None:
    probs = Protocol().network_probs(lambda images: images.bfloat16(), torch.randn(1, 3, 4, 4))
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 4, 4))


def test_as_logits_is_undone_by_softmax_even_at_zero() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.75]])
    assert as_logits(probs).isfinite().all()
    torch.testing.assert_close(as_logits(probs).softmax(1), probs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"tta": "flop"}, "--tta: expected 'flip', 'scales=0.5,1,1.5' or both with a space between, got 'flop'"),
        ({"tta": "scales=1,x"}, "--tta: scales are numbers with commas between, as in scales=0.5,1,1.5, got '1,x'"),
        ({"tta": "scales=1,0"}, "--tta: scales must be positive and distinct, got 1,0"),
        ({"tta": "scales=1,1"}, "--tta: scales must be positive and distinct, got 1,1"),
        ({"overlap": 0.5}, "--overlap is that of sliding windows: give --window PIXELS as well"),
        ({"window": 0}, "--window, --overlap: window must be a number of pixels, 1 or more, got 0"),
        ({"window": 9, "overlap": 1.0}, "--window, --overlap: overlap must be at least 0 and below 1"),
        ({"postprocess": "crf:0"}, "--postprocess: expected crf:STEPS with 1 step or more, such as crf:5, got 'crf:0'"),
        ({"postprocess": "blur"}, "--postprocess: expected crf:STEPS"),
    ],
)
def test_words_that_mean_nothing(words: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Protocol.parse(**words)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_crf_without_its_package_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    import_package.cache_clear()
    with pytest.raises(UserError, match=r"--postprocess crf:5: .* not installed: pip install 'beyondpixel\[crf\]'"):
        Protocol.parse(postprocess="crf:5")
    import_package.cache_clear()
