"""How commands of the documentation are made small, and those that are read but not run, with the reason."""

from dataclasses import dataclass

# path in a page -> where the test puts small data of that kind, relative to the folder that the page is run in
DATA = {"path/to/CamVid": "CamVid", "leaves": "leaves", "photos": "CamVid/test"}

# options added to each training, so that it takes seconds; an option that is given twice counts as given last
SMALL_TRAINING = (
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--model.warmup_iters=0",
)
SMALL_DATA = {
    "ShapesDataModule": ("--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"),
    "CamVidDataModule": ("--data.crop_size=48",),
    "FolderDataModule": ("--data.crop_size=48",),
}
# parts of commands and of Python blocks that are replaced; timm's test_resnet is a ResNet with few channels
REPLACED = {
    "--model.encoder=resnet18": "--model.encoder=tu-test_resnet",
    '"trainer.max_steps": 100,': '"trainer.max_steps": 2, "model.warmup_iters": 0, "data.num_test": 2,',
}
# fetched over the network
LEFT_OUT = ("--model.encoder_weights=imagenet",)


@dataclass(frozen=True)
class NotRun:
    """Why a command is read by its parser and not run."""

    reason: str


CLUSTER = NotRun("needs a SLURM cluster; tests/experiments/launch/test_slurm.py has one")
GPU_TABLE = NotRun("its networks start from downloaded weights")
NETWORK = NotRun("downloads or uploads")
MINUTES = NotRun("takes minutes; tests/experiments/launch/test_launch.py trains the demo's rows")
COMMITTED = NotRun("refuses uncommitted code; tests/experiments/test_publish.py runs it")
TRACED = NotRun(
    "tracing takes two minutes; tests/experiments/inference/test_export.py runs the command and the block below"
)
MEASURES = NotRun("takes minutes; tests/test_benchmarks.py checks what is made of it")
ALREADY = NotRun("the environment of the tests is installed already")

# the first words of a command -> the reason; what is not here is run
NOT_RUN: dict[tuple[str, ...], NotRun] = {
    ("beyondpixel", "demo"): MINUTES,
    ("beyondpixel", "launch", "rmi_table3a"): GPU_TABLE,
    ("beyondpixel", "launch", "camvid_losses/lite0_ce"): GPU_TABLE,
    ("beyondpixel", "launch", "camvid_losses"): GPU_TABLE,
    ("python",): MEASURES,
    ("beyondpixel", "export", "--ckpt_path", "outputs/mine/checkpoints/last.ckpt", "--format", "onnx"): TRACED,
    ("beyondpixel", "data", "get"): NETWORK,
    ("beyondpixel", "sync", "outputs"): NETWORK,
    ("beyondpixel", "publish"): COMMITTED,
    ("make",): MINUTES,
    ("cd",): ALREADY,
    ("source", ".venv/bin/activate"): ALREADY,
}

# packages that the tests' environment need not have: blocks of Python from such an import on are compiled only
OPTIONAL_PACKAGES = ("accelerate", "transformers")
# blocks of Python that import these are compiled only, as they need what is not run: see TRACED
RUN_ELSEWHERE = ("onnxruntime",)


def reason_not_to_run(words: list[str]) -> NotRun | None:
    """Why a command is not run, or None if it is."""
    if "--cluster" in words or "slurm" in words:
        return CLUSTER
    if "--dry-run" in words:
        return None
    return next((why for start, why in NOT_RUN.items() if tuple(words[: len(start)]) == start), None)
