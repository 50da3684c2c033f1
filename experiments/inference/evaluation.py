"""Any trained module validated, tested or asked for predictions under another inference protocol."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.pool import Refined, RefinementPool, available_cores, started_ahead
from beyondpixel.experiments.inference.protocol import Protocol, as_logits
from beyondpixel.lightning_modules.visualization import denormalize
from beyondpixel.losses import CrossEntropyLoss

LOADERS = {"validate": "val_dataloader", "test": "test_dataloader", "predict": "predict_dataloader"}


class EvaluationProtocol(Callback):
    """Puts a protocol between a module and its evaluation: for its duration `module(images)` gives the protocol's
    logits, so scores, files and pictures are all made from them.

    The logged loss is the cross entropy of the protocol's probabilities, whatever the module was trained with. With a
    CRF, its share of an image's time is logged beside the scores: `test/crf_seconds`, the median CPU time on one core
    over the first process's images.

    Args:
        protocol: what to do.
        workers: processes for the CRF of each of Lightning's processes; the cores shared out if None.

    Example:
        >>> trainer = Trainer(callbacks=[EvaluationProtocol(Protocol(flip=True))], logger=False, accelerator="cpu")
    """

    def __init__(self, protocol: Protocol, workers: int | None = None) -> None:
        self.protocol = protocol
        self.workers = workers
        self._undo: list[Callable[[], object]] = []
        self._ready: deque[tuple[Tensor, Tensor]] = deque()  # a batch's images and their probabilities
        self._crf_seconds: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """With a CRF, put a loader that looks ahead in place of this stage's."""
        if stage not in LOADERS or self.protocol.crf is None:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if data is None:
            raise UserError("post-processing needs a data module, because it looks ahead in the images")
        sizes_differ = not getattr(data, "fixed_size", True) and getattr(data, "image_size", None) is None
        if sizes_differ and getattr(data, "eval_batch_size", 1) > 1:
            raise UserError(
                f"a CRF would see the padding in batches of {data.eval_batch_size} images of different sizes: "
                "set --data.eval_batch_size 1"
            )
        # processes of one machine share its cores
        workers = self.workers or max(1, available_cores() // max(1, trainer.num_devices))
        pool = RefinementPool(self.protocol.crf, workers)
        name = LOADERS[stage]
        plain = getattr(data, name)

        def look_ahead(loader: Any) -> _Loader:
            return _Loader(len(loader), lambda: self._refined_batches(loader, pool, trainer, pl_module))

        def loaders() -> _Loader | list[_Loader]:
            made = plain()
            return [look_ahead(loader) for loader in made] if isinstance(made, list) else look_ahead(made)

        setattr(data, name, loaders)
        self._undo += [pool.close, lambda: delattr(data, name)]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._finish(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._finish(pl_module, "test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self.teardown(trainer, pl_module, "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give module and data back as they were."""
        while self._undo:
            self._undo.pop()()

    def _begin(self, module: LightningModule) -> None:
        self._ready.clear()
        self._crf_seconds = []
        loss = module.loss
        # the protocol gives probabilities; a loss over sigmoids of logits has no meaning for them
        arguments = {name: module.hparams[name] for name in ("num_classes", "ignore_index")}
        module.loss = CrossEntropyLoss(**arguments).to(module.device)
        self._undo += [lambda: setattr(module, "loss", loss), lambda: delattr(module, "forward")]

        def forward(images: Tensor) -> Tensor:
            if self._ready and torch.equal(self._ready[0][0], images):
                return as_logits(self._ready.popleft()[1])
            if self.protocol.crf is None:
                return as_logits(self._probs(module, images))
            # not a batch of the loader: somebody, such as who draws pictures, wants single images predicted
            probs = self._probs(module, images)
            pairs = zip(_pictures(images, module.trainer), probs.cpu().numpy(), strict=True)
            refined = np.stack([self.protocol.crf(picture, one) for picture, one in pairs])
            return as_logits(torch.from_numpy(refined).to(probs.device))

        module.forward = forward  # type: ignore[method-assign]

    def _probs(self, module: LightningModule, images: Tensor) -> Tensor:
        # the class's forward: the instance's is the protocol's
        return self.protocol.network_probs(lambda view: type(module).forward(module, view), images)

    def _refined_batches(
        self, loader: Any, pool: RefinementPool, trainer: Trainer, module: LightningModule
    ) -> Iterator[Any]:
        """The loader's batches, each when its probabilities are refined, with the network some batches ahead."""

        def start(batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor, list[Future[Refined]]]:
            pictures = _pictures(batch["image"], trainer)
            images: Tensor = trainer.strategy.batch_to_device(batch, dataloader_idx=0)["image"]
            with trainer.precision_plugin.test_step_context():
                probs = self._probs(module, images)
            pairs = zip(pictures, probs.cpu().numpy(), strict=True)
            return batch, images, [pool.submit(picture, one) for picture, one in pairs]

        for batch, images, jobs in started_ahead(loader, start, ahead=2 * pool.workers):
            refined = [job.result() for job in jobs]
            self._crf_seconds += [one.seconds for one in refined]
            self._ready.append((images, torch.from_numpy(np.stack([one.probs for one in refined])).to(images.device)))
            yield batch

    def _finish(self, module: LightningModule, stage: str) -> None:
        if self._ready:
            raise RuntimeError(
                f"{type(module).__name__} does not predict by module(images) with the batch's images, so that "
                "post-processing was lost"
            )
        if self._crf_seconds:
            module.log(f"{stage}/crf_seconds", statistics.median(self._crf_seconds), rank_zero_only=True)


class _Loader:
    def __init__(self, length: int, batches: Callable[[], Iterator[Any]]) -> None:
        self.length = length
        self.batches = batches

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.batches()


def _pictures(images: Tensor, trainer: Trainer) -> list[NDArray[np.uint8]]:
    """The 8-bit RGB images of a batch, (H, W, 3) each, as they were before normalisation."""
    if images.dtype == torch.uint8:
        return list(images.permute(0, 2, 3, 1).numpy())
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return [denormalize(image, data.mean, data.std) for image in images.cpu().numpy()]
