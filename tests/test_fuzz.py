"""Drawn inputs: each gives a result, or one error that names what is wrong with it, and never any other exception."""

import contextlib
import functools
import io
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from beyondpixel.datamodules import FolderDataModule
from beyondpixel.datamodules.datasets.errors import BadFileError, DataError
from beyondpixel.datamodules.datasets.reading import read_image
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import read_checkpoint
from beyondpixel.experiments.inference.inferers import parse_inferer
from beyondpixel.experiments.inference.predict import find_images
from beyondpixel.experiments.resolve import resolve
from beyondpixel.experiments.spec import load_specs
from beyondpixel.losses import LOSSES, build_loss

EXAMPLES = 5000 if os.environ.get("BEYONDPIXEL_FAULTS") == "full" else 40
pytestmark = [pytest.mark.slow, pytest.mark.faults]
TRIED: Counter[str] = Counter()
bounded = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def fuzz(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`given`, with a count of what was tried."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @bounded
        @given(*strategies)
        @functools.wraps(test)
        def counted(*values: Any, **named: Any) -> None:
            TRIED[test.__name__] += 1
            test(*values, **named)

        return counted

    return decorate


@pytest.fixture(autouse=True)
def report(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[None]:
    yield
    record_property("tried", TRIED[request.node.name])


WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["recipe/demo", "data/shapes", "rmi", "ce", "..", "/etc/passwd", "\0", "a" * 300, "x/" * 3000]),
)
NUMBERS = st.one_of(st.integers(-3, 9), st.integers(), st.floats(), st.sampled_from([10**40, -(10**18)]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
BYTES = st.binary(max_size=300)
SPEC = {
    "base": ["recipe/demo"],
    "config": {
        "model": {
            "class_path": "DeepLabModule",
            "init_args": {"encoder": "resnet18", "loss": {"name": "rmi"}, "lr": 0.1},
        },
        "data": {"class_path": "ShapesDataModule", "init_args": {"batch_size": 4, "image_size": [32, 48]}},
        "trainer": {"max_steps": 10, "callbacks": []},
    },
    "reference": {"metric": "test/mIoU", "value": 50.0, "source": "nowhere", "per_class": {"a": 1.0}},
    "evaluations": ["tta:flip"],
    "grid": {"loss": {"model.loss": {"a": "ce", "b": "rmi"}}, "steps": {"trainer.max_steps": [10, 20]}},
    "row": "{loss}_{steps}",
}


def paths_of(tree: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tree, dict):
        return [above]
    return [*([above] if above else []), *(path for key in tree for path in paths_of(tree[key], (*above, key)))]


@st.composite
def spec_files(draw: st.DrawFn) -> bytes:
    """A sound spec of which some places hold something else, or bytes that are none."""
    if draw(st.integers(0, 5)) == 0:
        return draw(BYTES)
    spec = yaml.safe_load(yaml.safe_dump(SPEC))
    for key in draw(st.sets(st.sampled_from(list(SPEC)))):
        del spec[key]
    for path in draw(st.lists(st.sampled_from(paths_of(SPEC)), max_size=3)):
        place = spec
        for key in path[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[draw(WORDS) if draw(st.booleans()) else path[-1]] = draw(VALUES)
    text = yaml.dump(spec, allow_unicode=True).encode("utf-8", "surrogatepass")
    cut = draw(st.integers(0, len(text)))
    return text if draw(st.integers(0, 5)) else text[:cut] + draw(st.binary(max_size=3)) + text[cut + 1 :]


@contextlib.contextmanager
def expect(*kinds: type[Exception]) -> Iterator[None]:
    """Let errors of some kinds pass, if they say something."""
    said = None
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        except kinds as error:
            said = str(error)
    assert said is None or (said.strip() and "Traceback" not in said), said


@fuzz(spec_files())
def test_spec_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table" / "row.yaml"
        file.parent.mkdir()
        file.write_bytes(content)
        with expect(UserError):
            for spec in load_specs([file]):
                resolve(spec)


@fuzz(st.one_of(WORDS, st.text(alphabet="camvid_small/rmi.\0~", max_size=20)))
def test_names_of_specs(place: str) -> None:
    assume(Path(os.path.normpath(place or ".")) != Path("/"))  # all files of the machine
    with tempfile.TemporaryDirectory() as folder:
        below = Path(folder) / "empty"
        below.mkdir()
        with contextlib.chdir(below), expect(UserError):
            load_specs([place])


CLASSES = {
    "masks": "index",
    "classes": [{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [0, 160, 0]}],
    "void": [255],
}
NAMES = st.one_of(WORDS, st.sampled_from(["a", "a.png", "b", "../a", "a\r", "é"]))


def png(draw: st.DrawFn, mode: str) -> bytes:
    size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    image = Image.new(mode, size, draw(st.integers(0, 3)))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    content = stream.getvalue()
    cut = draw(st.integers(0, len(content)))
    return content if draw(st.integers(0, 3)) else content[:cut] + draw(st.binary(max_size=4)) + content[cut + 2 :]


@st.composite
def data_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """A class file, a list, images and masks, each of which may be something else."""
    classes = dict(CLASSES)
    for key in draw(st.lists(st.sampled_from(["masks", "classes", "void", "other"]), max_size=1)):
        classes[key] = draw(VALUES)
    names = "\n".join(draw(st.lists(NAMES, min_size=1, max_size=3))).encode("utf-8", "replace")
    modes = st.sampled_from(["RGB", "RGB", "RGB", "L", "P", "RGBA", "1", "I;16"])
    masks = st.sampled_from(["L", "L", "L", "P", "RGB", "I;16"])
    files = {
        "classes.yaml": yaml.dump(classes).encode() if draw(st.integers(0, 5)) else draw(BYTES),
        "train.txt": names if draw(st.booleans()) else draw(st.sampled_from([b"a\nb\n", b"a.png\n", b"\xff\xfe", b""])),
    }
    for name in ("a", "b"):
        files[f"images/{name}.png"] = png(draw, draw(modes)) if draw(st.integers(0, 5)) else draw(BYTES)
        files[f"masks/{name}.png"] = png(draw, draw(masks)) if draw(st.integers(0, 5)) else draw(BYTES)
    return files


@fuzz(data_folders(), st.booleans())
def test_data_folders(files: dict[str, bytes], convert: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        with expect(DataError, ValueError):
            data = FolderDataModule(
                folder,
                val_split=None,
                test_split="train",
                crop_size=8,
                batch_size=1,
                num_workers=0,
                convert_images=convert,
            )
            data.setup("fit")
            assert len(list(data.train_dataloader())) >= 0


@st.composite
def loss_inputs(draw: st.DrawFn) -> dict[str, Any]:
    """A loss with its arguments, and two tensors, which need not fit each other."""
    sizes = st.sampled_from([0, 1, 2, 3, 4, 7, 16, 33])
    classes = draw(st.integers(1, 4))
    height, width = draw(sizes), draw(sizes)
    shape = (draw(st.integers(0, 2)), classes, height, width)
    odd = draw(st.integers(0, 7)) == 0
    arguments: dict[str, Any] = {"num_classes": classes if not odd else draw(st.integers(-1, 5))}
    name = draw(st.sampled_from(sorted(LOSSES)))
    if name in ("rmi", "pyramid") and draw(st.booleans()):
        arguments["pooling"] = draw(st.sampled_from(["avg", "max", "interp", "stride", "none"]))
        arguments["downsampling_factor"] = draw(st.integers(-1, 9))
        arguments["region_size"] = draw(st.integers(-1, 6))
    return {
        "name": name,
        "arguments": arguments,
        "preds": shape if draw(st.integers(0, 7)) else draw(st.lists(sizes, max_size=5)),
        "target": (shape[0], height, width) if draw(st.integers(0, 4)) else draw(st.lists(sizes, max_size=5)),
        "multi_hot": draw(st.integers(0, 4)) == 0,
        "fill": draw(st.sampled_from([0.0, 1.0, -1e4, 1e38, float("nan"), float("inf")])),
        "noise": draw(st.booleans()),
        "label": draw(st.sampled_from([0, 1, 3, 255, -1, -100, 2**40])),
        "preds_type": draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.int64])),
        "target_type": draw(st.sampled_from([torch.int64, torch.int64, torch.uint8, torch.float32, torch.bool])),
    }


@fuzz(loss_inputs())
def test_loss_inputs(case: dict[str, Any]) -> None:
    preds = torch.full(tuple(case["preds"]), case["fill"]).nan_to_num(0.0) if case["noise"] else None
    preds = torch.full(tuple(case["preds"]), case["fill"]) if preds is None else torch.randn(preds.shape)
    preds = (
        preds.nan_to_num(0, 0, 0).to(case["preds_type"])
        if not case["preds_type"].is_floating_point
        else preds.to(case["preds_type"])
    )
    shape = case["preds"] if case["multi_hot"] else case["target"]
    label = 255 if case["target_type"] == torch.uint8 and case["label"] > 255 else case["label"]
    target = torch.full(tuple(shape), abs(label) if case["target_type"] == torch.uint8 else label)
    with expect(ValueError, TypeError):
        loss = build_loss(case["name"], **case["arguments"])
        value = loss(preds.requires_grad_(preds.is_floating_point()), target.to(case["target_type"]))
        assert value.shape == ()
        value.backward()


@fuzz(
    st.one_of(
        WORDS,
        st.text(alphabet="ctra:flip scales=window overlap0123456789.,+-e", max_size=40),
        st.sampled_from(
            ["tta:scales=1e9", "tta:scales=nan", "window:-1", "window:1e3", "crf:1e9", "window:9 overlap=1"]
        ),
        st.builds("tta:scales={},{}".format, NUMBERS, NUMBERS),
        st.builds("window:{} overlap={}".format, NUMBERS, NUMBERS),
    )
)
def test_words_of_inferers(words: str) -> None:
    with expect(UserError):
        parse_inferer(words)


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    return (
        png(draw, draw(st.sampled_from(["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])))
        if (draw(st.integers(0, 4)))
        else draw(BYTES)
    )


@fuzz(image_files(), BYTES)
def test_images_to_predict(content: bytes, names: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, listed = Path(folder) / "a.png", Path(folder) / "names.txt"
        file.write_bytes(content)
        listed.write_bytes(names)
        with expect(BadFileError):
            image = read_image(file, convert=True)
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
        with expect(UserError):
            find_images([file], output=Path(folder) / "out", names_file=listed)


CHECKPOINT = {"state_dict": {"w": torch.zeros(3)}, "hyper_parameters": {"lr": 0.1}, "epoch": 1}


@fuzz(st.data())
def test_checkpoints(data: st.DataObject) -> None:
    stream = io.BytesIO()
    torch.save(CHECKPOINT, stream)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "last.ckpt"
        file.write_bytes(content if data.draw(st.integers(0, 4)) else data.draw(BYTES))
        with expect(UserError):
            assert set(read_checkpoint(file)) >= {"state_dict", "hyper_parameters"}
