"""Fenced blocks of Markdown pages, and the commands in those of bash."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what follows the fence.
        title: the file that the block is the content of, or None.
        text: between the fences.
        line: of the page, the first of the text.
    """

    language: str
    title: str | None
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    content = page.read_text()
    return [
        Block(found["language"], found["title"], found["text"], content[: found.start()].count("\n") + 2)
        for found in FENCE.finditer(content)
    ]


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a bash block as words, with continued lines joined and comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines for words in _split_at(shlex.split(line, comments=True), "&&") if words]


def _split_at(words: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
