"""Hooks of mkdocs: the package where mkdocstrings finds it, the commands' help, and equations as MathML."""

import contextlib
import html
import io
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import latex2mathml.converter

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "build" / "package" / "beyondpixel"
HELP = re.compile(r"^<!-- help:(?P<command>( [a-z-]+)*) -->$", re.MULTILINE)
MATH = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_startup(**_: Any) -> None:
    """Link the folders of the checkout as the package that they install as, so that its sources can be read.

    This comes before any plugin reads its options: mkdocstrings passes over a path that isn't there yet.
    """
    folders = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        link = PACKAGE / name.partition(".")[2]
        if not link.is_symlink():
            link.symlink_to(CHECKOUT / folder)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a command's own help where a page asks for it."""
    return HELP.sub(lambda found: f"```text\n{help_of(found['command'])}\n```", markdown)


def help_of(command: str) -> str:
    """What `beyondpixel COMMAND --help` prints."""
    from beyondpixel.experiments.cli import main

    os.environ["COLUMNS"] = "92"  # what a page shows without scrolling
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return printed.getvalue().strip()


def on_page_content(content: str, **_: Any) -> str:
    """Turn equations into MathML, which needs no script."""
    return MATH.sub(as_mathml, content)


def as_mathml(found: re.Match[str]) -> str:
    """One equation."""
    display = "block" if found["open"] == "[" else "inline"
    return latex2mathml.converter.convert(html.unescape(found["tex"]).strip(), display=display)
