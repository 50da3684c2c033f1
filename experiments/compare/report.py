"""HTML report of a comparison: sortable tables, plots, and a slider between two predictions.

The page is one file that loads nothing (its content security policy forbids it), so it can be mailed, kept with the
runs, or opened on a phone.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
import zipfile
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from PIL import Image

from beyondpixel.experiments.compare.plots import as_svg, draw_panel, draw_trimap, panels, trimap_widths
from beyondpixel.experiments.compare.rows import Comparison
from beyondpixel.experiments.compare.tables import Table, class_table, main_table
from beyondpixel.experiments.compare.units import best
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder, write_atomically
from beyondpixel.lightning_modules.visualization.sample_archive import read_samples

# limits that keep a page small enough to mail it and to open it on a phone
MAX_RUNS = 60
MAX_WIDTH = 1024
PHOTO, TARGET = "Photo", "Target"


def write_report(comparison: Comparison, file: Path) -> None:
    """Write the HTML report of one or more tables."""
    galleries: list[dict[str, Any]] = []
    content = [_section(comparison.table(name), galleries) for name in comparison.tables]
    summary = (
        f"{int(comparison.rows['n'].sum())} results in {len(comparison.rows)} rows. Mean ± standard deviation over "
        "seeds. Published numbers are the papers’, not ours."
    )
    page = Template((files(__package__) / "page.html").read_text(encoding="utf-8")).safe_substitute(
        title=escape(f"{comparison.metric}: {', '.join(comparison.tables)}"),
        summary=escape(summary),
        content="\n".join(content),
        # "</script>" in a row's name must not end the element
        galleries=json.dumps(galleries).replace("<", "\\u003c"),
    )
    write_atomically(file, page)


def _section(comparison: Comparison, galleries: list[dict[str, Any]]) -> str:
    (table,) = comparison.tables
    parts = [f"<h2>{escape(table)}</h2>", _table(main_table(comparison))]
    plots = [
        as_svg(partial(draw_panel, axis=axis, series=series, comparison=comparison), f"{table}_{axis}")
        for axis, series in panels(comparison).items()
    ]
    if trimap_widths(comparison.runs):
        plots.append(as_svg(partial(draw_trimap, comparison=comparison), f"{table}_trimap"))
    if plots:
        parts.append(f'<h3>Plots</h3><div class="plots">{"".join(plots)}</div>')
    try:
        classes = class_table(comparison)
        parts.append(f"<h3>{escape(classes.title)}</h3>{_table(classes)}")
    except UserError:
        pass  # a score without classes, such as a loss or a speed
    gallery = _gallery(comparison)
    if gallery["scenes"]:
        legend = "".join(
            f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in gallery["colors"]
        )
        left_out = (
            f"<p>{gallery['left_out']} more results are left out of the images.</p>" if gallery["left_out"] else ""
        )
        parts.append(
            f'<h3>Predictions</h3><div data-gallery="{len(galleries)}"><ul class="legend">{legend}</ul>{left_out}</div>'
        )
        galleries.append(gallery)
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table) -> str:
    cells = table.cells.map(escape).rename(columns=escape)
    cells.iloc[table.best] = cells.iloc[table.best].map(lambda text: f"<strong>{text}</strong>")
    with pd.option_context("display.max_colwidth", None):
        html = cells.to_html(index=False, escape=False, border=0)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return f'<div class="scroll" tabindex="0">{html}</div><ul class="notes">{notes}</ul>'


def _gallery(comparison: Comparison) -> dict[str, Any]:
    """Test images that the runs of one table saved; the slider starts with the photo next to the best row."""
    scored = comparison.scored
    shown = scored if len(scored) <= MAX_RUNS else scored.groupby("row", sort=False).head(1).head(MAX_RUNS)
    scenes: dict[str, dict[str, str]] = {}
    colors: list[tuple[str, str]] = []
    layers = [PHOTO, TARGET]
    layer_of_row: dict[str, int] = {}
    for line in shown.to_dict("records"):
        layer = f"{line['row']}, seed {line['seed']}"
        samples = _samples(line["run"])
        for name, sample in samples.items():
            if name not in scenes:
                scenes[name] = {PHOTO: _data_url(sample["image.jpg"]), TARGET: _data_url(sample["target.png"])}
            scenes[name][layer] = _data_url(sample["prediction.png"])
        if samples:
            layer_of_row.setdefault(line["row"], len(layers))
            layers.append(layer)
            colors = colors or _colors(next(iter(samples.values()))["prediction.png"], line["classes"])
    means = comparison.rows.set_index("row")["mean"][list(layer_of_row)]
    return {
        "layers": layers,
        "start": [0, layer_of_row[best(means, comparison.metric)] if len(means) else 0],
        "scenes": [{"name": name, "images": [scenes[name].get(layer) for layer in layers]} for name in sorted(scenes)],
        "colors": colors,
        "left_out": len(scored) - len(shown),
    }


def _samples(run: RunFolder) -> dict[str, dict[str, bytes]]:
    """Test images that a run saved; none, after a warning, if the file is damaged."""
    file = run.path / "images" / "test.zip"
    try:
        return read_samples(file) if file.exists() else {}
    except (zipfile.BadZipFile, ValueError) as error:
        warnings.warn(f"{file} is damaged ({error}): the report leaves its images out", stacklevel=2)
        return {}


def _data_url(content: bytes) -> str:
    """Encode an image file as a data URL; reduce one that is too wide, a mask without mixing its classes."""
    with Image.open(io.BytesIO(content)) as image:
        kind = str(image.format).lower()
        if image.width > MAX_WIDTH:
            size = (MAX_WIDTH, round(image.height * MAX_WIDTH / image.width))
            smaller, buffer = image.resize(size, Image.Resampling.NEAREST if kind == "png" else None), io.BytesIO()
            smaller.save(buffer, kind, optimize=True)
            content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _colors(mask: bytes, classes: list[str]) -> list[tuple[str, str]]:
    with Image.open(io.BytesIO(mask)) as image:
        palette = image.getpalette() or []
    return [(name, f"#{bytes(palette[3 * index : 3 * index + 3]).hex()}") for index, name in enumerate(classes)]
