"""Entry point of the command `beyondpixel`."""

from __future__ import annotations

import errno
import importlib
import os
import select
import sys
from collections.abc import Sequence

from beyondpixel.experiments.allowed_imports import take_allowed
from beyondpixel.experiments.errors import STOPPED, Stopped, UserError
from beyondpixel.experiments.run.processes import exit_code

# importing torch takes seconds, so help and a mistyped command import none of these modules
COMMANDS = {
    "demo": ("demo:demo", "train CE, BCE and RMI on generated scenes and draw a comparison"),
    "specs": ("specs_command:specs", "list the tables that can be launched, with published scores"),
    "launch": ("launch.command:launch", "train and test run specs, here or on a SLURM cluster"),
    "compare": ("compare.command:compare", "compare runs: tables, intervals, plots, a report"),
    "fit": ("lightning_cli:fit", "train a model (LightningCLI: every key of trainer, model and data)"),
    "validate": ("lightning_cli:score", "score a checkpoint on the validation images"),
    "test": ("lightning_cli:score", "score a checkpoint on the test images"),
    "predict": ("inference.command:predict", "write predictions of a checkpoint as PNG files"),
    "export": ("inference.command:export", "write a trained network as ONNX or as a state dict"),
    "data get": ("data_command:get_data", "download CamVid, VOC 2012 or SBD"),
    "data check": ("data_command:check_data", "read every file of a data set: counts, sizes, class balance, faults"),
    "sync": ("sync:sync", "upload what W&B logged offline"),
    "publish": ("publish:publish", "write finished runs as data to results/"),
    "tables": ("publish_tables:update_tables", "write published results into README and docs"),
    "release": ("released.release:release", "pack a trained network as a small file with its score"),
    "run-job": ("job:run_job", "train and test one prepared run folder, for schedulers"),
}
LIGHTNING = ("fit", "validate", "test")
# errors of a path that the user gave
WRONG_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
HEADER = """\
usage: beyondpixel COMMAND ...

Semantic segmentation beyond the pixel: losses over regions, memories over data sets.

commands:
"""
FOOTER = """
where to start:
  beyondpixel demo                                  train, test and compare in minutes, without data
  beyondpixel launch camvid_small --data.root DIR   train every row of a table
  beyondpixel compare outputs/camvid_small          mean and interval of each row
  beyondpixel fit --model.loss=rmi                  train one model; fit --help lists the keys
  beyondpixel COMMAND --help                        the options of a command
  beyondpixel COMMAND --allow-import MODULE         let configs use classes of your own module
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `beyondpixel` with the given arguments, or with those of the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(take_allowed(arguments))
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"beyondpixel: {error}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("beyondpixel"):
            raise
        sys.exit(f"beyondpixel: this needs the package {error.name}; try: pip install 'beyondpixel[train]'")
    except (KeyboardInterrupt, Stopped):
        sys.exit(exit_code(STOPPED))
    except BrokenPipeError:
        if not _stdout_was_closed():
            raise
        sys.exit(1)
    except OSError as error:
        if error.filename is None or error.errno not in WRONG_PATH:
            raise
        path = error.filename2 or error.filename  # of a rename, the target
        sys.exit(f"beyondpixel: {path}: {error.strerror}; use another path, or change its permissions")


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0 if arguments else 2)
    name, rest = arguments[0], arguments[1:]
    if name == "data" and rest:
        name, rest = " ".join(arguments[:2]), arguments[2:]
    if name not in COMMANDS:
        from beyondpixel.experiments.merge import suggestion

        raise UserError(f"no command {name}; {suggestion(name, COMMANDS)}")
    module, _, function_name = COMMANDS[name][0].partition(":")
    function = getattr(importlib.import_module(f"beyondpixel.experiments.{module}"), function_name)
    if name in LIGHTNING:
        function(arguments)
    else:
        from beyondpixel.experiments.command_line import call_with_arguments

        call_with_arguments(function, rest, prog=f"beyondpixel {name}")


def _help() -> str:
    return HEADER + "".join(f"  {name:<10} {text}\n" for name, (_, text) in COMMANDS.items()) + FOOTER


def _stdout_was_closed() -> bool:
    """Whether the reader of stdout, such as `head`, has closed it; if so, discard all output, also at Python's exit."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
