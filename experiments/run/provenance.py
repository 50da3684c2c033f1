"""Provenance of a run: git commit, package versions and hardware."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "beyondpixel",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "wandb",
    "numpy",
)


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, with the suffix `-dirty` if files differ; None outside git."""
    commit, dirty = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None or dirty is None else commit.strip() + ("-dirty" if dirty else "")


def uncommitted_changes() -> str:
    """Uncommitted changes of the checkout that this code runs from, as a patch; empty if there are none."""
    return _git("diff", "HEAD") or ""


def _git(*arguments: str) -> str | None:
    """Output of git in this code's checkout; None if there is no checkout, or git fails."""
    command = ("git", "-C", str(Path(__file__).parent))
    settings: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 10}
    try:
        # an installed copy may be inside another repository, which does not track it
        subprocess.run([*command, "ls-files", "--error-unmatch", Path(__file__).name], check=True, **settings)
        return str(subprocess.run([*command, *arguments], check=True, **settings).stdout)
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """Product name of a device, to tell timings apart; the processor's type if the name is unknown.

    Example:
        >>> device_name(torch.device("cpu")) != ""
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, as plain types.

    Example:
        >>> sorted(describe_environment())
        ['accelerators', 'cpu_threads', 'host', 'packages', 'platform', 'python']
    """
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages,
    }
