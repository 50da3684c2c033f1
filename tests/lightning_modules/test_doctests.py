"""Every example in the package's docstrings runs."""

import doctest
import importlib
import pkgutil

import pytest

import beyondpixel.lightning_modules as package

MODULES = [
    package.__name__,
    *(module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0
