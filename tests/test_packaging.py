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
    """Triton comes with PyTorch's CUDA wheels; segmentation-models-pytorch is imported by the losses taken from it."""
    third_party = {
        name.split(".")[0]
        for file in (CHECKOUT / "losses").rglob("*.py")
        for name in imported_names(file)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    # torch itself needs typing_extensions
    assert third_party <= {
        "torch",
        "torchmetrics",
        "typing_extensions",
        "triton",
        "segmentation_models_pytorch",
        "beyondpixel",
    }


def test_only_one_file_touches_albumentations() -> None:
    users = [
        file
        for folder in FOLDERS
        for file in (CHECKOUT / folder).rglob("*.py")
        if "albumentations" in imported_names(file)
    ]
    assert len(users) == 1, users


@pytest.mark.parametrize("folder", ["networks", "metrics"])
def test_networks_and_metrics_know_nothing_of_lightning(folder: str) -> None:
    for file in (CHECKOUT / "lightning_modules" / folder).rglob("*.py"):
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


@pytest.mark.slow
def test_losses_networks_and_metrics_need_nothing_that_trains() -> None:
    """What `pip install beyondpixel` gives without [train]; the rest says what to install."""
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("pytorch_lightning", "lightning_fabric", "albumentations", "wandb", "jsonargparse", "pooch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch, torchmetrics
before = set(sys.modules)
import beyondpixel.losses
print({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
import beyondpixel.lightning_modules.metrics, beyondpixel.lightning_modules.networks
try:
    from beyondpixel.lightning_modules import DeepLabModule
except ImportError as error:
    print(error)
from beyondpixel.experiments.cli import main
main(["fit"])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == [
        "{'beyondpixel'}",  # torch and torchmetrics have loaded all else
        "DeepLabModule needs the package pytorch_lightning; try: pip install 'beyondpixel[train]'",
    ]
    assert ran.returncode == 1
    assert "this needs the package" in ran.stderr
    assert "pip install 'beyondpixel[train]'" in ran.stderr
