"""Data modules of somebody else."""

import sys
from types import ModuleType

import pytest
from pytorch_lightning import LightningDataModule

from beyondpixel.experiments.build import build_data


class Plain(LightningDataModule):
    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root


class Seeded(Plain):
    def __init__(self, root: str, seed: int = 0) -> None:
        super().__init__(root)
        self.seed = seed


@pytest.mark.parametrize("name", ["Plain", "Seeded"])
def test_a_data_module_gets_the_seed_if_it_takes_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebody_elses")
    module.Plain, module.Seeded = Plain, Seeded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebody_elses", module)
    data = {"class_path": f"somebody_elses.{name}", "init_args": {"root": "here"}}
    built = build_data({"seed_everything": 7, "data": data})
    assert getattr(built, "seed", 7) == 7
    assert isinstance(built, Plain)
    assert built.root == "here"
