"""The package: complete, importable from anywhere, and with imports that go one way."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDERS = ("losses", "lightning_modules", "datamodules", "experiments")
MAY_IMPORT = {
    "losses": set(),
    "datamodules": set(),
    "lightning_modules": {"losses"},
    "experiments": {"losses", "lightning_modules", "datamodules"},
}


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    for file in (CHECKOUT / folder).rglob("*.py"):
        siblings = {n.split(".")[1] for n in imported_names(file) if n.startswith("beyondpixel.")}
        assert siblings <= MAY_IMPORT[folder] | {folder}, file


def test_losses_need_torch_and_torchmetrics_only() -> None:
    third_party = {
        name.split(".")[0]
        for file in (CHECKOUT / "losses").rglob("*.py")
        for name in imported_names(file)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    # torch itself needs typing_extensions, and its CUDA wheels bring triton
    assert third_party <= {"torch", "torchmetrics", "triton", "typing_extensions", "beyondpixel"}


def test_only_one_file_touches_albumentations() -> None:
    users = [
        file
        for folder in FOLDERS
        for file in (CHECKOUT / folder).rglob("*.py")
        if "albumentations" in imported_names(file)
    ]
    assert len(users) == 1, users


def test_networks_know_nothing_of_lightning() -> None:
    for file in (CHECKOUT / "lightning_modules" / "networks").rglob("*.py"):
        assert not {name for name in imported_names(file) if "lightning" in name.split(".")[0]}, file


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        "beyondpixel." + str(file.parent.relative_to(CHECKOUT)).replace("/", ".")
        for folder in FOLDERS
        for file in (CHECKOUT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


@pytest.mark.slow
def test_wheel_installs_and_imports_away_from_the_checkout(tmp_path: Path) -> None:
    """A wheel holds code, type marker and run specs, and does not put `losses` at the top of site-packages."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    site = tmp_path / "site"
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(CHECKOUT)], check=True)
    assert not (site / "losses").exists()
    assert (site / "beyondpixel" / "losses" / "py.typed").exists()
    assert (site / "beyondpixel" / "experiments" / "runs" / "demo" / "rmi.yaml").exists()
    code = "import beyondpixel.losses as l; print(l.RMILoss(3).num_classes, l.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
    ).stdout
    assert shown.startswith("3 ")
    assert str(site) in shown
