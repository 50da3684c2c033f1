"""Every command and Python block of the documentation is run, at small size, page by page and in order."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from beyondpixel.experiments import cli
from beyondpixel.experiments.allowed_imports import VARIABLE, take_allowed
from beyondpixel.experiments.command_line import make_parser
from beyondpixel.experiments.plan import plan_runs
from beyondpixel.experiments.spec import parse_overrides

CHECKOUT = Path(__file__).resolve().parents[2]
LANGUAGES = {"bash", "diff", "python", "yaml", "text"}
PAGES = sorted(
    [
        *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md")),
        *(CHECKOUT / "docs").rglob("*.md"),
        *(CHECKOUT / f"{room}/README.md" for room in ("datamodules", "experiments", "lightning_modules/metrics")),
    ]
)


@pytest.fixture(scope="module")
def reading(load_file: Callable[[Path], Any]) -> Any:
    return load_file(Path(__file__).with_name("blocks.py"))


@pytest.fixture(scope="module")
def small(load_file: Callable[[Path], Any]) -> Any:
    return load_file(Path(__file__).with_name("small_size.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_page(
    page: Path,
    page_folder: Path,
    reading: Any,
    small: Any,
    finished_table: Any,
    trained_once: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in reading.blocks_of(page):
        if block.title:
            file = page_folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        where = f"{page.relative_to(CHECKOUT)}:{block.line}"
        if block.language == "python":
            run_python(block.text, names, where, small)
        elif block.language == "bash":
            forget_modules_below(page_folder)  # commands are processes of their own
            for words in reading.commands_of(block):
                with monkeypatch.context() as patch:
                    run_command(words, where, small, (finished_table, trained_once), patch)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text), where
    forget_modules_below(page_folder)


def forget_modules_below(folder: Path) -> None:
    files = {name: str(getattr(module, "__file__", None) or "") for name, module in sys.modules.items()}
    for name in [name for name, file in files.items() if file.startswith(str(folder))]:
        del sys.modules[name]


def run_python(text: str, names: dict[str, Any], where: str, small: Any) -> None:
    for old, new in small.REPLACED.items():
        text = text.replace(old, new)
    code = compile(text, where, "exec")
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    needed = imported.intersection(small.OPTIONAL_PACKAGES)
    if imported.isdisjoint(small.RUN_ELSEWHERE) and all(importlib.util.find_spec(name) for name in needed):
        exec(code, names)


def run_command(words: list[str], where: str, small: Any, runs: tuple[Any, Any], patch: pytest.MonkeyPatch) -> None:
    finished_table, trained_once = runs
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        if name != "WANDB_MODE":  # the tests have it disabled: W&B's own process takes seconds
            patch.setenv(name, value)
    patch.setenv(VARIABLE, "")  # which --allow-import sets
    reason = small.reason_not_to_run(words)
    if words[0] != "beyondpixel":
        assert reason is not None, f"{where}: {words[0]} is neither beyondpixel nor in NOT_RUN"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE), f"{where}: {words}"
        return
    words = take_allowed([with_small_data(word, small) for word in words[1:]])
    if reason is not None or words[0] == "launch":
        parse(words, where)
    if reason is not None:
        return
    if words[0] == "compare":
        for folder in (Path(word) for word in words[1:] if word.startswith("outputs/")):
            finished_table(folder.name, folder.parent)
    words = made_small(words, small)
    try:
        if words[0] == "fit":
            trained_once(words, cli.main)
        else:
            cli.main(words)
    except SystemExit as stopped:
        raise AssertionError(f"{where}: beyondpixel {' '.join(words)}: {stopped}") from stopped


def with_small_data(word: str, small: Any) -> str:
    option, equals, value = word.rpartition("=")
    return option + equals + small.DATA.get(value, value)


def made_small(words: list[str], small: Any) -> list[str]:
    if words[0] == "launch" and "--as-wandb-sweep" not in words:
        return [*words, "--dry-run"]
    if words[0] != "fit":
        return words
    named = " ".join(words)
    data = next((name for name in small.SMALL_DATA if name in named), "ShapesDataModule")
    joined = re.sub(r"(--[\w.]+) (?!--)", r"\1=", named)
    kept = [small.REPLACED.get(word, word) for word in joined.split() if word not in small.LEFT_OUT]
    return [*kept, *small.SMALL_TRAINING, *small.SMALL_DATA[data]]


def parse(words: list[str], where: str) -> None:
    """Read a command as its parser does, and of a launch also the specs."""
    name, rest = (" ".join(words[:2]), words[2:]) if words[0] == "data" else (words[0], words[1:])
    module, _, function_name = cli.COMMANDS[name][0].partition(":")
    function = getattr(importlib.import_module(f"beyondpixel.experiments.{module}"), function_name)
    changes, own = parse_overrides(rest) if name == "launch" else ({}, rest)
    try:
        values = vars(make_parser(function, f"beyondpixel {name}").parse_intermixed_args(own))
    except SystemExit as stopped:
        raise AssertionError(f"{where}: beyondpixel {' '.join(words)} is not understood") from stopped
    if name == "launch":
        assert plan_runs(values["specs"], seeds=values["seeds"], output=Path("outputs"), overrides=changes), where


def test_every_block_says_its_language(reading: Any) -> None:
    for page in PAGES:
        for block in reading.blocks_of(page):
            assert block.language in LANGUAGES, f"{page}:{block.line}: {block.language or 'no language'}"


def test_every_reason_not_to_run_is_used(reading: Any, small: Any) -> None:
    commands = [
        words for page in PAGES for block in reading.blocks_of(page) if block.language == "bash"
        for words in reading.commands_of(block)
    ]  # fmt: skip
    for start in small.NOT_RUN:
        assert any(tuple(words[: len(start)]) == start for words in commands), start
