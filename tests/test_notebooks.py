"""The notebooks run from top to bottom, and what they assert on the way holds."""

import os
from pathlib import Path
from typing import Any

import pytest

from beyondpixel.experiments.run_folder import RunFolder

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures_of(execute(path, tmp_path, monkeypatch))


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


def execute(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook as it is after a run in an empty folder."""
    monkeypatch.delenv("BEYONDPIXEL_OUTPUTS", raising=False)
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses the one that puts figures into the notebook
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def figures_of(notebook: Any) -> list[Any]:
    return [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
