"""The command line as a newcomer meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from beyondpixel.experiments.cli import main


def test_help_says_where_to_start_and_needs_no_torch() -> None:
    code = (
        "import sys; from beyondpixel.experiments.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for word in ("fit", "validate", "test", "predict", "launch", "compare", "demo", "where to start"):
        assert word in shown
    assert shown.endswith("False\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "nowhere"], "beyondpixel: no such folder: nowhere; expected one that `beyondpixel launch` wrote"),
        (["launch", "camvid_smoll"], "beyondpixel: no run spec or folder named camvid_smoll; did you mean"),
        (["launch", "demo", "--lr", "3"], "beyondpixel: unknown argument --lr: config keys are given as --data.KEY"),
        (["test", "--ckpt_path", "lost.ckpt"], "beyondpixel: --ckpt_path: there is no file lost.ckpt"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert str(stopped.value.code).startswith(message)
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lunch"])
    assert "invalid choice: 'lunch' (choose from" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "from beyondpixel.experiments import cli; cli._dispatch = print; cli.main(['a line'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (1, b"")
