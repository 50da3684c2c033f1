"""Docstrings as mkdocs reads them: roles become code, equations $$ ... $$, and examples blocks of code."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):`~?([^`]+)`")
INLINE = re.compile(r":math:`([^`]+)`")
EQUATION = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:\n?(?P=indent) +\S.*\n)*)",
    re.MULTILINE,
)
EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*\n(?:(?P=indent)\S.*\n)*", re.MULTILINE)


class PlainMarkup(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            obj.docstring.value = plain_markup(obj.docstring.value)


def plain_markup(text: str) -> str:
    """Markdown of a docstring.

    >>> plain_markup("See :func:`~beyondpixel.a.b` of :math:`x`:\\n\\n.. math:: x = 1\\n    + 2")
    'See `b` of $x$:\\n\\n$$\\nx = 1\\n+ 2\\n$$'
    """
    text = INLINE.sub(r"$\1$", ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text + "\n"))
    return EXAMPLE.sub(_example, EQUATION.sub(_equation, text)).rstrip()


def _equation(found: re.Match[str]) -> str:
    lines = [line.strip() for line in f"{found['first']}\n{found['rest']}".splitlines() if line.strip()]
    return "\n".join(found["indent"] + line for line in ["$$", *lines, "$$"]) + "\n\n"


def _example(found: re.Match[str]) -> str:
    return f"{found['indent']}```pycon\n{found[0]}{found['indent']}```\n"
