"""Projects of other people, away from the checkout, with the package installed from its wheel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, without what it depends on: that is in this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("beyondpixel-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run_project(name: str, site: Path, folder: Path) -> str:
    shutil.copy(HERE / name, folder)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"from {site}" in done.stdout
    return done.stdout


def test_rmi_in_somebody_elses_lightning_module(site: Path, tmp_path: Path) -> None:
    shown = run_project("own_module.py", site, tmp_path)
    losses = [float(loss) for loss in re.findall(r"epoch loss (\S+)", shown)]
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]


def test_somebody_elses_network_in_our_module(site: Path, tmp_path: Path) -> None:
    shown = run_project("own_network.py", site, tmp_path)
    (score,) = re.findall(r"mIoU (\S+)", shown)
    assert float(score) > 0.8  # colors are easily told apart; guessing gives 0.2
    assert "same True True 12" in shown
