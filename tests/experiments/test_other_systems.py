"""Training and launching where only Linux's and macOS's parts of Python are missing, as on Windows.

Real processes, in all of which `sitecustomize` takes these parts away from this package; other packages go by
`sys.platform`, and have them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_lightning.accelerators import MPSAccelerator

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.run.folder import RunFolder

WITHOUT = """
import builtins, multiprocessing, os, signal, types

MODULES = ("fcntl", "resource", "termios", "pty", "pwd")
NAMES = {
    "os": ("register_at_fork", "fork", "sched_getaffinity", "killpg", "setsid", "pwrite", "getuid", "getpgid"),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"),
}
multiprocessing.set_start_method("spawn")  # as on macOS, too
imported = builtins.__import__

def view(module):
    missing = NAMES[module.__name__]
    shown = types.ModuleType(module.__name__)
    shown.__dict__.update({name: value for name, value in vars(module).items() if name not in missing})
    return shown

VIEWS = {"os": view(os), "signal": view(signal)}

def restricted(name, globals=None, *rest, **named):
    if str((globals or {}).get("__name__")).startswith("beyondpixel"):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in VIEWS:
            return VIEWS[name]
    return imported(name, globals, *rest, **named)

builtins.__import__ = restricted
"""
SMALL = [
    "--model.encoder=tu-test_resnet",  # a ResNet with few channels
    "--trainer.max_steps=3",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--model.warmup_iters=0",
    "--data.image_size=[48, 64]",
    "--data.batch_size=2",
    "--data.num_train=4",
    "--data.num_val=2",
    "--data.num_test=2",
]


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a process on another system."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(code: str, environment: dict[str, str], folder: Path) -> str:
    (folder / "program.py").write_text(code)  # which the processes that it spawns import again
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


TRAIN = f"""
import importlib, pkgutil
import beyondpixel
from beyondpixel.experiments.cli import main

if __name__ == "__main__":
    for module in pkgutil.walk_packages(beyondpixel.__path__, "beyondpixel."):
        if ".triton." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    main(["fit", "--model.loss=rmi", "--data.num_workers=1", *{SMALL}])
    main(["launch", "demo/ce", "--data.num_workers=0", *{SMALL}])
"""


@pytest.mark.slow
def test_every_module_is_imported_and_fit_and_launch_train(elsewhere: dict[str, str], tmp_path: Path) -> None:
    said = run(TRAIN, elsewhere, tmp_path)
    assert "the kernels are compiled on Linux and macOS only" in said
    folder = RunFolder(tmp_path / "outputs" / "demo" / "ce" / "seed1")
    assert folder.state["status"] == "done"
    assert folder.summary["test/mIoU"] > 0


def test_on_apples_gpu_a_training_takes_the_cpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """A Mac has one, and Lightning takes it by default; its tensors cannot be float64."""
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    words = ["fit", *SMALL, "--data.num_workers=0", "--trainer.default_root_dir", str(tmp_path)]
    main([word for word in words if "accelerator" not in word])
    assert RunFolder(tmp_path).summary["val/mIoU"] > 0
    assert "Using the CPU: Apple's GPU has no float64" in caplog.text
    assert not [str(one.message) for one in recwarn if "GPU available" in str(one.message)]
    with pytest.raises(SystemExit, match="trainer.accelerator: 'gpu' is Apple's GPU here, which has no float64"):
        main([*words, "--overwrite", "--trainer.accelerator", "gpu"])


LOCK = """
import subprocess, sys
from pathlib import Path
from beyondpixel.experiments.launch.lock import HeldError, RunLock, holder_of, this_process

file = Path("run/lock")
if sys.argv[1:]:
    try:
        RunLock(file, patience=0).__enter__()
    except HeldError as error:
        print(error)
else:
    assert holder_of(file) is None
    with RunLock(file, patience=0):
        print(this_process(), flush=True)
        assert holder_of(file) == this_process()
        subprocess.run([sys.executable, "program.py", "again"], check=True)
    assert holder_of(file) is None
    with RunLock(file, patience=0):
        pass
"""


def test_a_lock_gives_a_run_to_one_process(elsewhere: dict[str, str], tmp_path: Path) -> None:
    first, second = [line for line in run(LOCK, elsewhere, tmp_path).splitlines() if "process" in line]
    assert second == f"run is being worked on by {first}; wait for it, or stop it first"
