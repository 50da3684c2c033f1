"""The W&B workspace, built and serialised without a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beyondpixel.experiments.compare import workspace
from beyondpixel.experiments.compare.rows import Row, collect_rows
from beyondpixel.experiments.compare.workspace import build_workspace, save_workspace
from beyondpixel.experiments.errors import UserError


@pytest.fixture
def rows(tmp_path: Path, make_run: Callable[..., Any]) -> list[Row]:
    for row, df in (("ce", None), ("df2", 2), ("df4", 4)):
        make_run(tmp_path, row, 1, 0.5, table="table3", axes={"loss": "rmi" if df else "ce", "df": df})
    return collect_rows([tmp_path], metric="test/mIoU")


def test_what_the_workspace_asks(rows: list[Row]) -> None:
    pytest.importorskip("wandb_workspaces")
    built = build_workspace(rows, "test/mIoU", "team/beyondpixel")
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


def test_without_a_key_or_with_a_wrong_place(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "offline_reason", lambda: "no API key found")
    with pytest.raises(UserError, match="--wandb-workspace needs W&B online: no API key found; log in with"):
        save_workspace(rows, "test/mIoU", "team/beyondpixel")
    for place in ("team", "/x", "a/b/c"):
        with pytest.raises(UserError, match="expected ENTITY/PROJECT, got"):
            build_workspace(rows, "test/mIoU", place)


def test_what_a_server_refuses_is_said(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def save(self) -> None:
            raise PermissionError("not your team")

    monkeypatch.setattr(workspace, "offline_reason", lambda: None)
    monkeypatch.setattr(workspace, "build_workspace", lambda *_: Refused())
    with pytest.raises(UserError, match="did not save the workspace in team/p: not your team"):
        save_workspace(rows, "test/mIoU", "team/p")


def test_without_the_package(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'beyondpixel\[workspaces\]'"):
        build_workspace(rows, "test/mIoU", "team/p")
