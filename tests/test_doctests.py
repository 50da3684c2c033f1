"""Every example in a docstring runs and shows what it says."""

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("losses", "lightning_modules", "datamodules", "experiments")
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(
        importlib.import_module(f"beyondpixel.{package}").__path__, f"beyondpixel.{package}."
    )
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctest(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
