"""Result files of the benchmarks, and the tables generated from them.

    python benchmarks/tables.py            regenerate every table from the JSON files
    python benchmarks/tables.py --check    fail if a table differs from its JSON file

A benchmark NAME.py writes results/NAME.json, and its `sections` converts that to Markdown: all sections are written to
results/NAME.md, and a single one between `<!-- benchmark: NAME SECTION -->` and `<!-- /benchmark -->` in any Markdown
file of the checkout.
"""

import argparse
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from measuring.markdown import conditions
from measuring.record import CHECKOUT

RESULTS = CHECKOUT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- benchmark: (\w+) (\w+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a table differs")
    check = parser.parse_args().check
    fresh = rendered(CHECKOUT)
    changed = [file for file, content in fresh.items() if not file.exists() or file.read_text() != content]
    if changed and check:
        names = ", ".join(str(file.relative_to(CHECKOUT)) for file in changed)
        sys.exit(f"Tables differ from benchmarks/results/*.json: {names}; run `python benchmarks/tables.py`")
    for file in changed:
        file.write_text(fresh[file])


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Make the parser of a benchmark's arguments, with the folder of its results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of {name}.json and {name}.md")
    return parser


def save(name: str, record: dict[str, Any], folder: Path) -> None:
    """Write a benchmark's record, with the load at its end, and its page; print the page."""
    record = {**record, "load_after": os.getloadavg()[0]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (folder / f"{name}.md").write_text(page(name, record))
    print(page(name, record))
    print(f"All repetitions are in {folder / name}.json")


def rendered(checkout: Path) -> dict[Path, str]:
    """Render the expected content of every file with tables."""
    folder = checkout / "benchmarks" / "results"
    records = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    files = {folder / f"{name}.md": page(name, record) for name, record in records.items()}
    for file in (*checkout.glob("*.md"), *checkout.glob("docs/**/*.md"), *checkout.glob("*/README.md")):
        content = file.read_text()
        if BLOCK.search(content):
            files[file] = BLOCK.sub(
                lambda match: f"{match[1]}{block(match[2], records[match[2]], match[3])}\n{match[4]}", content
            )
    return files


def page(name: str, record: dict[str, Any]) -> str:
    """Render all sections of a record, below their title and the conditions."""
    module = importlib.import_module(name)
    title = (module.__doc__ or name).splitlines()[0].rstrip(".")
    return "\n\n".join([f"# {title}", conditions(record), *module.sections(record).values()]) + "\n"


def block(name: str, record: dict[str, Any], section: str) -> str:
    """Render one section of a record, and the conditions."""
    return f"{importlib.import_module(name).sections(record)[section]}\n\n{conditions(record)}"


if __name__ == "__main__":
    main()
