"""The changes that CONTRIBUTING.md shows can be applied, keep the style, and pass the tests that it names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
CHANGES = re.findall(
    r"^```diff\n(.*?)^```\n\n`pytest ([^`]+)`", (CHECKOUT / "CONTRIBUTING.md").read_text(), re.M | re.S
)
PACKAGES = ("losses", "lightning_modules", "datamodules", "experiments")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkout, imported as `beyondpixel` from `build/copy`."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "outputs", "results", "*.egg-info")
    copy = tmp_path / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=ignored)
    (copy / "build" / "copy" / "beyondpixel").mkdir(parents=True)
    for name in PACKAGES:
        (copy / "build" / "copy" / "beyondpixel" / name).symlink_to(copy / name)
    return copy


def test_there_is_one_for_a_loss_and_one_for_a_data_set() -> None:
    assert len(CHANGES) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("change", "arguments"), CHANGES, ids=["loss", "data set"])
def test_a_change_can_be_applied_and_passes_its_tests(change: str, arguments: str, copy: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy / "build" / "copy")}

    def run(*command: str, text: str | None = None) -> str:
        done = subprocess.run(
            command, cwd=copy, env=environment, input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # the tests that are named can only pass on the copy: the checkout has neither loss nor data set
    run("git", "apply", "-", text=change)
    python = (sys.executable, "-m")
    files = re.findall(r"^\+\+\+ b/(.*\.py)$", change, re.MULTILINE)
    run(*python, "ruff", "check", "--no-cache", *files)
    run(*python, "ruff", "format", "--no-cache", "--check", *files)
    said = run(*python, "pytest", "-q", "-p", "no:cacheprovider", *arguments.split())
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said
