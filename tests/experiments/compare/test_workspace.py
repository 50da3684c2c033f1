"""The W&B workspace and Report, built and serialized without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beyondpixel.experiments.compare import workspace
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.compare.workspace import build_views, save_workspace
from beyondpixel.experiments.errors import UserError


@pytest.fixture
def rows(tmp_path: Path, make_run: Callable[..., Any]) -> Comparison:
    for row, df in (("ce", None), ("df2", 2), ("df4", 4)):
        make_run(tmp_path, row, 1, 0.5, table="table3", axes={"loss": "rmi" if df else "ce", "df": df})
    return compare_runs(read_runs([tmp_path]), "test/mIoU")


def test_what_the_workspace_asks(rows: Comparison) -> None:
    pytest.importorskip("wandb_workspaces")
    built = build_views(rows, "team/beyondpixel")["workspace"]
    assert (built.entity, built.project, built.name) == ("team", "beyondpixel", "beyondpixel: table3")
    assert [section.name for section in built.sections] == ["Rows", "Axes", "Training"]
    titles = [getattr(panel, "title", None) for section in built.sections for panel in section.panels]
    assert {"test/mIoU by row", "test/mIoU by loss", "test/mIoU by DF", "val/mIoU"} <= set(titles)
    spec = built._to_model().model_dump(by_alias=True, mode="json")["spec"]["section"]
    (runs,) = spec["runSets"]
    (condition,) = runs["filters"]["filters"]
    assert (condition["key"], condition["op"], condition["value"]) == (
        {"section": "run", "name": "tags"},
        "IN",
        ["table3"],
    )
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    places = {
        panel["config"]["xAxis"]
        for section in spec["panelBankConfig"]["sections"]
        for panel in section["panels"]
        if panel["viewType"] == "Scatter Plot"
    }
    assert places == {"config:loss.value", "config:df.value"}


def test_the_report_holds_table_and_plots(rows: Comparison) -> None:
    pytest.importorskip("wandb_workspaces")
    spec = build_views(rows, "team/beyondpixel")["report"]._to_model().model_dump(by_alias=True, mode="json")["spec"]
    kinds = [block["type"] for block in spec["blocks"]]
    assert kinds.count("panel-grid") == 3
    (table,) = [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"]
    assert "| df4" in table


def test_offline_it_is_a_file(rows: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(workspace, "offline_reason", lambda: "no API key found")
    (place,) = save_workspace(rows, "team/beyondpixel", tmp_path)
    assert "not uploaded: no API key found; run the same command online" in place
    specs = json.loads((tmp_path / "wandb_workspace.json").read_text())
    assert [section["name"] for section in specs["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]][
        :3
    ] == ["Rows", "Axes", "Training"]
    assert specs["report"]["displayName"] == "beyondpixel: table3"


def test_a_wrong_project(rows: Comparison) -> None:
    for place in ("team", "/x", "a/b/c"):
        with pytest.raises(UserError, match="expected ENTITY/PROJECT, got"):
            build_views(rows, place)


def test_what_a_server_refuses_is_said(rows: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def _to_model(self) -> Any:
            return self

        def model_dump(self, **_: Any) -> dict[str, Any]:
            return {}

        def save(self) -> None:
            raise PermissionError("not your team")

    monkeypatch.setattr(workspace, "offline_reason", lambda: None)
    monkeypatch.setattr(workspace, "build_views", lambda *_: {"workspace": Refused()})
    with pytest.raises(UserError, match="did not save the workspace in team/p: not your team"):
        save_workspace(rows, "team/p", tmp_path)


def test_without_the_package(rows: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'beyondpixel\[workspaces\]'"):
        build_views(rows, "team/p")
