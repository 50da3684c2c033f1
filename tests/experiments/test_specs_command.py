"""`beyondpixel specs` says what there is."""

from pathlib import Path

import pytest

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.specs import RUNS, find_specs, load_spec
from beyondpixel.experiments.specs_command import differing_axes


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


def said(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "250")
    main(["specs", *words])
    return capsys.readouterr().out


def test_all_tables_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said([], capsys, monkeypatch).splitlines()
    names = [line.split()[0] for line in lines]
    assert {folder.name for folder in RUNS.iterdir()} <= set(names)
    start = names.index("rmi_table3b")
    assert lines[start].split(maxsplit=1)[1].strip() == "10 rows; df, region_size; published 78.06 … 78.71"
    assert lines[start + 1].strip() == "Table 3(b) (PASCAL VOC 2012 val, DeepLabv3)"
    assert lines[names.index("demo")].rstrip().endswith(" 3 rows; loss")  # nothing published


def test_rows_with_axes_and_published_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = said(["rmi_table1_voc", "rmi_table3a/avg_df2"], capsys, monkeypatch)
    assert "Launch:    beyondpixel launch rmi_table1_voc\n" in out
    rows = [cells_of(line) for line in out.splitlines()]
    assert ["v3plus_crf5", "ce", "deeplab_v3plus", "v3plus_ce crf:5", "78.75"] in rows
    assert ["v3_rmi", "rmi", "deeplab_v3", "itself", "78.71"] in rows
    assert ["avg_df2", "79.23"] in rows  # a single row differs from none


def test_axes_that_do_not_apply_are_no_difference() -> None:
    axes = differing_axes([load_spec(place) for place in find_specs(["camvid_small"])])
    assert axes == {
        "loss": ["affinity", "bce", "ce", "ce", "ce", "ce", "rmi"],
        "evaluates": ["itself", "itself", "itself", "ce crf:1", "ce crf:5", "ce crf:10", "itself"],
    }
    ridges = differing_axes([load_spec(place) for place in find_specs(["rmi_covariance_voc"])])
    assert ridges == {"covariance": ["sum", "sum", "mean", "mean"], "ridge": [5e-4, 1e-6, 5e-4, 1e-6]}


def test_a_users_own_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mine"
    table.mkdir()
    (table / "a.yaml").write_text("# Paper:    none\nbase: [data/shapes, model/deeplabv3_resnet18]\n")
    out = said([str(table)], capsys, monkeypatch)
    assert "  Paper:     none\n" in out
    assert f"  Launch:    beyondpixel launch {table}\n" in out
    (table / "b.yaml").write_text("base: [data/shapess]\n")
    with pytest.raises(SystemExit, match=r"b\.yaml:1: base: no fragment 'data/shapess'; did you mean data/shapes"):
        main(["specs", str(table)])
