"""Options made from signatures."""

from pathlib import Path
from typing import Any, Literal

import pytest

from beyondpixel.experiments.cli import COMMANDS, LIGHTNING, main
from beyondpixel.experiments.command_line import call_with_arguments
from beyondpixel.experiments.errors import UserError

CALLS: list[dict[str, Any]] = []


def command(
    names: list[str],
    *,
    seeds: list[int] = [1],  # noqa: B006
    form: Literal["a", "b"] = "a",
    rate: float | None = None,
    dry_run: bool = False,
    ckpt_path: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Do something.

    Args:
        names: what to take.
        seeds: seeds of each, 100 % of them.
        form: a or b.
        rate: a rate
            in two lines.
        dry_run: do nothing.
    """
    CALLS.append(dict(locals()))


def call(*words: str) -> dict[str, Any]:
    CALLS.clear()
    call_with_arguments(command, words, prog="beyondpixel command")
    return CALLS[0]


def test_words_become_arguments() -> None:
    found = call("x", "y", "--seeds", "1", "2", "--form", "b", "--rate", "0.5", "--dry-run", "--ckpt_path", "f.ckpt")
    assert (found["names"], found["seeds"], found["form"], found["rate"]) == (["x", "y"], [1, 2], "b", 0.5)
    assert (found["dry_run"], found["ckpt_path"]) == (True, Path("f.ckpt"))
    assert call("x")["seeds"] == [1]


def test_dashes_and_underscores() -> None:
    assert call("x", "--dry_run")["dry_run"] is True
    assert call("x", "--ckpt-path", "f")["ckpt_path"] == Path("f")


def test_config_keys_are_overrides() -> None:
    found = call("x", "--data.root", "/d", "--trainer.max_steps=3")
    assert found["overrides"] == {"data.root": "/d", "trainer.max_steps": 3}
    with pytest.raises(UserError, match="unknown argument --lr.x: config keys are given as --data.KEY"):
        call("x", "--lr.x", "3")


def test_help_holds_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    shown = capsys.readouterr().out
    for text in ("Do something.", "--dry-run", "100 % of them", "(default: 1)", "{a,b}", "a rate in two lines."):
        assert text in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: NAMES"),
        (["x", "--form", "c"], "invalid choice: 'c'"),
        (["x", "--seeds", "one"], "invalid int value: 'one'"),
        (["x", "--sedes", "3"], "unrecognized arguments: --sedes 3; did you mean --seeds?\n"),
        (["x", "--dry_rnu"], "unrecognized arguments: --dry_rnu; did you mean --dry_run"),
        (["x", "--xyz"], "unrecognized arguments: --xyz\nAll options: beyondpixel command --help"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as raised:
        call(*words)
    assert message in str(raised.value)
    assert capsys.readouterr() == ("", "")  # and no page of all options


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(LIGHTNING)))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each parameter is described, and only what cannot be guessed is required."""
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: beyondpixel {name}")
    if name == "demo":
        assert "[--output OUTPUT]" in shown
