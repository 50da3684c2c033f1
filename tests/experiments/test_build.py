"""Objects built from configs, and the errors of their constructors."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from pytorch_lightning import LightningDataModule

from beyondpixel.experiments.build import build_data
from beyondpixel.experiments.cli import main
from beyondpixel.experiments.errors import UserError


class Plain(LightningDataModule):
    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root


class Seeded(Plain):
    def __init__(self, root: str, seed: int = 0) -> None:
        super().__init__(root)
        self.seed = seed


class Failing(Plain):
    def __init__(self, root: str) -> None:
        try:
            int(root)
        except ValueError as error:
            raise ValueError(f"root must be a number, got {root!r}") from error


@pytest.fixture
def somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebody_elses")
    module.Plain, module.Seeded, module.Failing = Plain, Seeded, Failing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebody_elses", module)


@pytest.mark.parametrize("name", ["Plain", "Seeded"])
@pytest.mark.usefixtures("somebody_elses")
def test_a_data_module_gets_the_seed_if_it_takes_one(name: str) -> None:
    data = {"class_path": f"somebody_elses.{name}", "init_args": {"root": "here"}}
    built = build_data({"seed_everything": 7, "data": data})
    assert getattr(built, "seed", 7) == 7
    assert isinstance(built, Plain)
    assert built.root == "here"


@pytest.mark.usefixtures("somebody_elses")
def test_the_error_is_the_one_that_left_the_constructor() -> None:
    """Neither the parser's around it, nor the one that caused it, which says less."""
    data = {"class_path": "somebody_elses.Failing", "init_args": {"root": "here"}}
    with pytest.raises(UserError, match=r"^root must be a number, got 'here'$"):
        build_data({"seed_everything": 7, "data": data})


def test_an_encoder_that_cannot_be_dilated_is_an_error_that_lists_others(tmp_path: Path) -> None:
    words = ["fit", "--model.encoder", "vgg11", "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"encoder 'vgg11' cannot be dilated to output_stride=16 \(.+\); .*resnet50"):
        main(words)
