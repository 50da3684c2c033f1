"""The command line as a newcomer meets it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from beyondpixel.experiments import training
from beyondpixel.experiments.cli import COMMANDS, LIGHTNING, main
from beyondpixel.experiments.errors import Stopped, UserError
from beyondpixel.experiments.lightning_cli import read_command_line
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.step_seeds import StepSeeds
from beyondpixel.experiments.wandb_log import read_records


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["lunch"],
        ["specs"],
        *([*name.split(), "--help"] for name in COMMANDS if name not in LIGHTNING),  # whose options are Trainer's
        ["data", "get", "voc", "--root=new"],
    ],
    ids=" ".join,
)
def test_help_and_a_typo_need_no_torch_nor_does_a_download_that_fails(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from beyondpixel.experiments.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # where nobody listens
    environment = {**os.environ, **nowhere}
    subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "nowhere"], "beyondpixel: no such folder: nowhere"),
        (["launch", "camvid_smoll"], "beyondpixel: nothing was started:\nno run spec or folder named camvid_smoll"),
        (
            ["launch", "demo", "--optim.lr", "3"],
            "beyondpixel: unknown argument --optim.lr: config keys are given",
        ),
        (["test", "--ckpt_path", "lost.ckpt"], "beyondpixel: no checkpoint lost.ckpt: expected a file"),
        (["test"], "beyondpixel: --ckpt_path: expected the checkpoint to score, got none"),
        (["test", "--ckpt_path", "last"], "beyondpixel: --ckpt_path last: of which run? Add --config RUN/config.yaml"),
        (["lunch"], "beyondpixel: no command lunch; did you mean launch?"),
        (["fit", "--config", "lost.yaml"], "beyondpixel: --config lost.yaml: no such file; expected a YAML file"),
        (["specs", "demo", "--resolved"], "beyondpixel: --resolved: expected one row, such as demo/"),
    ],
)
def test_an_error_is_one_message(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert str(stopped.value.code).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "from beyondpixel.experiments import cli; cli._dispatch = print; cli.main(['a line'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (1, b"")


def resolved(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["beyondpixel"])
    return read_command_line("fit", words)[0]


def test_fit_without_arguments_trains_on_generated_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved([], monkeypatch)
    assert config["data"]["class_path"] == "beyondpixel.datamodules.ShapesDataModule"
    assert config["model"]["class_path"] == "beyondpixel.lightning_modules.DeepLabModule"


def test_a_class_on_the_command_line_has_its_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generated scenes' image size, or DeepLab's output stride, must not reach a class named instead."""
    config = resolved(["--data=CamVidDataModule", "--data.root=x", "--model", "MCIBIModule"], monkeypatch)
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert (data["image_size"], data["cache"], data["scales"], data["eval_batch_size"]) == (None, None, [0.75, 1.25], 4)
    assert (model["output_stride"], model["channels"]) == (8, 512)


def test_a_config_files_arguments_stay_with_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    content = {
        "data": {"class_path": "beyondpixel.datamodules.ShapesDataModule", "init_args": {"image_size": [48, 64]}}
    }
    file.write_text(yaml.safe_dump({**content, "trainer": {"max_steps": 7}}))
    config = resolved(["--config", str(file)], monkeypatch)
    assert config["data"]["init_args"]["image_size"] == [48, 64]
    config = resolved(["--config", str(file), "--data=CamVidDataModule", "--data.root=x"], monkeypatch)
    assert (config["data"]["init_args"]["image_size"], config["trainer"]["max_steps"]) == (None, 7)


def test_a_config_file_that_names_two_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, long = tmp_path / "config.yaml", "x" * 300  # more than a file's name may have
    content = {
        "data": {"class_path": "beyondpixel.datamodules.ShapesDataModule", "init_args": {"image_size": [48, 64]}},
        "model": {"class_path": "beyondpixel.lightning_modules.DeepLabModule", "init_args": {"output_stride": 8}},
    }
    file.write_text(yaml.safe_dump({**content, "trainer": {"default_root_dir": long}}))
    classes = ["--model=MCIBIModule", "--data=CamVidDataModule", "--data.root=x"]
    config = resolved(["--config", str(file), *classes], monkeypatch)
    assert config["trainer"]["default_root_dir"] == long
    assert config["data"]["init_args"]["image_size"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--model.loss={name: rmi, region_size: 5}"],
        ["--model.loss=rmi", "--model.loss.region_size=5"],
        ["--model.loss", "rmi", "--model.loss.region_size", "5"],
        ["--model.init_args.loss.name=rmi", "--model.init_args.loss.region_size=5"],
        ["--config={model: {init_args: {loss: {name: rmi, pooling: max}}}}", "--model.loss.region_size=5"],
        ["--config={model: {init_args: {loss: {name: ce}}}}", "--model.loss=rmi", "--model.loss.region_size=5"],
    ],
)
def test_a_loss_with_its_arguments(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved([*words, "--model.lr=0.5"], monkeypatch)
    loss = config["model"]["init_args"]["loss"]
    assert (loss["name"], loss["region_size"], loss["downsampling_factor"]) == ("rmi", 5, 4)
    assert loss["pooling"] == ("max" if "max" in words[0] else "avg")
    assert config["model"]["init_args"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.encodr=resnet18", "model.init_args.encodr: unknown key; did you mean encoder or decoder?"),
        ("--trainer.max_stepz=3", "trainer.max_stepz: unknown key; did you mean max_steps"),
        ("--trainer.max_steps=many", "trainer.max_steps: expected int, got 'many'"),
        (
            "--model.loss={name: rmi, regon_size: 3}",
            "model.init_args.loss.regon_size: unknown key; did you mean region",
        ),
        ("--model.loss.region_size=3", "model.init_args.loss: expected the name of a loss, got no name beside region"),
        ("--model.loss", "--model.loss has no value: expected --model.loss VALUE"),
        ("--model=DeepLabModul", "model.class_path: no class 'DeepLabModul'"),
        ("--config={model: DeepLabModul}", "model.class_path: no class 'DeepLabModul'"),
        ("--modle.lr=3", "unknown argument --modle.lr=3: config keys are given as --data.KEY, --model.KEY"),
        ("--max_steps=3", "unrecognized arguments: --max_steps=3"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_wrong_word_is_named_with_the_closest_one(
    command: str, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as raised:
        read_command_line(command, ["--data=CamVidDataModule", "--data.root=x", word])
    assert str(raised.value).startswith(message)
    assert len(str(raised.value).splitlines()) <= 2
    assert capsys.readouterr() == ("", "")  # and no page of all options


@pytest.fixture
def beyondpixel(tmp_path: Path) -> Callable[..., str]:
    """Runs the command in a process of its own, with a W&B of its own, and returns what it said."""
    # one of W&B's variables would lead to the service of this process
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "beyondpixel.experiments", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, "WANDB_MODE": "offline", "COLUMNS": "200"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "{results}", "--output", "{tmp}"], "{tmp}: Is a directory; use another path, or change its"),
        (["compare", "{results}", "--output", "{file}/x.csv"], "{file}: File exists; use another path"),
        (["fit", "--trainer.default_root_dir", "{file}"], "{file}: File exists; use another path"),
        (["launch", "demo", "--as-wandb-sweep", "{tmp}"], "{tmp}: Is a directory; use another path"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    results = Path(__file__).parents[2] / "results" / "camvid_small_search"
    names = {"tmp": str(tmp_path), "file": str(file), "results": str(results)}
    with pytest.raises(SystemExit) as ended:
        main([argument.format(**names) for argument in arguments])
    assert str(ended.value).startswith(f"beyondpixel: {message.format(**names)}")


@pytest.mark.slow
def test_fit_test_compare(tmp_path: Path, beyondpixel: Callable[..., str]) -> None:
    """The plain path, by real processes: the test's scores are in the run folder, and compare reads them."""
    small = ["--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"]
    quick = ["--data.batch_size=2", "--trainer.max_steps=2", "--trainer.accelerator=cpu"]
    model = ["--model.encoder=resnet18", "--model.output_stride=16"]
    beyondpixel("fit", *small, *quick, *model, "--trainer.default_root_dir", "mine")
    run = tmp_path / "mine"
    assert not (run / "confusion.npz").exists()
    scored = beyondpixel("test", "--config", "mine/config.yaml", "--ckpt_path", "last")
    assert "Scored" in scored
    assert re.search(r"Scores in %: test/mIoU \d+\.\d\d, test/mIoU_low .*, test/boundary_F \d+\.\d\d\n", scored)
    assert re.search(r"IoU in %: sky \d+\.\d\d, building ", scored)
    assert "Test metric" not in scored  # Lightning's table of all fractions
    assert "checkpoints/last.ckpt" in scored
    assert (run / "confusion.npz").exists()
    shown = beyondpixel("compare", "mine")
    assert "mIoU" in shown


def scores_in_csv(folder: Path) -> list[str]:
    (file,) = (folder / "logs").rglob("metrics.csv")
    return [row["val/mIoU"] for row in csv.DictReader(file.open()) if row["val/mIoU"]]


def scores_in_wandb(folder: Path) -> list[str]:
    (file,) = (folder / "logs").rglob("*.wandb")
    items = [item for record in read_records(file) if record.HasField("history") for item in record.history.item]
    return [item.value_json for item in items if "val/mIoU" in (item.key, *item.nested_key)]


def scores_in_tensorboard(folder: Path) -> list[str]:
    (file,) = (folder / "logs").rglob("events.out.tfevents.*")
    return [str(event.value) for event in EventAccumulator(str(file)).Reload().Scalars("val/mIoU")]


@pytest.fixture
def restricted() -> list[str]:
    """Prefix of a command that has to respect permissions, as root does not."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions, and there is no setpriv")
    dropped = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]


@pytest.mark.parametrize(
    ("words", "mode", "message"),
    [
        (["compare", "."], 0o000, "folder: Permission denied; make it readable, or name folders without it"),
        (["data", "get", "camvid", "--root=folder/new"], 0o500, "folder/new.partial: Permission denied; use another"),
    ],
    ids=["unreadable", "unwritable"],
)
def test_a_folder_without_permission_is_named(
    words: list[str], mode: int, message: str, tmp_path: Path, restricted: list[str]
) -> None:
    (tmp_path / "folder").mkdir(mode=mode)
    command = [*restricted, sys.executable, "-m", "beyondpixel.experiments", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    (tmp_path / "folder").chmod(0o700)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


WANDB_AND_TENSORBOARD = """
trainer:
  logger:
    - {class_path: WandbLogger, init_args: {save_dir: logs, offline: true}}
    - {class_path: TensorBoardLogger, init_args: {save_dir: logs}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "logs"),
    [
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"], [scores_in_csv]),
        (["--config=loggers.yaml"], [scores_in_wandb, scores_in_tensorboard]),
        (["--trainer.logger=false"], []),
    ],
    ids=["one", "two", "none"],
)
def test_other_loggers_stand_beside_the_run_folder_and_nothing_is_said_in_vain(
    tmp_path: Path, beyondpixel: Callable[..., str], words: list[str], logs: list[Callable[[Path], list[str]]]
) -> None:
    small = ["--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"]
    quick = ["--data.batch_size=2", "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--data.num_workers=0"]
    model = ["--model.encoder=tu-test_resnet", "--model.warmup_iters=0"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "loggers.yaml").write_text(WANDB_AND_TENSORBOARD)
    said = beyondpixel("fit", *words, *small, *quick, *model, "--trainer.default_root_dir=mine")
    in_folder = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    (score,) = [line["val/mIoU"] for line in in_folder if "val/mIoU" in line]
    for scores_in_log in logs:
        assert [float(text) for text in scores_in_log(tmp_path)] == [pytest.approx(score)]
    if not logs:
        assert {path.name for path in tmp_path.iterdir()} == {"mine", "logs", "loggers.yaml"}
        assert not (tmp_path / "mine" / "wandb").exists()
    assert "Run folder: mine" in said
    for noise in ("TPU", "weights_only", "FLOPs", "/-2", "Modules in train mode", "Non-trainable", "Tip:"):
        assert noise not in said


def test_a_run_that_went_on_from_another_is_resumed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends as one that was not stopped, with each step logged once."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    small = ["--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"]
    quick = [
        "--data.batch_size=2",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--model.warmup_iters=0",
    ]
    common = ["fit", *small, *quick, "--model.encoder=tu-test_resnet", "--data.num_workers=0"]
    main([*common, "--trainer.max_steps=3", f"--trainer.default_root_dir={tmp_path / 'first'}"])
    first = RunFolder(tmp_path / "first")
    longer = [*common, "--trainer.max_steps=8", f"--ckpt_path={first.last_checkpoint}"]
    stopped, whole = (RunFolder(tmp_path / name) for name in ("stopped", "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "StepSeeds", StopAtStep6)
        with pytest.raises(SystemExit):
            main([*longer, f"--trainer.default_root_dir={stopped.path}"])
    assert stopped.state["step"] == 6
    main([*longer, f"--trainer.default_root_dir={whole.path}"])
    capsys.readouterr()
    main([*longer, f"--trainer.default_root_dir={stopped.path}"])
    assert f"Resuming {stopped.last_checkpoint}; this run started from --ckpt_path" in capsys.readouterr().out
    logged = [
        [(line["step"], line.get("train/loss"), line.get("val/mIoU")) for line in run.metrics()]
        for run in (stopped, whole)
    ]
    assert logged[0] == logged[1]
    assert [step for step, loss, _ in logged[0] if loss is not None] == [3, 4, 5, 6, 7]
    with pytest.raises(SystemExit, match="stopped/checkpoints/last.ckpt is in .*stopped, which --overwrite empties"):
        main(
            [
                *longer[:-1],
                "--overwrite",
                f"--trainer.default_root_dir={stopped.path}",
                f"--ckpt_path={stopped.last_checkpoint}",
            ]
        )
    assert stopped.last_checkpoint.exists()


def test_a_trial_of_one_step_leaves_the_folder_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    small = ["--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"]
    quick = ["--data.batch_size=2", "--trainer.accelerator=cpu", "--model.warmup_iters=0", "--data.num_workers=0"]
    run = RunFolder(tmp_path / "run")
    words = ["fit", *small, *quick, "--model.encoder=tu-test_resnet", f"--trainer.default_root_dir={run.path}"]
    main([*words, "--trainer.fast_dev_run=true"])
    assert "Test it with" not in capsys.readouterr().out
    main([*words, "--trainer.max_steps=2"])
    assert "Test it with: beyondpixel test --ckpt_path" in capsys.readouterr().out
    assert (run.status, run.state["step"], run.last_checkpoint.is_file()) == ("trained", 2, True)


def test_what_cannot_be_trained_is_said_before_an_earlier_run_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    small = ["--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"]
    quick = ["--data.batch_size=2", "--trainer.accelerator=cpu", "--model.warmup_iters=0", "--data.num_workers=0"]
    common = ["fit", *small, *quick, "--model.encoder=tu-test_resnet", "--trainer.max_steps=2"]
    run = RunFolder(tmp_path / "run")
    main([*common, f"--trainer.default_root_dir={run.path}"])
    before = {file: file.read_bytes() for file in run.path.rglob("*.*")}
    with pytest.raises(SystemExit, match=r"^beyondpixel: trainer: .* 1\.5 for val_check_interval"):
        main([*common, f"--trainer.default_root_dir={run.path}", "--overwrite", "--trainer.val_check_interval=1.5"])
    assert {file: file.read_bytes() for file in run.path.rglob("*.*")} == before

    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    del checkpoint["optimizer_states"]  # as launch --keep weights
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    with pytest.raises(SystemExit, match=r"^beyondpixel: --ckpt_path: .*weights.ckpt holds weights alone"):
        main([*common, f"--trainer.default_root_dir={tmp_path / 'new'}", f"--ckpt_path={tmp_path / 'weights.ckpt'}"])
    assert not (tmp_path / "new" / "config.yaml").exists()


class StopAtStep6(StepSeeds):
    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        super().on_train_batch_start(trainer, *args)
        if trainer.global_step == 6:
            raise Stopped(signal.SIGTERM)
