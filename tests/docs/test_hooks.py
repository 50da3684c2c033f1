"""What the documentation's build makes of docstrings, equations and commands."""

import doctest
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOOKS = Path(__file__).resolve().parents[2] / "docs" / "hooks"


def test_docstrings_become_markdown(load_file: Callable[[Path], Any]) -> None:
    pytest.importorskip("griffe")
    module = load_file(HOOKS / "docstrings.py")
    assert doctest.testmod(module) == (0, 1)
    text = "One.\n\n.. math::\n    a = b,\n\n    c = d\n\nTwo.\n\n>>> 1 + 1\n2"
    expected = "One.\n\n$$\na = b,\nc = d\n$$\n\n\nTwo.\n\n```pycon\n>>> 1 + 1\n2\n```"
    assert module.plain_markup(text) == expected


def test_equations_become_mathml_and_commands_their_help(
    load_file: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("latex2mathml")
    monkeypatch.setenv("COLUMNS", "80")  # set by the hook, and put back by the test
    module = load_file(HOOKS / "pages.py")
    shown = module.on_page_content(r'<p><span class="arithmatex">\(x^2 &lt; 1\)</span></p>')
    assert shown.startswith("<p><math")
    assert "<msup>" in shown
    assert "<mo><</mo>" in html.unescape(shown)
    page = module.on_page_markdown("# Jobs\n\n<!-- help: run-job -->\n")
    assert page.startswith("# Jobs\n\n```text\nusage: beyondpixel run-job [-h]")
    assert "--patience" in page
