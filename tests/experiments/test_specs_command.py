"""`beyondpixel specs`: overview, rows of a table, and a user's own folder."""

from pathlib import Path

import pytest

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.spec import RUNS, load_specs
from beyondpixel.experiments.specs_command import differing_keys


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


def shown(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "250")
    main(["specs", *words])
    return capsys.readouterr().out


def test_all_tables_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown([], capsys, monkeypatch).splitlines()
    names = [line.split()[0] for line in lines]
    assert {folder.name for folder in RUNS.iterdir()} <= set(names)
    start = names.index("rmi_table3b")
    facts = lines[start].split(maxsplit=1)[1].strip()
    assert facts == "10 rows; downsampling_factor, region_size; published 78.06 … 78.71"
    assert lines[start + 1].strip() == "Table 3(b) (PASCAL VOC 2012 val, DeepLabv3)"
    assert lines[names.index("demo")].rstrip().endswith(" 3 rows; loss")  # nothing published
    assert lines[names.index("released")].rstrip().endswith(" 1 row")


def test_rows_with_differences_and_published_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shown(["rmi_table1_voc", "rmi_table3a/avg_df2"], capsys, monkeypatch)
    assert "Launch:    beyondpixel launch rmi_table1_voc\n" in out
    rows = [cells_of(line) for line in out.splitlines()]
    ce = next(row for row in rows if row[:1] == ["v3plus_ce"])
    assert (ce[-2], ce[-1]) == ("crf:1", "78.17, 78.90, 78.75, 78.60")
    assert ["avg_df2", "79.23"] in rows  # a single row differs from none


def test_differing_keys() -> None:
    assert differing_keys(load_specs(["camvid_small"]))["loss"] == ["affinity", "bce", "ce", "rmi"]
    found = differing_keys(load_specs(["rmi_covariance_voc"]))
    assert found == {"covariance": ["sum", "sum", "mean", "mean"], "ridge": [5e-4, 1e-6, 5e-4, 1e-6]}
    # networks have a variant, or none; that of the data, "11", is one for all rows
    found = differing_keys(load_specs(["camvid_small_pretrained/ce", "camvid_small_pretrained/mcibi_ce"]))
    assert found["variant"] == ["v3plus", None]
    assert differing_keys(load_specs(["camvid_small_pretrained/ce", "camvid_small_pretrained/bce"])).keys() == {"loss"}


def test_a_key_that_one_row_alone_has_is_told_where_nothing_else_tells_the_row_from_another() -> None:
    rows = [f"camvid_small_adamw/{row}" for row in ("rmi_df4", "rmi_ce", "mcibi_ce", "mcibi_random_ce")]
    found = differing_keys(load_specs(rows))
    assert found["pixel_loss"] == [None, "ce", None, None]
    assert found["initialization"] == [None, None, None, "random"]
    assert "pooling" not in found  # RMI's, in both of its rows


def test_a_sum_of_losses_is_short(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [cells_of(line) for line in shown(["camvid_small_losses"], capsys, monkeypatch).splitlines()]
    assert next(row for row in rows if row[:1] == ["ce_lovasz"])[1] == "loss ce + lovasz"


def test_a_narrow_terminal_breaks_no_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["specs", "camvid_small_search"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {"differs", "head_lr_multiplier", "downsampling_factor", "rmi_lambda0.25"} <= words


def test_a_users_own_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mine"
    table.mkdir()
    (table / "a.yaml").write_text("# Paper:    none\nbase: [data/shapes, model/deeplabv3_resnet18]\n")
    out = shown([str(table)], capsys, monkeypatch)
    assert "  Paper:     none\n" in out
    assert f"  Launch:    beyondpixel launch {table}\n" in out
    (table / "b.yaml").write_text("base: [data/shapess]\n")
    with pytest.raises(SystemExit, match=r"b\.yaml: base: no fragment 'data/shapess'; did you mean data/shapes"):
        main(["specs", str(table)])


def test_a_resolved_row_takes_overrides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown(["rmi_table4_camvid/v3_ce", "--resolved", "--data.root", "/data/CamVid"], capsys, monkeypatch)
    assert "    root: /data/CamVid  # command line\n" in out
    assert "    image_size: null  # default\n" in out
