"""A W&B workspace for a comparison: the same questions, asked of the uploaded runs in the dashboard."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.compare.series import AXIS_NAMES
from beyondpixel.experiments.compare.tables import axes_that_differ
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.tracking import offline_reason

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws


def save_workspace(rows: Sequence[Row], metric: str, place: str) -> str:
    """Save a workspace for the runs of the given rows and return its address.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared.
        place: `ENTITY/PROJECT`.

    Raises:
        UserError: if the place is none, wandb-workspaces is not installed, there is no API key, or W&B refuses.
    """
    reason = offline_reason()
    if reason is not None:
        raise UserError(f"--wandb-workspace needs W&B online: {reason}; log in with `wandb login` or set WANDB_API_KEY")
    workspace = build_workspace(rows, metric, place)
    try:
        return str(workspace.save().url)
    except Exception as error:  # whatever the server or its client says
        raise UserError(f"--wandb-workspace: W&B did not save the workspace in {place}: {error}") from error


def build_workspace(rows: Sequence[Row], metric: str, place: str) -> ws.Workspace:
    """The workspace, not yet saved; nothing is asked of a server.

    Runs are filtered by the tables' tags and grouped by row, so that every plot shows the mean over seeds and its
    spread. One section compares rows, one has a plot for each axis that varies, one the curves of training.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared.
        place: `ENTITY/PROJECT`.

    Raises:
        UserError: if the place is none or wandb-workspaces is not installed.
    """
    entity, slash, project = place.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"--wandb-workspace: expected ENTITY/PROJECT, got {place!r}")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb-workspace needs the package wandb-workspaces: pip install 'beyondpixel[workspaces]'")
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    tables = sorted({row.table for row in rows})
    score = wr.SummaryMetric(metric)
    axes = axes_that_differ([row for row in rows if row.values])
    by_row = wr.BarPlot(title=f"{metric} by row", metrics=[metric], groupby="Group", groupby_rangefunc="stddev")
    by_axis = [
        wr.ScatterPlot(title=f"{metric} by {AXIS_NAMES.get(axis, axis)}", x=wr.Config(axis), y=score) for axis in axes
    ]
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(axis), display_name=AXIS_NAMES.get(axis, axis)) for axis in axes
    ]
    curves = [
        wr.LinePlot(title=figure, y=[figure], groupby="Group", groupby_rangefunc="stddev")
        for figure in ("val/mIoU", "train/loss", "train/loss_pixel", "train/loss_rmi")
    ]
    all_axes = wr.ParallelCoordinatesPlot(columns=[*columns, wr.ParallelCoordinatesPlotColumn(score)])
    return ws.Workspace(
        name=f"beyondpixel: {', '.join(tables)}",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name="Rows", panels=[by_row], is_open=True),
            ws.Section(name="Axes", panels=[*by_axis, *([all_axes] if axes else [])], is_open=True),
            ws.Section(name="Training", panels=curves),
        ],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Tags().isin(tables)),
            groupby=[ws.Metric("Group")],
            order=[ws.Ordering(ws.Summary(metric), ascending=False)],
        ),
    )
