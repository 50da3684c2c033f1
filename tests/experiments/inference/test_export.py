"""Exported networks run by ONNX Runtime, and loaded without this package's checkpoints."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.inference import export as export_file
from beyondpixel.experiments.inference.checkpoints import load_trained
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "output_stride"), [("v3plus", 16), ("v3", 8)])
def test_onnx_runtime_gives_pytorchs_logits_at_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: str, output_stride: int
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    torch.manual_seed(0)
    module = DeepLabModule(5, encoder="resnet18", variant=variant, output_stride=output_stride)
    with torch.no_grad():  # statistics unlike those at the start, as after training
        for _ in range(3):
            module.train()(torch.randn(2, 3, 65, 65))
    module.eval()
    difference = export_file.write_onnx(module.network, tmp_path / "model.onnx", {})
    assert difference < 1e-5
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    # other sizes than those that the export itself tries
    for shape in [(1, 3, 16, 17), (3, 3, 41, 88), (1, 3, 113, 64), (2, 3, 33, 33)]:
        images = torch.randn(*shape)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            expected = module(images).numpy()
        assert logits.shape == expected.shape
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
def test_the_file_says_how_it_is_used_and_that_is_true(
    run: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    load_file: Callable[[Path], ModuleType],
    normalize: bool,
) -> None:
    """The images are prepared by what the metadata say, and by nothing else."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    file = tmp_path / "new" / "model.onnx"
    words = ["--normalize"] if normalize else []
    main(["export", f"--ckpt_path={run.last_checkpoint}", "--format=onnx", f"--output={file}", *words])
    assert "ONNX Runtime's logits differ from PyTorch's by at most" in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]  # weights are within
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    metadata = {
        name: json.loads(value)
        for name, value in session.get_modelmeta().custom_metadata_map.items()
        if name in ("input", "output", "mean", "std", "class_names", "palette")
    }
    module, data = load_trained(run.last_checkpoint)
    assert metadata["class_names"] == data.class_names == module.class_names
    assert [tuple(color) for color in metadata["palette"]] == [tuple(color) for color in data.palette]
    assert ("uint8, 0..255" if normalize else "float32, (x / 255 - mean) / std") in metadata["input"]
    image = data.dataset("test")[0].image
    given: np.ndarray = image.transpose(2, 0, 1)[None]
    if not normalize:
        mean, std = (np.array(metadata[name], np.float32)[:, None, None] for name in ("mean", "std"))
        given = (given / np.float32(255) - mean) / std
    (logits,) = session.run(["logits"], {"images": given})
    with torch.no_grad():
        expected = module(data.normalize({"image": torch.from_numpy(image).permute(2, 0, 1)[None]})["image"])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4 * expected.abs().max().item(), rtol=0)
    if normalize:  # the documentation's use of such a file, which its own tests do not make
        monkeypatch.chdir(file.parent)
        page = CHECKOUT / "docs" / "how-to" / "export.md"
        blocks = load_file(CHECKOUT / "tests" / "docs" / "blocks.py").blocks_of(page)
        (block,) = [block.text for block in blocks if "import onnxruntime" in block.text]
        names: dict[str, Any] = {}
        exec(block, names)
        assert names["classes"].shape == (1, 96, 128)


def test_a_graph_that_computes_something_else_is_not_kept(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")

    def trace_something_else(network: torch.nn.Module, output: Path, *settings: object) -> None:
        import onnx

        names = ["images"], ["logits"]
        shapes: list[list[str | int | None]] = [["n", 3, "h", "w"], ["n", 11, "h", "w"]]
        nodes = [onnx.helper.make_node("ReduceMean", ["images"], ["gray"], axes=[1], keepdims=1)]
        nodes.append(onnx.helper.make_node("Concat", ["gray"] * 11, ["logits"], axis=1))
        values = [
            onnx.helper.make_tensor_value_info(name[0], onnx.TensorProto.FLOAT, size)
            for name, size in zip(names, shapes, strict=True)
        ]
        graph = onnx.helper.make_graph(nodes, "other", values[:1], values[1:])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), output)

    monkeypatch.setattr(export_file, "_trace", trace_something_else)
    (tmp_path / "model.onnx").write_text("an earlier one")
    with pytest.raises(SystemExit, match=r"logits differ from PyTorch's by .* more than 1e-04; no file is kept"):
        main(["export", f"--ckpt_path={run.last_checkpoint}", "--format=onnx", f"--output={tmp_path / 'model.onnx'}"])
    assert [file.read_text() for file in tmp_path.glob("*model.onnx*")] == ["an earlier one"]


def test_state_dict_fills_a_network(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    main(["export", f"--ckpt_path={run.last_checkpoint}", "--format=state_dict", f"--output={file}"])
    module = DeepLabModule(11, encoder="resnet18", loss="ce").eval()
    content = torch.load(file, weights_only=True)
    module.network.load_state_dict(content["state_dict"])
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(module(images), load_trained(run.last_checkpoint)[0](images))
    data = load_trained(run.last_checkpoint)[1]
    assert content["metadata"]["class_names"] == data.class_names
    assert content["metadata"]["mean"] == list(data.mean)
    with pytest.raises(SystemExit, match="--normalize is for --format onnx: a state dict holds weights alone"):
        main(["export", f"--ckpt_path={run.last_checkpoint}", "--format=state_dict", f"--output={file}", "--normalize"])


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else type(sys)(name))
    with pytest.raises(SystemExit, match=rf"needs the package {package}, .*: pip install 'beyondpixel\[export\]'"):
        main(["export", f"--ckpt_path={run.last_checkpoint}", "--format=onnx", f"--output={tmp_path / 'model.onnx'}"])
    assert not (tmp_path / "model.onnx").exists()


def test_an_output_that_cannot_be_written(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "model.pth"
    with pytest.raises(SystemExit, match=r"--output: .*model.pth cannot be written \(Not a directory\)|File exists"):
        main(["export", f"--ckpt_path={run.last_checkpoint}", "--format=state_dict", f"--output={output}"])
