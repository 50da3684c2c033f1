"""ARCHITECTURE.md's picture is that of the imports; test_walks.py walks its walks."""

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("losses", "lightning_modules", "datamodules", "experiments")
# folders that are folders of their own in the picture
FOLDERS = (
    *("losses/functional", "losses/ops"),
    *(f"lightning_modules/{name}" for name in ("networks", "metrics", "callbacks", "visualization")),
    *("datamodules/datasets",),
    *(f"experiments/{name}" for name in ("run", "inference", "launch", "compare")),
)


def folder_of(path: str) -> str:
    inner = next((folder for folder in FOLDERS if path == folder or path.startswith(f"{folder}/")), None)
    return (inner or path.split("/", maxsplit=1)[0]).rpartition("/")[2]


def imports_of(file: Path) -> set[str]:
    """Paths of the package's modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("beyondpixel.").replace(".", "/") for name in names if name.startswith("beyondpixel.")}


def actual_arrows() -> set[tuple[str, str]]:
    arrows = set()
    for package in PACKAGES:
        for file in (CHECKOUT / package).rglob("*.py"):
            source = folder_of(file.relative_to(CHECKOUT).as_posix())
            arrows |= {(source, folder_of(target)) for target in imports_of(file)}
    return {(source, target) for source, target in arrows if source != target}


def drawn_arrows() -> set[tuple[str, str]]:
    picture = (CHECKOUT / "ARCHITECTURE.md").read_text().partition("```mermaid")[2].partition("```")[0]
    lines = re.findall(r"^\s+(\w+) --> (.+)$", picture, flags=re.MULTILINE)
    return {(source, target.strip()) for source, targets in lines for target in targets.split("&")}


def test_the_picture_shows_the_imports() -> None:
    assert drawn_arrows() == actual_arrows()
