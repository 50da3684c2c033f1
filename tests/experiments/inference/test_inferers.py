"""Words to inferers, and what inferers around one another do to logits."""

import copy
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beyondpixel.datamodules import FolderDataModule, ShapesDataModule
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.inferers import InfererOptions, parse_inferer
from beyondpixel.experiments.inference.mean_field import import_package
from beyondpixel.experiments.inference.probabilities import to_logits, to_probs
from beyondpixel.experiments.inference.sliding import SlidingWindow
from beyondpixel.experiments.inference.tta import TestTimeAugmentation
from beyondpixel.lightning_modules import DeepLabModule, MCIBIModule

DATA = ShapesDataModule()


def test_words_to_options_in_any_order() -> None:
    options = parse_inferer("crf:10 + window:65 overlap=0.25+tta:scales=0.5,1,1.75 flip")
    assert options.tta == TestTimeAugmentation((0.5, 1.0, 1.75), flip=True)
    assert options.window == SlidingWindow(65, 0.25)
    assert options.crf_steps == 10
    axes = {"tta": "flip scales=0.5,1,1.75", "window": "65 overlap=0.25", "postprocess": "crf:10"}
    assert options.axes == {"memory_rows": None, **axes}
    assert options.slug == "tta-flip-scales-0.5-1-1.75-window-65-overlap-0.25-crf-10"


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        ("crf", "crf-5"),
        ("crf:1", "crf-1"),
        ("tta:flip", "tta-flip"),
        ("tta:scales=0.5", "tta-scales-0.5"),
        ("tta:scales=1", "tta-scales-1"),
        ("window:513", "window-513-overlap-0.333"),
        ("tta:flip+crf:10", "tta-flip-crf-10"),
        ("tta:flip+memory:exchanged", "memory-rows-exchanged-tta-flip"),
    ],
)
def test_a_folder_name_for_each(words: str, slug: str) -> None:
    assert parse_inferer(words).slug == slug


def test_without_options_it_is_the_network() -> None:
    images, network = torch.randn(2, 3, 9, 11), torch.nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        assert torch.equal(InfererOptions().build(DATA)(images, network), network(images))


def test_crops_lie_within_augmented_passes() -> None:
    seen: list[tuple[int, ...]] = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape[2:]))
        return images[:, :2]

    inferer = parse_inferer("window:16 overlap=0+tta:scales=0.5,1").build(DATA)
    logits = inferer(torch.zeros(1, 3, 24, 32), network)
    assert seen == [(12, 16), *[(16, 16)] * 4]
    torch.testing.assert_close(logits.softmax(1), torch.full((1, 2, 24, 32), 0.5))


def test_half_precision_logits_become_full_precision_probabilities() -> None:
    probs = to_probs(torch.randn(1, 3, 4, 4).bfloat16())
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 4, 4))


def test_logits_of_probabilities_are_finite_even_at_zero() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.75]])
    assert to_logits(probs).isfinite().all()
    torch.testing.assert_close(to_probs(to_logits(probs)), probs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "",
            "inferer '': expected crf:STEPS, 'tta:flip scales=0.5,1', 'window:PIXELS overlap=0.33' or memory:exchanged",
        ),
        ("blur", "or several joined by +, got 'blur'"),
        ("tta:flip++crf:1", "or several joined by +, got ''"),
        ("crf:1+crf:2", "inferer 'crf:1+crf:2': crf is given twice; expected it once"),
        ("tta:flop", "expected flip, scales=0.5,1,1.5 or both with a space between, got 'flop'"),
        ("tta", "expected flip, scales=0.5,1,1.5 or both with a space between, got nothing"),
        ("tta:scales=1,x", "inferer 'tta:scales=1,x': scales: expected numbers, got 'x'"),
        ("tta:scales=1,0", "scales must be in 0.1..4"),
        ("tta:scales=1,1", "scales must be one or more distinct factors, got 1,1"),
        ("tta:scales=1e9", "scales must be in 0.1..4, because the memory of a pass grows with a scale's square"),
        ("tta:scales=nan", "scales must be in 0.1..4"),
        ("window:0", "size must be a number of pixels, 1 to 65535, got 0"),
        ("window:many", "inferer 'window:many': size: expected a whole number, got 'many'"),
        ("window:9 overlap=1", "overlap must be at least 0 and below 1, a share of the crop, got 1.0"),
        ("window:9 0.3", "expected window:PIXELS overlap=SHARE, got '9 0.3'"),
        ("memory", "inferer 'memory': expected memory:exchanged, got 'nothing'"),
        ("memory:lost", "inferer 'memory:lost': expected memory:exchanged, got 'lost'"),
        ("crf:0", "inferer 'crf:0': expected crf:STEPS with 1 to 9999 steps, such as crf:5, got '0'"),
        ("crf:10000", "expected crf:STEPS with 1 to 9999 steps, such as crf:5, got '10000'"),
        ("crf:1e3", "expected crf:STEPS with 1 to 9999 steps, such as crf:5, got '1e3'"),
    ],
)
def test_words_that_mean_nothing(words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_inferer(words)
    assert message in str(caught.value)


PIECES = st.sampled_from(
    [
        "crf",
        "tta",
        "window",
        "memory",
        "exchanged",
        ":",
        "+",
        "=",
        ",",
        " ",
        "scales",
        "overlap",
        "flip",
        "1",
        "0.5",
        "1e9",
        "-2",
        "nan",
    ]
)


@given(words=st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=12).map("".join)))
def test_any_words_are_options_or_one_message(words: str) -> None:
    try:
        options = parse_inferer(words)
    except UserError:
        return
    assert options.slug
    assert parse_inferer("+".join(filter(None, _canonical(options)))).slug == options.slug


def _canonical(options: InfererOptions) -> list[str | None]:
    axes = options.axes
    words = {"memory": axes["memory_rows"], "tta": axes["tta"], "window": axes["window"]}
    return [*(value and f"{name}:{value}" for name, value in words.items()), axes["postprocess"]]


@pytest.mark.parametrize("memory", ["features", "statistics"])
def test_each_class_has_the_memory_of_the_one_before_it(memory: Any) -> None:
    # with fewer channels, an untrained network may well have none above zero for its rectifiers to let through
    small = {"encoder": "tu-test_resnet", "channels": 32, "attention_channels": 32}
    module = MCIBIModule(num_classes=4, memory=memory, **small).eval()
    rows = module.network.memory.memory
    rows.copy_(torch.rand_like(rows) * torch.arange(1.0, 5.0).view(4, *[1] * (rows.ndim - 1)))
    module.network.memory.seen[:3] = True  # the last class was never seen
    other = copy.deepcopy(module)
    for name in ("memory", "seen"):
        buffer = getattr(other.network.memory, name)
        buffer.copy_(torch.stack([buffer[3], buffer[0], buffer[1], buffer[2]]))
    images = torch.randn(1, 3, 48, 64)
    own = {name: state.clone() for name, state in module.state_dict().items()}
    inferer = parse_inferer("memory:exchanged+tta:flip").build(DATA)
    with torch.no_grad():
        expected = parse_inferer("tta:flip").build(DATA)(images, other)
        assert not torch.allclose(expected, parse_inferer("tta:flip").build(DATA)(images, module))
        torch.testing.assert_close(inferer(images, module), expected, rtol=0, atol=0)
    assert all(torch.equal(state, own[name]) for name, state in module.state_dict().items())


@pytest.mark.parametrize("network", [DeepLabModule(3, encoder="tu-test_resnet"), torch.nn.Conv2d(3, 4, 1)])
def test_a_network_without_a_memory_is_named(network: torch.nn.Module) -> None:
    with pytest.raises(UserError, match=f"expected MCIBIModule with memory .* got {type(network).__name__}, which has"):
        parse_inferer("memory:exchanged").build(DATA)(torch.zeros(1, 3, 32, 32), network)


def test_a_crf_without_its_package_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    import_package.cache_clear()
    with pytest.raises(UserError, match=r"inferer 'crf:5': .* not installed: pip install 'beyondpixel\[crf\]'"):
        parse_inferer("crf:5")
    import_package.cache_clear()


def test_padding_would_be_seen_by_the_crf(tmp_path: object) -> None:
    data = FolderDataModule.__new__(FolderDataModule)
    data.image_size, data.eval_batch_size = None, 2
    with pytest.raises(UserError, match="batches of 2 images of different sizes: set --data.eval_batch_size 1"):
        parse_inferer("crf:1").build(data)
