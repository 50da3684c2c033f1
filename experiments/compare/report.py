"""One page with all of a comparison: tables that sort, plots, and predictions of two runs under a slider.

The page is one file that asks nobody for anything (its content security policy forbids it), so it can be mailed, kept
beside the runs, or opened on a phone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from beyondpixel.experiments.bootstrap import RESAMPLES
from beyondpixel.experiments.compare.classes import class_cells
from beyondpixel.experiments.compare.pictures import Gallery, Scene, gather
from beyondpixel.experiments.compare.plots import as_svg, plots_as_svg
from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.compare.tables import Cells, main_cells
from beyondpixel.experiments.compare.trimap import draw_trimap, widths_of
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run_folder import write_atomically
from beyondpixel.lightning_modules.callbacks.sample_files import VOID_COLOR

# the first bytes of the kinds of picture that runs save
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
EXPLANATION = (
    "Mean ± standard deviation over seeds. The interval holds 95 % of the differences to the baseline when the test "
    f"images are drawn again (paired bootstrap, {RESAMPLES:,} draws, seeds averaged): it speaks of the choice of test "
    "images, not of what another seed would give. Published numbers are the papers’, not ours."
)


def write_report(rows: Sequence[Row], metric: str, file: Path) -> None:
    """Write the page.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared.
        file: the HTML file.
    """
    tables = list(dict.fromkeys(row.table for row in rows))
    galleries: list[dict[str, Any]] = []
    content = []
    for table in tables:
        of_table = [row for row in rows if row.table == table]
        content.append(_section(table, of_table, metric, galleries))
    runs = sum(len(row.finished) for row in rows)
    title = f"{metric}: {', '.join(tables)}"
    summary = f"{runs} finished runs in {len(rows)} rows. {EXPLANATION}"
    parts = {name: (files(__package__) / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    page = Template(parts["html"]).substitute(
        title=escape(title),
        summary=escape(summary),
        style=parts["css"],
        script=parts["js"],
        content="\n".join(content),
        # "</script>" in a row's name must not end the element
        galleries=json.dumps(galleries).replace("<", "\\u003c"),
    )
    write_atomically(file, page)


def _section(table: str, rows: Sequence[Row], metric: str, galleries: list[dict[str, Any]]) -> str:
    parts = [f"<h2>{escape(table)}</h2>", _table(main_cells(rows, metric))]
    if any(row.mean is not None for row in rows):
        plots = plots_as_svg(rows, metric)
        if widths_of(rows):
            plots.append(as_svg(lambda axes: draw_trimap(axes, rows), f"{table}_trimap"))
        parts += ["<h3>Plots</h3>", f'<div class="plots">{"".join(plots)}</div>']
    try:
        cells = class_cells(rows, metric)
    except UserError:  # a figure without classes, such as a loss or a speed
        pass
    else:
        parts += [f"<h3>{escape(cells.title)}</h3>", _table(cells)]
    gallery = gather(rows)
    if gallery.scenes:
        parts += ["<h3>Predictions</h3>", _browser(gallery, len(galleries))]
        galleries.append(_gallery(gallery, rows))
    return f"<section>{''.join(parts)}</section>"


def _table(cells: Cells) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in cells.header)
    body = []
    for index, line in enumerate(cells.body):
        first, *rest = (escape(cell) for cell in line)
        kind = ' class="best"' if index in cells.best else ""
        body.append(f"<tr{kind}><td>{first}</td>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>")
    notes = "".join(f'<li class="unlike">{escape(note)}</li>' for note in cells.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(cells.title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _browser(gallery: Gallery, index: int) -> str:
    legend = "".join(
        f'<li><i style="background:{escape(color)}"></i>{escape(name)}</li>' for name, color in gallery.colors
    )
    left_out = f"<p>{gallery.left_out} more runs are left out of the pictures.</p>" if gallery.left_out else ""
    return f"""<div class="browser" data-gallery="{index}">
<div class="controls">
<label>Test image <select name="scene"></select></label>
<button type="button" class="previous" aria-keyshortcuts="p" title="previous image (p)">◀</button>
<button type="button" class="next" aria-keyshortcuts="n" title="next image (n)">▶</button>
<label>Left <select name="left"></select></label>
<button type="button" class="swap" aria-keyshortcuts="x" title="swap left and right (x)">⇄</button>
<label>Right <select name="right"></select></label>
<label class="check"><input type="checkbox" name="errors"> errors only</label>
</div>
<div class="stage"><canvas class="under"></canvas><canvas class="over"></canvas><div class="divider"></div>
<span class="name left"></span><span class="name right"></span></div>
<input type="range" class="slider" name="slider" min="0" max="100" value="50" step="1"
 aria-label="how much of the left picture is shown">
<ul class="legend">{legend}</ul>{left_out}
<p>Drag in the picture, or use the arrow keys on the slider; p and n change the image, x swaps the sides.</p>
</div>"""


def _gallery(gallery: Gallery, rows: Sequence[Row]) -> dict[str, Any]:
    """What the page's script reads; it starts with the baseline beside the best other row."""
    baseline = next((row for row in rows if row.is_baseline), rows[0])
    best = max((row for row in rows if row is not baseline), key=lambda row: row.mean or 0.0, default=baseline)
    starts = [
        next((i for i, name in enumerate(gallery.runs) if name.startswith(f"{row.name}, seed ")), 0)
        for row in (baseline, best)
    ]
    return {
        "runs": gallery.runs,
        "start": starts,
        "void": VOID_COLOR,
        "scenes": [_scene(scene) for scene in gallery.scenes],
    }


def _scene(scene: Scene) -> dict[str, Any]:
    return {
        "name": scene.name,
        "image": _address(scene.image),
        "truth": _address(scene.truth),
        "predictions": {name: _address(data) for name, data in scene.predictions.items()},
    }


def _address(data: bytes | None) -> str | None:
    if data is None:
        return None
    kind = next(kind for start, kind in KINDS.items() if data.startswith(start))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
