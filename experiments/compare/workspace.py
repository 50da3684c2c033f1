"""A W&B workspace and a W&B Report of a comparison: the same table, plots and curves for the uploaded runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from beyondpixel.experiments.compare.plots import AXIS_NAMES
from beyondpixel.experiments.compare.rows import Comparison
from beyondpixel.experiments.compare.tables import as_markdown, differing_axes, main_table
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import write_atomically
from beyondpixel.experiments.wandb_server import offline_reason

FILE_NAME = "wandb_workspace.json"


def save_workspace(comparison: Comparison, project: str, folder: Path) -> list[str]:
    """Save workspace and Report in ENTITY/PROJECT and as a JSON file; return the file and, online, their URLs.

    Raises:
        UserError: if the project is not valid, wandb-workspaces is not installed, or W&B refuses.
    """
    views = build_views(comparison, project)
    specs = {name: view._to_model().model_dump(by_alias=True, mode="json") for name, view in views.items()}
    file = folder / FILE_NAME
    write_atomically(file, json.dumps(specs, indent=1) + "\n")
    reason = offline_reason()
    if reason is not None:
        return [f"{file} (not uploaded: {reason}; run the same command online)"]
    try:
        return [str(file), *(str(view.save().url) for view in views.values())]
    except Exception as error:  # whatever the server or its client raises
        raise UserError(f"--wandb-workspace: W&B did not save the workspace in {project}: {error}") from error


def build_views(comparison: Comparison, project: str) -> dict[str, Any]:
    """Build `workspace` and `report` without saving them or querying a server.

    Runs are filtered by the tables' tags and grouped by row, so that every plot shows the mean over seeds and its
    spread. One section compares rows, one has a plot per axis that varies, one shows the training curves.
    """
    entity, _, name = project.partition("/")
    if not (entity and name) or "/" in name:
        raise UserError(f"--wandb-workspace: expected ENTITY/PROJECT, got {project!r}")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb-workspace needs the package wandb-workspaces: pip install 'beyondpixel[workspaces]'")
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections, tables = _sections(comparison), comparison.tables
    title, tagged = f"beyondpixel: {', '.join(tables)}", ws.And(ws.Tags().isin(tables))
    runset = wr.Runset(filters=tagged, groupby=["group"])  # of the Report's project; naming it would query the server
    blocks: list[Any] = [wr.MarkdownBlock(text=as_markdown(main_table(comparison)))]
    for heading, panels in sections.items():
        blocks += [wr.H2(heading), wr.PanelGrid(runsets=[runset], panels=panels)] if panels else []
    return {
        "workspace": ws.Workspace(
            name=title,
            entity=entity,
            project=name,
            sections=[
                ws.Section(name=heading, panels=panels, is_open=heading != "Training")
                for heading, panels in sections.items()
            ],
            runset_settings=ws.RunsetSettings(
                filters=tagged,
                groupby=[ws.Metric("Group")],
                order=[ws.Ordering(ws.Summary(comparison.metric), ascending=False)],
            ),
        ),
        "report": wr.Report(entity=entity, project=name, title=title[:128], width="fluid", blocks=blocks),
    }


def _sections(comparison: Comparison) -> dict[str, list[Any]]:
    """The panels of each section."""
    import wandb_workspaces.reports.v2 as wr

    metric = comparison.metric
    axes = {axis: AXIS_NAMES.get(axis, axis) for axis in differing_axes(comparison.rows, comparison.axes)}
    score, grouped = wr.SummaryMetric(metric), {"groupby": "Group", "groupby_rangefunc": "stddev"}
    by_axis = [wr.ScatterPlot(title=f"{metric} by {label}", x=wr.Config(axis), y=score) for axis, label in axes.items()]
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(axis), display_name=label) for axis, label in axes.items()]
    if axes:
        by_axis.append(wr.ParallelCoordinatesPlot(columns=[*columns, wr.ParallelCoordinatesPlotColumn(score)]))
    curves = ("val/mIoU", "train/loss", "train/loss_pixel", "train/loss_rmi")
    return {
        "Rows": [wr.BarPlot(title=f"{metric} by row", metrics=[metric], **grouped)],
        "Axes": by_axis,
        "Training": [wr.LinePlot(title=value, y=[value], **grouped) for value in curves],
    }
