"""What may stand in a run spec, and every mistake in one, with its line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from beyondpixel.experiments.grids import grid_rows
from beyondpixel.experiments.layers import close_to
from beyondpixel.experiments.spec_files import SpecError, SpecFile

SPEC_KEYS = ("base", "config", "reference", "evaluate", "grid", "row")
# what a row may evaluate, and how: the words of `beyondpixel test`
EVALUATE_KEYS = {
    "run": (str, "text such as rmi_table1_voc/v3_ce"),
    "postprocess": (str, "text such as crf:5"),
    "tta": (str, "text such as flip"),
    "window": (int, "the side of a sliding window in pixels"),
    "overlap": (float, "the share of a window that the next one covers"),
}
REFERENCE_KEYS = {
    "metric": "the name of a figure, such as test/mIoU",
    "value": "a number, in percent",
    "source": "where it is printed",
    "per_class": "class names with a number each, in percent",
    "inference_seconds": "seconds an image",
}


def mistakes_in(source: SpecFile) -> list[str]:
    """Every mistake in a spec's own keys, `file:line: what is wrong`; those below `config` are found later."""
    return [
        *source.unknown_keys(SPEC_KEYS),
        *_wrong_base_or_config(source),
        *_wrong_grid(source),
        *_wrong_reference(source),
        *_wrong_evaluate(source),
    ]


def _wrong_base_or_config(source: SpecFile) -> Iterator[str]:
    base, config = source.content.get("base"), source.content.get("config")
    if base is not None and not (isinstance(base, list) and all(isinstance(name, str) for name in base)):
        yield f"{source.place_of('base')}: base: expected a list of fragments, got {base!r}"
    if config is not None and not isinstance(config, dict):
        yield f"{source.place_of('config')}: config: expected keys and values, got {config!r}"
    elif config is not None:
        yield from source.unknown_keys(("model", "data", "trainer"), "config")


def _wrong_grid(source: SpecFile) -> Iterator[str]:
    if "grid" in source.content:
        try:
            grid_rows(source)
        except SpecError as error:
            yield from error.mistakes
    elif "row" in source.content:
        yield f"{source.place_of('row')}: row: names the rows of a grid; without one, the file's name is the row's"


def _wrong_reference(source: SpecFile) -> Iterator[str]:
    reference = source.content.get("reference")
    if reference is None:
        return
    if not isinstance(reference, dict):
        yield f"{source.place_of('reference')}: reference: expected keys and values, got {reference!r}"
        return
    yield from source.unknown_keys(list(REFERENCE_KEYS), "reference")
    if reference and "value" not in reference:
        yield f"{source.place_of('reference')}: reference: expected value, {REFERENCE_KEYS['value']}"
    for key, expected in REFERENCE_KEYS.items():
        value = reference.get(key)
        if key == "value" and isinstance(value, dict) and "grid" in source.content:
            yield from _wrong_values_by_row(source, value)
        elif key in reference and not _fits(key, value):
            yield f"{source.place_of('reference', key)}: reference.{key}: expected {expected}, got {value!r}"


def _fits(key: str, value: Any) -> bool:
    if key in ("metric", "source"):
        return isinstance(value, str)
    if key == "per_class":
        return isinstance(value, dict) and all(_is_number(number) for number in value.values())
    return _is_number(value)


def _wrong_values_by_row(source: SpecFile, values: dict[str, Any]) -> Iterator[str]:
    try:
        rows = [row.name for row in grid_rows(source)]
    except SpecError:  # told as a mistake of the grid
        return
    for row, value in values.items():
        place = source.place_of("reference", "value", str(row))
        if row not in rows:
            yield f"{place}: reference.value: the grid has no row {row}; " + close_to(
                row, rows, otherwise=f"its rows are {', '.join(rows)}"
            )
        if not _is_number(value):
            yield f"{place}: reference.value.{row}: expected {REFERENCE_KEYS['value']}, got {value!r}"


def _wrong_evaluate(source: SpecFile) -> Iterator[str]:
    if "evaluate" not in source.content:
        return
    evaluate = source.content["evaluate"]
    for key in ("base", "config", "grid"):
        if key in source.content:
            yield f"{source.place_of(key)}: {key}: a row that evaluates has all this from evaluate.run; take it out"
    if not isinstance(evaluate, dict):
        place = source.place_of("evaluate")
        yield f"{place}: evaluate: expected {{run: TABLE/ROW, postprocess: crf:5}}, got {evaluate!r}"
        return
    yield from source.unknown_keys(list(EVALUATE_KEYS), "evaluate")
    for key, (kind, expected) in EVALUATE_KEYS.items():
        value = evaluate.get(key)
        if (key == "run" or key in evaluate) and (not isinstance(value, kind) or isinstance(value, bool)):
            got = repr(value) if key in evaluate else "nothing"
            yield f"{source.place_of('evaluate', key)}: evaluate.{key}: expected {expected}, got {got}"
    if not set(evaluate) - {"run"}:
        yield f"{source.place_of('evaluate')}: evaluate: expected what to do beside run, such as postprocess: crf:5"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
