"""The command `beyondpixel`: one word says what to do, the rest is passed on."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from beyondpixel.experiments.errors import Stopped, UserError, as_user_error
from beyondpixel.experiments.inference.commands import (
    add_export,
    add_predict,
    run_export,
    run_predict,
    wants_images,
)
from beyondpixel.experiments.launch.options import add_launch, run_launch

EPILOG = """\
where to start:
  beyondpixel demo                                   train CE, BCE and RMI on generated scenes, draw a comparison
  beyondpixel specs                                  the tables that can be launched, and what is published for them
  beyondpixel launch camvid_small --data.root DIR    train every row of a table of run specs
  beyondpixel compare outputs/camvid_small           mean and spread over seeds, difference to the baseline
  beyondpixel fit --model.loss=rmi --model.encoder=resnet18
                                                     one training run; `beyondpixel fit --help` lists the keys
  beyondpixel predict --ckpt_path RUN/checkpoints/last.ckpt --images photos --output predictions
                                                     your own images to PNG files; resumable
"""
TRAINING = {
    "fit": "train a model (LightningCLI: every key of trainer, model and data)",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `beyondpixel` with the given words, or with those of the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(words)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"beyondpixel: {error}")
    except (KeyboardInterrupt, Stopped):
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        sys.exit(1)


def _reader_has_left() -> bool:
    """Whether nobody reads the output any more, such as `head`; it goes nowhere then, also when Python ends."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _dispatch(words: list[str]) -> None:
    # importing torch takes seconds, so --help and a mistyped word must not need it
    if words and (words[0] in TRAINING or (words[0] == "predict" and not wants_images(words))):
        _train(words)
        return
    parser = argparse.ArgumentParser(
        prog="beyondpixel",
        description="Semantic segmentation beyond the pixel: losses over regions, memories over data sets.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text, add_help=False)
    add_predict(commands)
    add_export(commands)
    _add_specs(commands)
    add_launch(commands)
    _add_compare(commands)
    _add_sync(commands)
    _add_demo(commands)
    _add_data(commands)
    options, rest = parser.parse_known_args(words)
    if rest and options.command != "launch":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "launch":
        run_launch(options, rest)
    elif options.command == "specs":
        from beyondpixel.experiments.specs_command import show_specs

        show_specs(options.specs)
    elif options.command == "compare":
        from beyondpixel.experiments.compare.command import compare

        compare(
            options.folders,
            metric=options.metric,
            also=options.also,
            baseline=options.baseline,
            format=options.format,
            per_class=options.per_class,
            strict=options.strict,
            output=options.output,
            picture=options.picture,
            plot=options.plot,
            trimap=options.trimap,
            html=options.html,
            wandb_workspace=options.wandb_workspace,
        )
    elif options.command == "sync":
        from beyondpixel.experiments.syncing import sync

        sync(options.folders, jobs=options.jobs, timeout=options.timeout, dry_run=options.dry_run)
    elif options.command == "predict":
        run_predict(options)
    elif options.command == "export":
        run_export(options)
    elif options.command == "data" and options.action == "get":
        from beyondpixel.experiments.data_command import get_data

        get_data(options.name, options.root, mirrors=options.mirror)
    elif options.command == "data":
        from beyondpixel.experiments.data_command import check_data

        check_data(options.name, options.root, sheet_file=options.sheet, num_samples=options.samples)
    elif options.command == "demo":
        from beyondpixel.experiments.demo import demo

        demo(options.output, overwrite=options.overwrite)


def _train(words: list[str]) -> None:
    from beyondpixel.datamodules.datasets.errors import DataError
    from beyondpixel.experiments.training_cli import SegmentationCLI

    with as_user_error(DataError):
        SegmentationCLI(args=_with_config_of_checkpoint(words))


def _with_config_of_checkpoint(words: list[str]) -> list[str]:
    """For `test --ckpt_path RUN/checkpoints/last.ckpt` use the config that lies in RUN, unless one is given."""
    given = [word.split("=")[0] for word in words]
    if words[0] == "fit" or "--ckpt_path" not in given or {"--config", "-c"} & set(given):
        return words
    index = given.index("--ckpt_path")
    value = words[index].partition("=")[2] or (words[index + 1] if index + 1 < len(words) else "")
    if value in ("last", "best", "hpc"):
        return words
    if not Path(value).is_file():
        raise UserError(f"--ckpt_path: there is no file {value or '(no path given)'}")
    config = Path(value).resolve().parent.parent / "config.yaml"
    return [words[0], f"--config={config}", *words[1:]] if config.exists() else words


def _add_specs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "specs",
        help="list the tables and rows that can be launched",
        description="Without a name: all tables that come with the package. With names: their rows, the axes in which "
        "the rows differ, and the published scores.",
    )
    parser.add_argument("specs", nargs="*", metavar="TABLE", help="a table, a row, a YAML file or a folder of them")


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare finished runs: table, plots, pictures, a page with all of it",
        description="Compare the runs found below the given folders: mean and spread over seeds, difference to the "
        "baseline row with a bootstrap interval over test images, the published number beside ours. Rows marked † "
        "differ from the baseline in more than their axes. Needs nothing but the run folders.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with runs, e.g. outputs/demo")
    parser.add_argument("--metric", default="test/mIoU", help="the figure to compare (default: test/mIoU)")
    parser.add_argument(
        "--also", nargs="+", default=(), metavar="METRIC", help="further figures, a column each: test/boundary_F ..."
    )
    parser.add_argument("--baseline", metavar="ROW", help="row, or TABLE/ROW, that differences refer to (default: CE)")
    parser.add_argument("--format", choices=("table", "md", "csv", "latex"), default="table", help="default: table")
    parser.add_argument("--per-class", action="store_true", help="also the IoU of each class (csv: that instead)")
    parser.add_argument(
        "--strict", action="store_true", help="an error if a row differs from the baseline in more than its axes"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there instead of the terminal")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PNG",
        help="draw image, truth, baseline, best row and where they differ, on the test images that differ most",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the figure against DF, R, pooling, ... (PNG, PDF or SVG)"
    )
    parser.add_argument(
        "--trimap", type=Path, metavar="FILE", help="plot mIoU near boundaries against the band's width, a curve a row"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page with tables, plots and predictions side by side"
    )
    parser.add_argument(
        "--wandb-workspace",
        metavar="ENTITY/PROJECT",
        help="save a W&B workspace with these plots for the uploaded runs",
    )


def _add_sync(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "sync",
        help="upload runs that W&B logged offline",
        description="Upload what W&B logged offline in the runs below the given folders. What is up already is left "
        "out, so the command can be repeated until all is up; runs that are still going are left for later.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with runs, e.g. outputs/demo")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="uploads at the same time (default: 4)")
    parser.add_argument(
        "--timeout", type=float, default=900.0, metavar="S", help="give one run up after S seconds (default: 900)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded")


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="CE, BCE and RMI on generated scenes: trains, compares and draws in a few minutes on a CPU",
        description="Train DeepLabv3+ with cross entropy, binary cross entropy and RMI on generated street scenes, "
        "print mIoU per loss and save a picture of where they differ. Needs no data, GPU or account.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), metavar="DIR", help="where run folders go (default: outputs)"
    )
    parser.add_argument("--overwrite", action="store_true", help="train again even if the runs are finished")


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("data", help="download a data set, or check the one you have")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser(
        "get",
        help="download CamVid, VOC 2012 or SBD",
        description="Download a data set, or what is missing of it: resumed, checked, and moved into place when whole. "
        "sbd builds the trainaug masks in the folder of VOC.",
    )
    get.add_argument("name", choices=("camvid", "voc", "sbd"))
    get.add_argument("--root", type=Path, required=True, metavar="DIR", help="the folder that the data set will be")
    get.add_argument(
        "--mirror", action="append", default=[], metavar="URL", help="address or folder to try first (may be repeated)"
    )
    check = actions.add_parser(
        "check",
        help="read every file: counts, sizes, class balance, and all faults at once",
        description="Read every file of a data set and print counts, sizes, class balance and everything that is "
        "wrong with it. Nothing is changed.",
    )
    check.add_argument("name", choices=("camvid", "voc", "folder", "shapes"))
    check.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder (not for shapes)")
    check.add_argument("--sheet", type=Path, metavar="PNG", help="draw samples of each split with their masks")
    check.add_argument("--samples", type=int, default=3, metavar="N", help="samples of each split on it (default: 3)")
