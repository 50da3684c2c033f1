"""Archives of predictions for test servers."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.outputs import PredictionFolder

# VOC 2012 development kit, section 5.3: competition 5 is for models trained on VOC's own train and val images alone,
# competition 6 for all others, such as those trained on SBD's masks (trainaug)
VOC_COMPETITIONS = {"voc": "comp6", "voc:comp5": "comp5", "voc:comp6": "comp6"}
VOC_CLASSES = 21


def check_submission(submission: str, *, num_classes: int, colors: str) -> None:
    """Check what a server would refuse, before anything is predicted.

    Raises:
        UserError: for a model or images that the server does not accept.
    """
    if num_classes != VOC_CLASSES:
        raise UserError(
            f"--submission {submission}: VOC has {VOC_CLASSES} classes with background, but the model has {num_classes}"
        )
    if colors != "palette":
        raise UserError(f"--submission {submission}: the server reads class numbers: leave out --colors {colors}")


def pack_voc(names: Sequence[str], predictions: PredictionFolder, submission: str) -> Path:
    """Pack predictions for VOC 2012's test server.

    Args:
        names: of every image of the test set.
        predictions: folder with the predictions of all of them.
        submission: a key of `VOC_COMPETITIONS`.

    Returns:
        The archive, `results.tgz` in the folder of predictions; it contains
        `results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png` and so on.
    """
    archive = predictions.path / "results.tgz"
    folder = f"results/VOC2012/Segmentation/{VOC_COMPETITIONS[submission]}_test_cls"
    with tarfile.open(archive, "w:gz") as file:
        for name in names:
            file.add(predictions.files(name)["mask"], f"{folder}/{Path(name).name}.png")
    return archive
