"""One damaged file of one run: it is named, and everything else goes on."""

from collections.abc import Callable

import pytest
import torch

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.actions import Action, choose_actions, take
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.resume import checkpoint_to_resume

FILES = ("state.json", "run.json", "summary.json", "config.yaml", "metrics.jsonl", "checkpoints/last.ckpt")
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "binary": lambda content: bytes(range(128, 256)) * 4,
    "garbage before": lambda content: b"\x80" + content,
    "garbage behind": lambda content: content + b"{\xff",
    "twice": lambda content: content * 2,
    "list": lambda content: b"[1, 2]",
    "number": lambda content: b"3",
    "text": lambda content: b'"text"',
    "null": lambda content: b"null",
    "deep": lambda content: b"[" * 100_000,
    "other keys": lambda content: b'{"a": {"b": [1, null]}}',
}

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("status", ["stopped", "done"])
def test_a_damaged_run_stops_no_other(
    runs_of: Callable[..., list[Run]], name: str, status: str, record_property: Callable[..., None]
) -> None:
    damaged, sound = runs_of(1, 2)
    for run in (damaged, sound):
        run.prepare()
        run.folder.update_state(status=status, step=6, max_steps=8)
        run.folder.append_metrics({"train/loss": 1.0}, step=6)
        run.folder.summary = {"train/loss": 1.0}
        run.folder.last_checkpoint.parent.mkdir()
        torch.save({"state_dict": {"w": torch.ones(9)}, "hyper_parameters": {}}, run.folder.last_checkpoint)
    file = damaged.folder.path / name
    whole = file.read_bytes()
    for damage in DAMAGES.values():
        content = damage(whole)
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        plan, said = plan_of(damaged, sound)
        if plan is None:  # another config lies there
            assert str(damaged.folder.path) in said
        else:
            assert plan[1].kind == ("resume" if status == "stopped" else "keep")
            assert plan[0].kind != "damaged" or str(file) in plan[0].reason
            if plan[0].is_work:
                try_to_resume(damaged, plan[0])
        damaged.folder.update_state(status=status, step=6, max_steps=8)
        file.write_bytes(whole)
    record_property("tried", len(DAMAGES))


def plan_of(*runs: Run) -> tuple[list[Action] | None, str]:
    try:
        return choose_actions(runs), ""
    except UserError as error:
        return None, str(error)


def try_to_resume(run: Run, action: Action) -> None:
    """What a job does with the files before it trains."""
    take(run, action)
    assert all(isinstance(line, dict) for line in run.folder.metrics())
    said, checkpoint = "", None
    try:
        checkpoint = checkpoint_to_resume(run.folder, run.config)
    except UserError as error:
        said = str(error)
    assert str(run.folder.path) in said if said else checkpoint is None or checkpoint.is_file()
