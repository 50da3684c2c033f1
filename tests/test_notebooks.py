"""The notebooks run from top to bottom, and what they assert on the way holds."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer

from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import MCIBIModule

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
TEXTS = ("text/plain", "text/markdown", "text/html")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures_of(execute(path, tmp_path, monkeypatch))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_outputs_are_those_of_one_clean_run(path: Path) -> None:
    """From top to bottom, with figures, and without warnings or paths of the machine."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert figures_of(notebook)
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + "".join(output.get("data", {}).get(kind, "") for kind in TEXTS)
        assert not re.search(r"(?<![\w.])/\w+/", text), text
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
def test_the_ablation_notebook_draws_the_runs_below_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs of two tables, made by hand; an unfinished table is left out."""
    for table, df, score, published in (
        ("rmi_table3a", 2, 0.70, 79.23),
        ("rmi_table3a", 4, 0.71, 78.71),
        ("camvid_small_table3a", 2, 0.31, None),
        ("camvid_small_table3a", 4, 0.32, None),
        ("rmi_table3b", 4, None, None),
    ):
        run = RunFolder(tmp_path / "outputs" / table / f"avg_df{df}" / "seed1")
        run.record = {
            "name": f"{table}/avg_df{df}",
            "table": table,
            "row": f"avg_df{df}",
            "seed": 1,
            "axes": {"loss": "rmi", "pooling": "avg", "df": df, "region_size": 3, "seed": 1},
            "reference": {"metric": "test/mIoU", "value": published, "source": "Table 3"} if published else {},
            "git_commit": "abc",
        }
        if score is not None:
            run.summary = {"test/mIoU": score}
    notebook = execute(FOLDER / "03_ablation.ipynb", tmp_path, monkeypatch)
    assert len(figures_of(notebook)) == 1 + 2  # theirs, and a figure for each table that has results
    shown = "".join(
        output["data"].get("text/markdown", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    )
    assert "### rmi_table3a" in shown
    assert "| avg_df2 | 2 | 70.00 |" in shown
    assert "79.23" in shown
    assert "rmi_table3b" not in shown


@pytest.mark.slow
def test_the_mcibi_notebook_shows_a_run_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of four classes, with ASPP and an untrained network; the network of the notebook itself has seven."""
    model = {
        "class_path": "beyondpixel.lightning_modules.MCIBIModule",
        "init_args": {"encoder": "resnet18", "channels": 12, "attention_channels": 6, "context": "aspp"},
    }
    data = {
        "class_path": "beyondpixel.datamodules.ShapesDataModule",
        "init_args": {
            "classes": ["sky", "building", "road", "pavement"],
            "num_test": 8,
            "image_size": [40, 56],
            "num_workers": 0,
        },
    }
    module = MCIBIModule(4, **model["init_args"])
    memory: Any = module.network.memory
    memory.memory.uniform_()
    memory.seen.fill_(True)
    run = RunFolder(tmp_path / "outputs" / "tiny" / "mcibi" / "seed1")
    quiet = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    quiet.strategy.connect(module)
    quiet.save_checkpoint(run.last_checkpoint)
    run.config = {"seed_everything": 1, "model": model, "data": data, "trainer": {}}
    run.update_state(status="done", step=5, max_steps=5)
    name = "outputs/tiny/mcibi/seed1"
    folder = tmp_path / "notebooks"  # the run is found from the folder above
    folder.mkdir()
    few_steps = {"STEPS = 240": "STEPS = 4"}
    notebook = execute(FOLDER / "02_mcibi.ipynb", folder, monkeypatch, replacing=few_steps, BEYONDPIXEL_RUN=name)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert f"Shown: run {name}, step 5 of 5 (done)" in said
    assert "pixels of each of 4 classes" in said


def execute(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replacing: dict[str, str] | None = None,
    **environment: str,
) -> Any:
    """The notebook as it is after a run in a folder of its own, with some of its text replaced."""
    for name in ("BEYONDPIXEL_OUTPUTS", "BEYONDPIXEL_RUN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses the one that puts figures into the notebook
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    notebook = nbformat.read(path, as_version=4)
    for old, new in (replacing or {}).items():
        (cell,) = [cell for cell in notebook.cells if old in cell.source]
        cell.source = cell.source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def figures_of(notebook: Any) -> list[Any]:
    return [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
