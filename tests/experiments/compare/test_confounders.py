"""What a row differs in besides its axes is listed in every format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.compare.command import as_text, compare
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.report import write_report
from beyondpixel.experiments.compare.rows import compare_runs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.publish import publish

MakeRun = Callable[..., Any]
CONFIG = {
    "seed_everything": 1,
    "trainer": {"max_steps": 100, "default_root_dir": "a", "accumulate_grad_batches": 1},
    "model": {
        "class_path": "x.DeepLabModule",
        "init_args": {"variant": "v3", "lr": 0.1, "weight_decay": 1e-4, "loss": {"name": "ce", "backend": "eager"}},
    },
    "data": {"class_path": "x.CamVidDataModule", "init_args": {"root": "/a", "scales": [0.5, 2.0], "num_workers": 1}},
}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.1}}


def changed(**changes: Any) -> dict[str, Any]:
    """CONFIG with some leaves replaced, named `part__key`."""
    config: dict[str, Any] = dict(CONFIG)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        inner = config[part]
        inner = (
            {**inner, "init_args": {**inner["init_args"], key: value}}
            if "init_args" in inner
            else {**inner, key: value}
        )
        config = {**config, part: inner}
    return config


def listed(folder: Path) -> dict[str, tuple[str, ...]]:
    rows = compare_runs(read_runs([folder]), "test/mIoU").rows
    return {row: tuple(found) for row, found in zip(rows["row"], rows["confounders"], strict=True)}


def confounders_of(folder: Path, make_run: MakeRun, **run: Any) -> tuple[str, ...]:
    make_run(folder, "ce", 1, 0.5, config=CONFIG)
    make_run(folder, "rmi", 1, 0.6, **{"config": CONFIG, **run})
    return listed(folder)["rmi"]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({}, ()),
        ({"commit": "0123456789abcdef"}, ("commit 012345678 instead of abc",)),
        ({"commit": None}, ("commit unknown instead of abc",)),
        ({"commit": "abc-dirty"}, ("uncommitted changes in the code",)),
        ({"commit": "abc-dirty, abc"}, ("uncommitted changes in the code",)),
        ({"packages": {"torch": "2.6.0"}}, ("torch 2.6.0 instead of 2.9.0",)),
        ({"packages": {"wandb": "0.1"}}, ()),
        ({"packages": {"timm": "1.0"}}, ("timm 1.0 instead of unknown",)),
        ({"step": 90}, ("steps 90 instead of 100",)),
        ({"step": 90, "axes": {"lr": 0.2}}, ("steps 90 instead of 100", "lr 0.2 instead of 0.1")),
        ({"step": 200, "axes": {"max_steps": 200}}, ("max_steps 200 instead of 100",)),
        (
            {"step": 200, "axes": {"max_steps": 200}, "commit": "def"},
            ("commit def instead of abc", "max_steps 200 instead of 100"),
        ),
        ({"step": 50, "axes": {"batch_size": 16}}, ("batch_size 16 instead of none",)),
        ({"axes": {"dataset": "voc"}}, ("data set voc instead of camvid",)),
        ({"axes": {"lr": 0.2}, "config": changed(model__lr=0.2)}, ("lr 0.2 instead of 0.1",)),
        ({"config": changed(model__weight_decay=5e-4)}, ("model.weight_decay 0.0005 instead of 0.0001",)),
        ({"config": changed(trainer__accumulate_grad_batches=2)}, ("trainer.accumulate_grad_batches 2 instead of 1",)),
        ({"config": changed(data__scales=[1.0])}, ("data.scales [1.0] instead of [0.5, 2.0]",)),
        # the keys of the loss belong to the row's loss; an axis of the model tells its own key
        ({"config": changed(model__loss={"name": "rmi", "backend": "compiled"})}, ()),
        ({"axes": {"memory": 3}, "config": changed(model__slots=3)}, ()),
        (
            {"config": changed(model__optimizer={"class_path": "torch.optim.AdamW"})},
            ("model.optimizer {'class_path': 'torch.optim.AdamW'} instead of none",),
        ),
        (
            {"axes": {"optimizer": "adamw", "lr": 0.01}, "config": changed(model__optimizer=ADAMW)},
            ("lr 0.01 instead of 0.1", "optimizer adamw instead of none"),
        ),
        (
            {"axes": {"df": 2}, "config": changed(trainer__accumulate_grad_batches=2)},
            ("trainer.accumulate_grad_batches 2 instead of 1",),
        ),
    ],
)
def test_what_is_a_confounder(
    tmp_path: Path, make_run: MakeRun, run: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert confounders_of(tmp_path, make_run, **run) == expected


def test_logging_and_speed_are_no_confounders(tmp_path: Path, make_run: MakeRun) -> None:
    keys = [f"data__{key}" for key in ("num_workers", "cache", "predict_path", "timeout")]
    keys += [f"trainer__{key}" for key in ("default_root_dir", "logger", "callbacks", "profiler", "barebones")]
    keys += [f"trainer__enable_{key}" for key in ("progress_bar", "model_summary", "checkpointing")]
    keys += [f"trainer__{key}" for key in ("accelerator", "log_every_n_steps", "num_sanity_val_steps")]
    for row, value in (("ce", "one"), ("rmi", "another")):
        make_run(tmp_path, row, 1, 0.5, config=changed(**dict.fromkeys(keys, value)))
    assert listed(tmp_path)["rmi"] == ()


def test_another_python_or_other_hardware(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    run = make_run(tmp_path, "rmi", 1, 0.6)
    environment = {**run.record["environment"], "python": "3.13.0", "accelerators": ["H200", "H200"]}
    run.record = {**run.record, "environment": environment}
    assert listed(tmp_path)["rmi"] == ("Python 3.13.0 instead of 3.12.1", "hardware 2 × H200 instead of CPU")


def test_a_key_of_a_loss_that_has_an_axis_of_another_loss(tmp_path: Path, make_run: MakeRun) -> None:
    for row, weight in (("ce", 0.9), ("rmi", 0.1)):
        config = changed(model__loss={"name": "cwmi", "pixel_weight": weight})
        make_run(tmp_path, row, 1, 0.5, config=config, axes={"loss": "cwmi", "df": None, "pixel_weight": None})
    rows = compare_runs(read_runs([tmp_path]), "test/mIoU", baseline="ce").rows.set_index("row")
    assert list(rows.loc["rmi", "confounders"]) == ["model.loss.pixel_weight 0.1 instead of 0.9"]


def test_one_recipe_axis_alone_is_an_ablation_and_no_confounder(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    make_run(tmp_path, "ce_long", 1, 0.6, axes={"loss": "ce", "max_steps": 200}, step=200)
    make_run(tmp_path, "ce_both", 1, 0.6, axes={"loss": "ce", "max_steps": 200, "lr": 0.3}, step=200)
    rows = listed(tmp_path)
    assert rows["ce_long"] == ()
    assert sorted(rows["ce_both"]) == ["lr 0.3 instead of 0.1", "max_steps 200 instead of 100"]


def test_seeds_of_one_row_that_differ(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    make_run(tmp_path, "ce", 2, 0.5, commit="def")
    assert listed(tmp_path) == {"ce": ("commit abc and def within the row",)}
    make_run(tmp_path, "ce", 2, 0.5, commit="abc-dirty")
    assert listed(tmp_path) == {"ce": ("uncommitted changes in the code",)}


def test_content_of_the_data_decides_and_not_its_folder(tmp_path: Path, make_run: MakeRun) -> None:
    runs = [make_run(tmp_path, row, 1, 0.5, config=changed(data__root=f"/{row}")) for row in ("ce", "rmi")]
    assert listed(tmp_path)["rmi"] == ("data in /rmi instead of in /ce",)
    for run, matrix in zip(runs, ([[3, 1], [0, 2]], [[2, 2], [1, 1]]), strict=True):
        np.savez(run.confusion_file, matrix=matrix, class_names=["a", "b"])
    assert listed(tmp_path)["rmi"] == ()  # 4 and 2 pixels in both, wherever they lie
    np.savez(runs[1].confusion_file, matrix=[[3, 0], [0, 3]], class_names=["a", "b"])
    assert listed(tmp_path)["rmi"] == ("test labels (3 + 3 pixels) instead of (4 + 2 pixels)",)


def test_the_same_fingerprint_elsewhere_is_said_and_no_confounder(tmp_path: Path, make_run: MakeRun) -> None:
    for row in ("ce", "rmi"):
        make_run(tmp_path, row, 1, 0.5, config=changed(data__root=f"/{row}"), fingerprint="f00d")
    comparison = compare_runs(read_runs([tmp_path]), "test/mIoU")
    assert listed(tmp_path)["rmi"] == ()
    text = as_text(comparison, "md")
    assert "rmi: data.root /rmi instead of /ce, with the same training data f00d" in text
    make_run(tmp_path, "rmi", 1, 0.5, config=CONFIG, fingerprint="bad")
    assert listed(tmp_path)["rmi"] == ("training data bad instead of f00d",)
    assert "with the same" not in as_text(compare_runs(read_runs([tmp_path]), "test/mIoU"), "md")


def test_an_evaluation_differs_in_its_post_processing_alone(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5, config=CONFIG, evaluations={"crf:5": 0.6})
    assert listed(tmp_path) == {"ce": (), "ce + crf:5": ()}


def test_marked_in_every_format_and_refused_if_strict(tmp_path: Path, make_run: MakeRun) -> None:
    confounders_of(tmp_path, make_run, commit="def")
    comparison = compare_runs(read_runs([tmp_path]), "test/mIoU")
    for format in ("table", "md", "csv", "latex"):
        text = as_text(comparison, format)
        assert "commit def instead of abc" in text, format
        assert ("rmi †" in text) == (format in ("table", "md")), format
    assert r"rmi $^\dagger$" in as_text(comparison, "latex")
    write_report(comparison, tmp_path / "page.html")
    assert "† rmi: commit def instead of abc" in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match="--strict: .*\n  t/rmi: commit def instead of abc\nlaunch them again"):
        compare([tmp_path], strict=True)


def test_strict_lets_equals_pass(tmp_path: Path, make_run: MakeRun) -> None:
    confounders_of(tmp_path, make_run)
    compare([tmp_path], strict=True)


def test_the_learning_rate_of_another_optimizer_is_the_axis(tmp_path: Path, make_run: MakeRun) -> None:
    faster = {**ADAMW, "init_args": {**ADAMW["init_args"], "lr": 0.03}}  # type: ignore[dict-item]
    for row, optimizer in (("ce", ADAMW), ("ce_faster", faster)):
        config = changed(model__optimizer=optimizer)
        axes = {"loss": "ce", "optimizer": "adamw", "lr": optimizer["init_args"]["lr"]}  # type: ignore[index]
        make_run(tmp_path, row, 1, 0.5, config=config, axes=axes)
    rows = compare_runs(read_runs([tmp_path]), "test/mIoU", baseline="ce").rows.set_index("row")
    assert list(rows.loc["ce_faster", "confounders"]) == []


def test_a_mixed_row_that_also_differs_from_the_baseline_is_listed_once(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    make_run(tmp_path, "rmi", 1, 0.5)
    make_run(tmp_path, "rmi", 2, 0.5, commit="def")
    assert listed(tmp_path)["rmi"] == ("commit abc and def instead of abc",)


@pytest.mark.parametrize("optimizer", [None, ADAMW], ids=["the module's SGD", "AdamW"])
def test_seeds_of_one_row_with_several_learning_rates(
    tmp_path: Path, make_run: MakeRun, optimizer: dict[str, Any] | None
) -> None:
    for row, seed, lr in (("ce", 1, 0.1), ("rmi", 1, 0.1), ("rmi", 2, 0.2)):
        own = {} if optimizer is None else {"optimizer": {**optimizer, "init_args": {"lr": lr}}}
        arguments = {**CONFIG["model"]["init_args"], "lr": lr if optimizer is None else None, **own}  # type: ignore[index]
        config = {**CONFIG, "model": {**CONFIG["model"], "init_args": arguments}}  # type: ignore[dict-item]
        make_run(tmp_path, row, seed, 0.5, config=config, axes={"lr": lr, "optimizer": optimizer and "adamw"})
    name = "model.lr" if optimizer is None else "model.optimizer.lr"
    assert listed(tmp_path) == {"ce": (), "rmi": (f"{name} 0.1 and 0.2 instead of 0.1",)}


def test_a_seed_that_was_trained_in_two_folders(tmp_path: Path, make_run: MakeRun) -> None:
    for folder, row, seed in (("a", "ce", 1), ("a", "ce", 2), ("a", "rmi", 1), ("b", "rmi", 1)):
        make_run(tmp_path / folder, row, seed, 0.5)
    assert listed(tmp_path) == {"ce": (), "rmi": ("seed 1 in 2 runs of the row",)}
    with pytest.raises(UserError, match="t/rmi: seed 1 in 2 runs of the row"):
        publish([tmp_path], results=tmp_path / "results")
    assert not (tmp_path / "results").exists()
