r"""A table for a paper: booktabs, nothing else needed.

The text goes into a document as it is; its preamble needs ``\usepackage{booktabs}`` only.
"""

from __future__ import annotations

from beyondpixel.experiments.compare.tables import Cells

# in one pass, so that a replacement's own characters are not replaced again
_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
        "×": r"$\times$",
        "†": r"$^\dagger$",
        "…": r"\ldots{}",
        "–": "--",
        "−": "$-$",
    }
)


def escaped(text: str) -> str:
    r"""Text as LaTeX prints it.

    Example:
        >>> print(escaped("region_size 50 % & 61.11 ± 0.31"))
        region\_size 50 \% \& 61.11 $\pm$ 0.31
    """
    return text.translate(_SPECIAL)


def as_latex(cells: Cells) -> str:
    """A `table` environment; the best line of each table is bold, the notes follow below."""
    columns = "l" + "r" * (len(cells.header) - 1)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(cells.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_cell, cells.header)) + r" \\",
        r"\midrule",
    ]
    for index, line in enumerate(cells.body):
        shown = [rf"\textbf{{{escaped(cell)}}}" if index in cells.best else _cell(cell) for cell in line]
        lines.append(" & ".join(shown) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {escaped(note)}" for note in cells.notes]
    lines += [r"\end{table}"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    # a bracket at the start of a line would be taken for the optional argument of \\
    return f"{{{escaped(text)}}}" if text.startswith(("[", "*")) else escaped(text)
