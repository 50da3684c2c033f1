"""The words of `beyondpixel predict` and `beyondpixel export`; what they do is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

Commands = argparse._SubParsersAction  # its public name is argparse's add_subparsers()


def wants_images(words: list[str]) -> bool:
    """Whether `predict` is for a user's own images, or for help; otherwise it is LightningCLI's."""
    return words[0] == "predict" and bool({word.split("=")[0] for word in words} & {"--images", "--help", "-h"})


def add_predict(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the parser of `predict`."""
    parser = commands.add_parser(
        "predict",
        help="write predictions of a checkpoint as PNG files: your own images, or a data set's",
        description="Predict images, or folders of them, with a trained model: PNG files of the images' names and "
        "sizes that hold class numbers and, for viewers, their colours. Images that are predicted already are skipped, "
        "so an interrupted prediction goes on where it stopped.",
        epilog="Without --images the test images of the run's data set are predicted, and every key of LightningCLI "
        "can be given, as for `beyondpixel test` (see its --help): beyondpixel predict --ckpt_path RUN/...ckpt "
        "--data.predict_path DIR",
    )
    _add_checkpoint(parser)
    parser.add_argument("--images", nargs="+", type=Path, required=True, metavar="PATH", help="images, or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where predictions go")
    parser.add_argument("--names", type=Path, metavar="FILE", help="a list, one name a line, of the images to take")
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="images of one size at once (default 1)")
    parser.add_argument("--colors", choices=("palette", "rgb"), default="palette", help="what PNGs hold: class numbers")
    parser.add_argument("--overlays", action="store_true", help="also lay each prediction over its image")
    parser.add_argument("--probabilities", action="store_true", help="also write float16 arrays (C, H, W), .npz")
    parser.add_argument(
        "--tta", metavar="VIEWS", help="average over views: flip, scales=0.5,1,1.5, 'scales=0.5,1 flip'"
    )
    parser.add_argument("--window", type=int, metavar="PIXELS", help="look at large images through windows this wide")
    parser.add_argument("--overlap", type=float, metavar="SHARE", help="of a window with the next (default: a third)")
    parser.add_argument("--postprocess", metavar="crf:STEPS", help="a fully connected CRF on the probabilities")
    parser.add_argument(
        "--submission",
        choices=("voc", "voc:comp5", "voc:comp6"),
        help="also pack an archive for VOC 2012's test server; voc is comp6, for models that saw other data than VOC's",
    )
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 or cpu (default: a GPU where there is one)")
    parser.add_argument("--overwrite", action="store_true", help="predict again what is there")


def run_predict(options: argparse.Namespace) -> None:
    """Do what `predict` was asked."""
    from beyondpixel.experiments.inference.predict import predict
    from beyondpixel.experiments.inference.protocol import Protocol

    protocol = Protocol.parse(
        tta=options.tta, window=options.window, overlap=options.overlap, postprocess=options.postprocess
    )
    predict(
        options.ckpt_path,
        options.images,
        options.output,
        protocol=protocol,
        config_file=options.config,
        names_file=options.names,
        batch_size=options.batch_size,
        colors=options.colors,
        overlays=options.overlays,
        probabilities=options.probabilities,
        submission=options.submission,
        device=options.device,
        overwrite=options.overwrite,
    )


def add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the parser of `export`."""
    parser = commands.add_parser(
        "export",
        help="write a trained network as ONNX or as a plain state dict",
        description="Write a trained network for use without this package. ONNX takes batches and images of any size "
        "and is compared with PyTorch before it is kept.",
    )
    _add_checkpoint(parser)
    parser.add_argument("--format", choices=("onnx", "state_dict"), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="such as model.onnx or model.pth")


def run_export(options: argparse.Namespace) -> None:
    """Do what `export` was asked."""
    from beyondpixel.experiments.inference.export import export

    export(options.ckpt_path, options.output, format=options.format, config_file=options.config)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt_path", type=Path, required=True, metavar="FILE", help="the run's last.ckpt or best.ckpt"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="its config.yaml, if it is not in its run folder")
