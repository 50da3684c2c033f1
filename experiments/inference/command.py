"""`beyondpixel predict` and `beyondpixel export`: their options are the arguments of these functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from beyondpixel.experiments.errors import UserError, as_user_error


def predict(
    *,
    ckpt_path: str,
    output: Path,
    images: list[Path] | None = None,
    config: Path | None = None,
    names: Path | None = None,
    inferer: str | None = None,
    colors: Literal["palette", "rgb"] = "palette",
    overlays: bool = False,
    probabilities: bool = False,
    submission: Literal["voc", "voc:comp5", "voc:comp6"] | None = None,
    device: str | None = None,
    overwrite: bool = False,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Predict images, or folders of them, with a trained model, and write PNG files with the images' names and sizes.

    PNG files contain class numbers and, for viewers, their colors. Images with predictions are skipped, so the same
    command continues an interrupted prediction; unreadable images are listed at the end. Images of any size and kind
    are accepted: gray, 16-bit and transparent ones become RGB, photographs are rotated upright. Classes, colors,
    normalization and image_size are those of the run's data, whose keys can be overridden: --data.root DIR.

    Args:
        ckpt_path: the run's last.ckpt or best.ckpt; or last or best with --config
        output: folder for the predictions
        images: images and folders of images (default: data.predict_path or the data's test images)
        config: the run's config.yaml, if the checkpoint is not in its run folder
        names: a text file with one image name per line; only these images are predicted
        inferer: how images are predicted: crf:5, 'tta:flip scales=0.5,1', window:513, memory:exchanged, or several
            joined by +
        colors: what PNG files hold: class numbers with a palette, or the colors themselves
        overlays: also write an overlay of each prediction on its image
        probabilities: also write float16 arrays (C, H, W) as .npz
        submission: also pack an archive for VOC 2012's test server; voc is comp6, for models trained on other data, too
        device: such as cuda:1 or cpu (default: a GPU if there is one)
        overwrite: replace existing predictions

    Raises:
        UserError: for errors that a user can fix; for unreadable images, after all others are done.
    """
    import torch

    from beyondpixel.experiments.checksums import checksum
    from beyondpixel.experiments.inference.checkpoints import config_of, find_checkpoint, load_trained
    from beyondpixel.experiments.inference.inferers import InfererOptions, parse_inferer
    from beyondpixel.experiments.inference.outputs import PredictionFolder, check_submission, pack_voc
    from beyondpixel.experiments.inference.predict import find_dataset, predict_dataset

    checkpoint = find_checkpoint(ckpt_path, config)
    options = InfererOptions() if inferer is None else parse_inferer(inferer)
    module, data = load_trained(checkpoint, config_of(checkpoint, config, overrides))
    dataset = find_dataset(data, images, output, names)
    if submission is not None:
        check_submission(submission, num_classes=module.num_classes, colors=colors)
    with as_user_error(RuntimeError, TypeError):  # torch's message names the device, or the dtype that it lacks
        module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    module.inferer = options.build(data)
    preprocessing = {name: getattr(data, name) for name in ("image_size", "resampling", "mean", "std")}
    settings = {"checkpoint": checksum(checkpoint), **options.axes, **json.loads(json.dumps(preprocessing))}
    predictions = PredictionFolder(output, colors=colors, overlays=overlays, probabilities=probabilities)
    predictions.prepare(getattr(dataset, "pairs", ()), settings, overwrite=overwrite)
    predict_dataset(dataset, module, data, predictions, overwrite=overwrite)
    if submission is not None:
        print(f"Archive for the test server: {pack_voc(dataset.ids, predictions, submission)}")


def export(
    *,
    ckpt_path: str,
    output: Path,
    format: Literal["onnx", "state_dict"],
    normalize: bool = False,
    config: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Export a trained network: an ONNX graph, which needs neither this package nor PyTorch, or the network's weights.

    The ONNX graph takes batches and images of any size and is compared with PyTorch before it is kept. Both formats
    contain mean, std, class names, palette and a description of the input.

    Args:
        ckpt_path: the run's last.ckpt or best.ckpt; or last or best with --config
        output: file to write, such as model.onnx or model.pth
        format: a graph for ONNX Runtime, or a state dict for PyTorch
        normalize: include the normalization in the ONNX graph, which then takes uint8 RGB images
        config: the run's config.yaml, if the checkpoint is not in its run folder

    Raises:
        UserError: if the checkpoint cannot be loaded, a package is missing, the output cannot be written, or ONNX
            Runtime's logits differ from PyTorch's.
    """
    import torch
    from torchvision.transforms import v2

    from beyondpixel.experiments.inference.checkpoints import config_of, find_checkpoint, load_trained
    from beyondpixel.experiments.inference.export import CHECKED_SIZES, describe, write_onnx
    from beyondpixel.experiments.run.folder import replacing

    if normalize and format != "onnx":
        raise UserError("--normalize is for --format onnx: a state dict holds weights alone, and no computation")
    checkpoint = find_checkpoint(ckpt_path, config)
    module, data = load_trained(checkpoint, config_of(checkpoint, config, overrides))
    metadata = describe(data, normalize=normalize)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if format == "onnx":
            normalization = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
            network = torch.nn.Sequential(*normalization, module.network) if normalize else module.network
            difference = write_onnx(network, output, metadata, normalize=normalize)
            print(
                f"{output}: ONNX Runtime's logits differ from PyTorch's by at most {difference:.1e} of the largest, at "
                f"{len(CHECKED_SIZES)} sizes; input: {metadata['input']}"
            )
        else:
            with replacing(output) as file:  # torch's own errors of a wrong path do not name it
                torch.save({"state_dict": module.network.state_dict(), "metadata": metadata}, file)
            name = type(module).__name__
            print(f"{output}: load it with {name}(...).network.load_state_dict(torch.load(FILE)['state_dict'])")
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror or error})") from error
