"""The task that every network here is trained for: a class for each pixel."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.parsing import collect_init_args
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from beyondpixel.lightning_modules.hub import HubMixin
from beyondpixel.lightning_modules.metrics import EvaluationScores
from beyondpixel.lightning_modules.networks.pretrained import without_pretrained_weights
from beyondpixel.lightning_modules.parameter_groups import parameter_groups
from beyondpixel.lightning_modules.schedules import WarmupPolyLR
from beyondpixel.losses import SegmentationLoss, build_loss


class SegmentationModule(HubMixin, LightningModule):
    """Steps, scores, optimiser, schedule and logging; a subclass says in ``configure_network`` what the network is.

    Batches are dicts: ``image`` float32 (N, 3, H, W), normalised; ``mask`` int64 (N, H, W); ``id`` list of str. Logged
    are ``train/loss`` and its terms (``train/loss_pixel``, ``train/loss_rmi``, ...) at each step, and for ``val`` and
    ``test`` the loss, its terms, ``mIoU``, ``pixel_accuracy``, ``mean_accuracy`` and ``IoU/<class>``, from one
    confusion matrix over the whole set; for ``test`` also scores of boundaries and of small objects, all of which
    metrics/README.md defines. Training is by SGD with warm-up and polynomial decay over all iterations.

    Hyper-parameters are plain values, so a checkpoint needs nothing but this package to be loaded.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels that neither train nor count.
        class_names: C distinct names for the logged IoU; the class numbers if None.
        loss: a name ("ce", "bce", "rmi", ...), a dict with ``name`` and arguments
            (``{"name": "rmi", "region_size": 3}``), or a module ``loss(logits, target) -> scalar``. A module is not
            saved in checkpoints: pass it to ``load_from_checkpoint`` again.
        lr: learning rate of the encoder.
        momentum: of SGD.
        weight_decay: on weights of convolutions and linear layers only.
        head_lr_multiplier: ratio of the head's learning rate to the encoder's (the RMI paper's training: 10; 5 for
            v3+ on VOC).
        warmup_iters: iterations of linear warm-up.
        warmup_start_lr, lr_power, min_lr, lr_decay_to: see
            :func:`~beyondpixel.lightning_modules.schedules.warmup_poly`.
        structure_scores: the evaluations, "val" or "test", that also score boundaries, bands around them and objects
            by size; this takes tens of milliseconds an image.

    Raises:
        ValueError: for an argument out of range or names that don't fit.

    Example:
        >>> class Pixelwise(SegmentationModule):
        ...     def configure_network(self) -> nn.Module:
        ...         return nn.Conv2d(3, self.num_classes, kernel_size=1)
        >>> module = Pixelwise(num_classes=5, loss={"name": "rmi", "region_size": 3})
        >>> module(torch.zeros(1, 3, 24, 32)).shape
        torch.Size([1, 5, 24, 32])
    """

    network: nn.Module
    loss: nn.Module

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_names: list[str] | None = None,
        loss: str | dict[str, Any] | nn.Module = "ce",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        head_lr_multiplier: float = 10.0,
        warmup_iters: int = 0,
        warmup_start_lr: float = 1e-4,
        lr_power: float = 0.9,
        min_lr: float = 1e-6,
        lr_decay_to: Literal["zero", "min_lr"] = "zero",
        structure_scores: Sequence[Literal["val", "test"]] = ("test",),
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more (background counts as a class), got {num_classes}")
        if isinstance(structure_scores, str) or not set(structure_scores) <= {"val", "test"}:
            raise ValueError(f"structure_scores must list 'val', 'test', both or none, got {structure_scores!r}")
        self._save_plain_hyperparameters(inspect.currentframe())
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
        self.network = self.configure_network()
        self.loss = self.configure_loss(loss)
        self.structure_scores = tuple(structure_scores)
        self.scores = nn.ModuleDict({stage: self.configure_scores(stage) for stage in ("val", "test")})

    def _save_plain_hyperparameters(self, frame: Any) -> None:
        # Lightning's own save_hyperparameters() would, under LightningCLI, save a recipe that needs jsonargparse to
        # load and lacks linked values in some versions. The arguments that __init__ received are always complete.
        arguments: dict[str, Any] = {}
        for local_arguments in collect_init_args(frame, [], classes=(LightningModule,)):
            arguments.update(local_arguments)
        self.save_hyperparameters({name: _plain(value) for name, value in arguments.items()})

    def configure_network(self) -> nn.Module:
        """Build the network, (N, 3, H, W) to (N, C, H, W), from ``self.hparams``.

        If it has a submodule ``encoder``, all the rest is the head.
        """
        raise NotImplementedError(f"{type(self).__name__} must define configure_network()")

    def configure_loss(self, loss: str | dict[str, Any] | nn.Module) -> nn.Module:
        """Build the loss, ``loss(logits, target) -> scalar``, from the constructor's argument."""
        if isinstance(loss, nn.Module):
            return loss
        if isinstance(loss, str):
            loss = {"name": loss}
        if not isinstance(loss, Mapping) or "name" not in loss:
            raise ValueError(
                f"loss must be a name, a dict with 'name' and arguments, or a module, got {loss!r}. A checkpoint of "
                "a training with a module holds None: pass the module to load_from_checkpoint(path, loss=...)"
            )
        return build_loss(**{"num_classes": self.num_classes, "ignore_index": self.ignore_index, **loss})

    def configure_scores(self, stage: str) -> EvaluationScores:
        """Build the scores of the evaluation set "val" or "test"."""
        return EvaluationScores(
            self.num_classes,
            ignore_index=self.ignore_index,
            class_names=self.class_names,
            structure=stage in self.structure_scores,
        )

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Like Lightning's, but never in need of the file or network that ``encoder_weights`` once came from."""
        with without_pretrained_weights():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """From (N, 3, H, W) normalised images to (N, C, H, W) logits."""
        logits: Tensor = self.network(images)
        return logits

    def on_train_start(self) -> None:  # noqa: D102
        self._max_iters = self._training_iterations()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: D102
        if isinstance(self.loss, SegmentationLoss):
            self.loss.progress = self.global_step / self._max_iters
        try:
            return self._step(batch, "train")
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"BatchNorm cannot train on this batch of {len(batch['image'])} image(s), because a layer sees one "
                "value per channel (ASPP pools each image to 1x1): use batch_size of 2 or more and drop_last=True, or "
                "synchronised BatchNorm on several GPUs"
            ) from error

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: D102
        self._step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: D102
        self._step(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Class of each pixel: ``{"id": list of str, "preds": uint8 (N, H, W)}`` (int64 above 256 classes)."""
        preds = self(self._entry(batch, "image", "predict")).argmax(dim=1)
        return {"id": batch.get("id"), "preds": preds.to(torch.uint8) if self.num_classes <= 256 else preds}

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:  # noqa: D102
        self._log_scores("test")

    def _step(self, batch: dict[str, Any], stage: str) -> Tensor:
        images, target = self._entry(batch, "image", stage), self._entry(batch, "mask", stage)
        logits, loss, logged = self.logits_and_loss(images, target, stage)
        training = stage == "train"
        for name, value in {"loss": loss, **logged}.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                prog_bar=training and name == "loss",
                on_step=training,
                on_epoch=not training,
                sync_dist=not training,
                batch_size=len(images),
            )
        if not training:
            self.evaluation_scores(stage).update(logits.argmax(dim=1), target, batch.get("id"))
        return loss

    def logits_and_loss(self, images: Tensor, target: Tensor, stage: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What one batch is predicted and trained to be; override it where a network has more than one output.

        Args:
            images: (N, 3, H, W).
            target: (N, H, W) labels.
            stage: "train", "val" or "test".

        Returns:
            Logits (N, C, H, W) to score; the scalar to minimise or report; and what is logged beside it, by its name
            without the stage, such as :meth:`loss_terms`.
        """
        logits = self(images)
        return logits, self.loss(logits, target), self.loss_terms()

    def loss_terms(self) -> dict[str, Tensor]:
        """The terms of the last batch's loss, unweighted: ``loss_pixel``, ``loss_rmi``, ..."""
        return {f"loss_{name}": term for name, term in getattr(self.loss, "terms", {}).items()}

    @staticmethod
    def _entry(batch: dict[str, Any], key: str, stage: str) -> Tensor:
        if key not in batch:
            remedy = "; images without truth can only be used with predict" if key == "mask" else ""
            raise ValueError(f"a {stage} batch needs {key!r}, but it holds {sorted(batch)} only{remedy}")
        entry: Tensor = batch[key]
        return entry

    def evaluation_scores(self, stage: str) -> EvaluationScores:
        """The scores of "val" or "test"; empty but between the first batch and the end of an evaluation."""
        return cast(EvaluationScores, self.scores[stage])

    def _log_scores(self, stage: str) -> None:
        scores = self.evaluation_scores(stage)
        unprinted = getattr(getattr(self.trainer, "datamodule", None), "classes_excluded_from_mean", ())
        for name, value in scores.summary([name for name in unprinted if name in self.class_names]).items():
            # already the same on all processes; sync_dist only tells Lightning so
            self.log(f"{stage}/{name}", value, prog_bar=name == "mIoU", sync_dist=True)
        scores.reset()

    def _training_iterations(self) -> int:
        iterations = self.trainer.estimated_stepping_batches
        if iterations == float("inf"):
            raise ValueError("the learning rate decays over the whole training: set trainer.max_steps or max_epochs")
        return int(iterations)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with momentum on four parameter groups; the schedule steps at each iteration."""
        hparams = self.hparams
        groups = parameter_groups(
            self.network,
            encoder=getattr(self.network, "encoder", None),
            lr=hparams["lr"],
            weight_decay=hparams["weight_decay"],
            head_lr_multiplier=hparams["head_lr_multiplier"],
            loss=self.loss,
        )
        optimizer = torch.optim.SGD(groups, lr=hparams["lr"], momentum=hparams["momentum"])
        scheduler = WarmupPolyLR(
            optimizer,
            lr=hparams["lr"],
            max_iters=self._training_iterations(),
            warmup_iters=hparams["warmup_iters"],
            warmup_start_lr=hparams["warmup_start_lr"],
            power=hparams["lr_power"],
            min_lr=hparams["min_lr"],
            decay_to=hparams["lr_decay_to"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _plain(value: Any) -> Any:
    """What a checkpoint may hold and ``weights_only`` loading accepts; None in place of a module."""
    if isinstance(value, nn.Module):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
