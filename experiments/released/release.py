"""`beyondpixel release`: pack a trained network as a small file, with an entry that has reproducible scores."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import replacing, write_atomically

MAX_BYTES = 15_000_000
SCORES = ("test/mIoU", "test/pixel_accuracy", "test/boundary_F")


def release(*, ckpt_path: str, name: str, output: Path) -> None:
    """Pack a trained network for release, and score the packed network.

    NAME.zip contains config, weights in half precision and a model card; NAME.yaml its SHA-256, the data, and the
    scores on its test images. NAME.yaml goes to experiments/released/ of the package, NAME.zip to a release.

    Args:
        ckpt_path: the run's last.ckpt or best.ckpt.
        name: of the network.
        output: the folder for both files.

    Raises:
        UserError: if the checkpoint cannot be loaded, its run was not tested, or the file is larger than 15 MB.
    """
    import torch

    from beyondpixel.experiments.inference.checkpoints import config_of, find_checkpoint, load_trained
    from beyondpixel.experiments.released.loading import load_released, score

    checkpoint = find_checkpoint(ckpt_path, None)
    config = config_of(checkpoint)
    module, data = load_trained(checkpoint, config)
    with torch.no_grad():
        for parameter in module.parameters():  # BatchNorm statistics, a thousandth of all values, keep their precision
            parameter.data = parameter.data.half()
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{name}.zip"
    with tempfile.TemporaryDirectory() as folder:
        try:
            module.save_pretrained(folder, run=checkpoint.resolve().parent.parent, datamodule=data)
        except FileNotFoundError as error:
            raise UserError(f"{error}; test it first: beyondpixel test --ckpt_path {checkpoint}") from error
        with replacing(archive) as file, zipfile.ZipFile(file, "w") as packed:
            for part in sorted(Path(folder).iterdir()):  # without times: equal files give an equal archive
                packed.writestr(zipfile.ZipInfo(part.name), part.read_bytes(), zipfile.ZIP_DEFLATED)
    size = archive.stat().st_size
    if size > MAX_BYTES:
        archive.unlink()
        raise UserError(f"{name} takes {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}; choose a smaller encoder")
    entry = {
        "file": archive.name,
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "class": type(module).__name__,
        "seed_everything": config["seed_everything"],
        "data": {**config["data"], "init_args": {**config["data"]["init_args"], "num_workers": 0}},
    }
    entry_file = output / f"{name}.yaml"
    write_atomically(entry_file, yaml.safe_dump(entry, sort_keys=False))
    scores = score(load_released(entry_file, source=output), entry)
    entry["scores"] = {key: round(scores[key], 6) for key in SCORES if key in scores}
    write_atomically(entry_file, yaml.safe_dump(entry, sort_keys=False))
    print(f"{archive}: {size / 1e6:.1f} MB; {entry_file}: mIoU {100 * scores['test/mIoU']:.2f} %")
