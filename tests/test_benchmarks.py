"""Tables of speed are made from the committed records of the benchmarks."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tables")


def test_every_table_equals_its_record(tables: Any) -> None:
    files = tables.rendered(BENCHMARKS.parent)
    assert {file.stem for file in RESULTS.iterdir()} == {file.stem for file in RESULTS.glob("*.json")}
    assert {file.stem for file in RESULTS.glob("*.json")} >= {"data_speed", "triton_report"}
    assert [file for file, content in files.items() if file.read_text() != content] == []
    assert BENCHMARKS.parent / "datamodules" / "README.md" in files


def test_a_table_that_differs_is_found_and_written_anew(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "data_speed.json").write_text((RESULTS / "data_speed.json").read_text())
    readme = tmp_path / "README.md"
    readme.write_text(
        "Before.\n<!-- benchmark: data_speed pipelines -->\n| typed | by hand |\n<!-- /benchmark -->\nAfter.\n"
    )
    monkeypatch.setattr(tables, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match="README.md; run `python benchmarks/tables.py`"):
        tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert readme.read_text().startswith("Before.\n<!-- benchmark: data_speed pipelines -->\n500×375 JPEGs")
    assert readme.read_text().endswith("\n<!-- /benchmark -->\nAfter.\n")
    assert "typed" not in readme.read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    tables.main()


def test_ratios_floor_and_memory_are_those_of_the_record(tables: Any) -> None:
    def times(*milliseconds: float) -> dict[str, Any]:
        low, median, high = milliseconds
        return {"fastest": low, "quartiles": [low, median, high], "milliseconds": list(milliseconds)}

    record = {
        "term": [
            {"shape": [8, 21, 256, 256], "pooling": "avg", "times": {"direct": times(40, 60, 80), "c": times(2, 4, 5)}}
        ],
        "whole": [
            {
                "shape": [4, 21, 513, 513],
                "device": "cpu",
                "times": {"direct": times(90, 90, 90), "c": times(30, 30, 30), "copy": times(10, 10, 10)},
            }
        ],
        "memory": [{"version": "c", "device": "cpu", "bytes": 5, "of_logits": 1.25}],
        "grid": [],
    }
    sections = importlib.import_module("loss_speed").sections(record)
    assert "| 8×21×256×256 | avg | c | 2.0 | 4.0 (2.0 – 5.0) | 20.0 | 15.0 |" in sections["term"]
    goals = sections["goals"].splitlines()[-4:]
    assert [line.split(" | ")[1:] for line in goals] == [
        ["c", "20.0 × direct", "at least 16 |"],
        ["c", "3.0 × direct", "at least 25 |"],
        ["c", "2.0 × this", "at most 4 |"],  # the copy reads and writes once, the floor is half as much again
        ["c", "1.25 × logits", "at most 1.4 |"],
    ]


@pytest.mark.slow
def test_a_benchmark_writes_its_record_and_page(tables: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "data_speed.py"), "--images=8", "--repeats=2", f"--out={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    record = json.loads((tmp_path / "data_speed.json").read_text())
    assert {"machine", "versions", "commit", "command", "threads", "load_before", "load_after"} <= set(record)
    assert [len(times["milliseconds"]) for times in record["times"].values()] == [2] * 5
    assert (tmp_path / "data_speed.md").read_text() == tables.page("data_speed", record)


@pytest.mark.slow
def test_a_steps_parts_add_up_to_the_step(tmp_path: Path) -> None:
    """A real profile of two steps on generated scenes."""
    overrides = ["--model.encoder=tu-test_resnet", "--data.num_train=4", "--data.num_workers=0", "--data.batch_size=2"]
    words = ["demo/ce", "--steps=2", f"--out={tmp_path}", "--trainer.precision=bf16-mixed", *overrides]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "step_profile.py"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "step_profile.json").read_text())["rows"]
    assert (row["row"], row["batch"][:2], row["precision"]) == ("demo/ce", [2, 3], "bf16-mixed")
    times = {part: case["milliseconds"] for part, case in row["times"].items()}
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    (line,) = [line for line in (tmp_path / "step_profile.md").read_text().splitlines() if line.startswith("| demo/ce")]
    *_, images, step = [cell.strip() for cell in line.split("|")][1:5]
    whole = sum(sum(values) for values in times.values()) / 2  # the median of two is their mean
    assert float(step) == pytest.approx(whole, abs=1)
    assert float(images) == pytest.approx(2000 / whole, abs=0.06)
    assert sum(float(cell.strip(" %")) for cell in line.split("|")[5:-1]) == pytest.approx(100, abs=0.5)
