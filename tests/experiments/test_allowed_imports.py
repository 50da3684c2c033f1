"""A config's class paths import nothing that the user has not allowed."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from beyondpixel.experiments import allowed_imports
from beyondpixel.experiments.build import build_all
from beyondpixel.experiments.cli import main
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.resolve import complete

HOSTILE = """
from pathlib import Path
from beyondpixel.lightning_modules import DeepLabModule
Path(__file__).with_name("ran").touch()
class Net(DeepLabModule):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path that leaves a file `ran` when it is imported; tells that file."""
    (tmp_path / "stranger.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    monkeypatch.setenv(allowed_imports.VARIABLE, "")  # so that it is as before afterwards
    return tmp_path / "ran"


CONFIG = {"model": {"class_path": "stranger.Net", "init_args": {"encoder": "resnet18"}}}
CALLBACK = {"trainer": {"callbacks": [{"class_path": "stranger.Net"}]}}


def test_a_spec_imports_no_strange_module(module: Path) -> None:
    _, errors = complete(CONFIG)
    assert [(keys, text.partition("; ")[2]) for keys, text in errors] == [
        (("model", "class_path"), "if you trust it, add --allow-import stranger")
    ]
    _, errors = complete(CALLBACK)
    assert [keys for keys, _ in errors] == [("trainer", "callbacks", "0", "class_path")]
    values, _ = complete({})
    with pytest.raises(UserError, match=r"model.class_path: stranger.Net: the module 'stranger' may not be imported"):
        build_all({**values, **CONFIG})
    assert not module.exists()


@pytest.mark.parametrize("command", [["specs"], ["fit", "--config"], ["launch"]])
def test_commands_say_what_to_add(module: Path, tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "table" / "row.yaml"
    file.parent.mkdir()
    data = {"class_path": "ShapesDataModule"}
    spec = {**CONFIG, "data": data} if command[0] == "fit" else {"config": {**CONFIG, "data": data}}
    file.write_text(yaml.safe_dump(spec))
    shown = ["--resolved"] if command == ["specs"] else []
    with pytest.raises(SystemExit, match="if you trust it, add --allow-import stranger"):
        main([*command, str(file), *shown])
    assert not module.exists()


@pytest.mark.parametrize(
    "form", ["-c=FILE", "-cFILE", "--config=FILE", "-c FILE", "--conf=FILE", "--config=YAML", "--model=FILE"]
)
def test_no_way_to_give_a_config_imports_a_strange_module(module: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG["model"] if "model" in form else CONFIG))
    words = form.replace("FILE", str(file)).replace("YAML", json.dumps(CONFIG)).split(" ", 1)
    with pytest.raises(SystemExit):
        main(["fit", *words])
    assert not module.exists()


def test_an_allowed_module_is_imported(module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table" / "row.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({"config": {**CONFIG, "data": {"class_path": "ShapesDataModule"}}}))
    main(["specs", str(file), "--resolved", "--allow-import", "stranger"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] == "stranger.Net"
    assert module.exists()


def test_allowing_a_module_allows_what_is_in_it_and_nothing_that_begins_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allowed_imports.VARIABLE, "mine.models")

    def is_allowed(class_path: str) -> bool:
        return not allowed_imports.forbidden_imports({"class_path": class_path})

    assert is_allowed("mine.models.Net")
    assert is_allowed("mine.models.deep.Net")
    assert is_allowed("timm.not_there.Net")
    assert not is_allowed("mine.Net")
    assert not is_allowed("mine.models_of_others.Net")
    assert not is_allowed("torch_evil.Net")


def test_the_option_needs_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allowed_imports.VARIABLE, "")
    for words in (["launch", "--allow-import"], ["launch", "--allow-import=a b"]):
        with pytest.raises(SystemExit, match="expected the name of a module, such as my_project"):
            main(words)
