"""Base of the Lightning modules for semantic segmentation."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from beyondpixel.lightning_modules.hub import HubModule
from beyondpixel.lightning_modules.inferer import Inferer
from beyondpixel.lightning_modules.metrics import EvaluationMetrics, mean_over_classes
from beyondpixel.lightning_modules.networks.pretrained import without_pretrained_weights
from beyondpixel.lightning_modules.parameter_groups import parameter_groups
from beyondpixel.lightning_modules.schedules import WarmupPolyLR
from beyondpixel.losses import SegmentationLoss, build_loss

# Constructor arguments that are objects, and LightningCLI's additions; checkpoints contain plain values only.
NOT_SAVED = ["optimizer", "lr_scheduler", "_class_path", "_instantiator"]


class SegmentationModule(HubModule):
    """Training, evaluation and prediction steps, metrics, optimizer and schedule of a segmentation network.

    A subclass builds its network in `configure_network`. Batches are dicts: `image` float32 (N, 3, H, W), normalized;
    `mask` int64 (N, H, W); `id` list of str. Logs `train/loss` and its terms (`train/loss_pixel`, `train/loss_rmi`,
    ...) at each step, and for `val` and `test` the loss, its terms and the metrics defined in metrics/README.md:
    `mIoU`, `pixel_accuracy`, `IoU/<class>`, ... from one confusion matrix over the whole set, and for `test` metrics of
    boundaries and object sizes.

    Hyper-parameters are plain values, so loading a checkpoint needs nothing but this package. Objects are not saved:
    pass `optimizer`, `lr_scheduler` or a `loss` module to `load_from_checkpoint` again to continue training.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels that are excluded from loss and metrics.
        class_names: C distinct names for the logged IoU; the class numbers if None.
        loss: a name ("ce", "bce", "rmi", ...), a dict with `name` and arguments
            (`{"name": "rmi", "region_size": 3}`), a list of these to be summed, whose dicts may have a `weight`, or a
            module `loss(logits, target) -> scalar`.
        lr: learning rate of the encoder.
        momentum: momentum of SGD.
        weight_decay: weight decay of convolution and linear weights.
        decay_norm_and_bias: whether to apply weight decay to norm layers and biases as well.
        head_lr_multiplier: ratio of the head's learning rate to the encoder's (the RMI paper's training: 10; 5 for
            v3+ on VOC).
        warmup_iters: iterations of linear warm-up.
        warmup_start_lr, lr_power, min_lr, lr_decay_to: see `warmup_poly`.
        optimizer: builds an optimizer other than SGD from parameter groups, such as `functools.partial(AdamW, lr=6e-5)`
            or `--model.optimizer torch.optim.AdamW --model.optimizer.lr 6e-5`. Its own lr and weight decay replace
            `lr` and `weight_decay`; head multiplier and decay rule apply to them.
        lr_scheduler: builds a scheduler other than warm-up and polynomial decay from the optimizer. It steps once per
            epoch, as with LightningCLI; ReduceLROnPlateau, with `mode="max"`, monitors `val/mIoU` unless it has a
            `monitor`.
        boundary_metrics: stages ("val", "test") with metrics of boundaries, bands around them and object sizes;
            these take tens of milliseconds per image.
        network: arguments of `configure_network`.

    Attributes:
        inferer: strategy of validation, test and prediction (see the module `inferer`); None is one forward pass.
            With an inferer, metrics are logged but no loss.

    Raises:
        ValueError: if an argument is out of range or `class_names` are not C distinct names.

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
    inferer: Inferer | None = None

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_names: list[str] | None = None,
        loss: str | dict[str, Any] | list[str | dict[str, Any]] | nn.Module = "ce",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay_norm_and_bias: bool = False,
        head_lr_multiplier: float = 10.0,
        warmup_iters: int = 0,
        warmup_start_lr: float = 1e-4,
        lr_power: float = 0.9,
        min_lr: float = 1e-6,
        lr_decay_to: Literal["zero", "min_lr"] = "zero",
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        boundary_metrics: Sequence[Literal["val", "test"]] = ("test",),
        **network: Any,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more (background counts as a class), got {num_classes}")
        if isinstance(boundary_metrics, str) or not set(boundary_metrics) <= {"val", "test"}:
            raise ValueError(f"boundary_metrics must list 'val', 'test', both or none, got {boundary_metrics!r}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value}")
        # Lightning also collects the subclass's arguments. Saving them again replaces them with plain values.
        self.save_hyperparameters(ignore=[*NOT_SAVED, *(["loss"] if isinstance(loss, nn.Module) else [])])
        self.save_hyperparameters({"loss": None} | {name: _plain(value) for name, value in self.hparams.items()})
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
        self.network = self.configure_network(**network)
        self.loss = self.configure_loss(loss)
        sgd = partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._make_optimizer = optimizer or sgd
        self._make_lr_scheduler = lr_scheduler
        self.boundary_metrics = tuple(boundary_metrics)
        self.metrics = nn.ModuleDict({stage: self.configure_metrics(stage) for stage in ("val", "test")})

    def configure_network(self, **network: Any) -> nn.Module:
        """Build the network, (N, 3, H, W) to (N, C, H, W), from the constructor's other arguments.

        A subclass declares its arguments, or passes `**network` to a class or function that declares them, where
        LightningCLI finds them. If the network has a submodule `encoder`, everything else is the head.
        """
        raise NotImplementedError(f"{type(self).__name__} must define configure_network()")

    def configure_loss(self, loss: Any) -> nn.Module:
        """Build the loss, `loss(logits, target) -> scalar`, from the constructor's argument."""
        if isinstance(loss, nn.Module):
            return loss
        if not isinstance(loss, str | Mapping | list | tuple) or not loss:
            raise ValueError(
                "loss must be a name, a dict with 'name' and arguments, a list of these, or a module, got "
                f"{loss!r}. A checkpoint trained with a loss module contains None: pass the module to "
                "load_from_checkpoint(path, loss=...)"
            )
        return build_loss(loss, num_classes=self.num_classes, ignore_index=self.ignore_index)

    def configure_metrics(self, stage: str) -> EvaluationMetrics:
        """Build the metrics of the evaluation "val" or "test"."""
        return EvaluationMetrics(
            self.num_classes,
            ignore_index=self.ignore_index,
            class_names=self.class_names,
            boundaries=stage in self.boundary_metrics,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule; learning rates and weight decays are set for each parameter group."""
        hparams = self.hparams
        relative = parameter_groups(
            self.network,
            head_lr_multiplier=hparams["head_lr_multiplier"],
            decay_norm_and_bias=hparams["decay_norm_and_bias"],
            loss=self.loss,
        )
        optimizer = self._make_optimizer([{"name": group["name"], "params": group["params"]} for group in relative])
        for group, factors in zip(optimizer.param_groups, relative, strict=True):
            group["lr"] *= factors["lr"]
            group["weight_decay"] *= factors["weight_decay"]
            group.setdefault("initial_lr", group["lr"])  # as all schedulers but ReduceLROnPlateau do
        if self._make_lr_scheduler is not None:
            own = self._make_lr_scheduler(optimizer)
            monitor = getattr(own, "monitor", "val/mIoU")
            if isinstance(own, ReduceLROnPlateau) and monitor == "val/mIoU" and own.mode == "min":
                raise ValueError(
                    "lr_scheduler: ReduceLROnPlateau monitors val/mIoU, which should increase: set mode='max'"
                )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": own, "monitor": monitor}}
        scheduler = WarmupPolyLR(
            optimizer,
            lr=optimizer.defaults["lr"],
            max_iters=self._training_iterations(),
            warmup_iters=hparams["warmup_iters"],
            warmup_start_lr=hparams["warmup_start_lr"],
            power=hparams["lr_power"],
            min_lr=hparams["min_lr"],
            decay_to=hparams["lr_decay_to"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _training_iterations(self) -> int:
        iterations = self.trainer.estimated_stepping_batches
        if iterations == float("inf"):
            raise ValueError("the learning rate decays over the whole training: set trainer.max_steps or max_epochs")
        return int(iterations)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Lightning does, without fetching the encoder's pretrained weights again."""
        with without_pretrained_weights():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) normalized images to (N, C, H, W) logits in one forward pass of the network."""
        logits: Tensor = self.network(images)
        return logits

    def infer(self, images: Tensor) -> Tensor:
        """Compute logits for evaluation: with `inferer`, or with one forward pass if it is None."""
        logits: Tensor = self(images) if self.inferer is None else self.inferer(images, self)
        return logits

    def on_fit_start(self) -> None:  # noqa: D102
        # from_pretrained returns it in evaluation mode, which Lightning would keep: no batch statistics, dropout or
        # auxiliary losses. Parts that are in evaluation mode within a module that is not stay so
        if not self.training:
            self.train()

    def on_train_start(self) -> None:  # noqa: D102
        self._max_iters = self._training_iterations()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: D102
        loss_module = getattr(self.loss, "_orig_mod", self.loss)  # torch.compile hides the loss's type
        if isinstance(loss_module, SegmentationLoss):
            loss_module.progress = self.global_step / self._max_iters
        images, target = _entry(batch, "image", "train"), _entry(batch, "mask", "train")
        try:
            _, loss, logged = self.logits_and_loss(images, target, "train")
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # BatchNorm's own check
                raise
            raise ValueError(
                f"BatchNorm cannot train on this batch of {len(images)} image(s), because a layer sees one value per "
                "channel (ASPP pools each image to 1x1): use batch_size of 2 or more and drop_last=True, or "
                "synchronized BatchNorm on several GPUs"
            ) from error
        for name, value in {"loss": loss, **logged}.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: D102
        self._evaluation_step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: D102
        self._evaluation_step(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Predict the class of each pixel.

        Returns:
            `{"id": list of str, "preds": uint8 (N, H, W)}`, int64 above 256 classes.
        """
        preds = self.infer(_entry(batch, "image", "predict")).argmax(dim=1)
        return {"id": batch.get("id"), "preds": preds.to(torch.uint8) if self.num_classes <= 256 else preds}

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:  # noqa: D102
        self._log_metrics("test")

    def logits_and_loss(self, images: Tensor, target: Tensor, stage: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute logits and loss of one batch; override it if a network has more than one output.

        Args:
            images: (N, 3, H, W).
            target: (N, H, W) labels.
            stage: "train", "val" or "test".

        Returns:
            Logits (N, C, H, W) to evaluate; the scalar to minimize or report; and other values to log, keyed by
            their name without the stage, such as `loss_terms`.
        """
        logits = self(images)
        return logits, self.loss(logits, target), self.loss_terms()

    def loss_terms(self) -> dict[str, Tensor]:
        """Return the unweighted terms of the last batch's loss: `loss_pixel`, `loss_rmi`, ..."""
        return {f"loss_{name}": term for name, term in getattr(self.loss, "terms", {}).items()}

    def evaluation_metrics(self, stage: str) -> EvaluationMetrics:
        """Return the metrics of "val" or "test"; empty except between the first batch and the end of an evaluation."""
        return cast(EvaluationMetrics, self.metrics[stage])

    def _evaluation_step(self, batch: dict[str, Any], stage: str) -> None:
        images, target = _entry(batch, "image", stage), _entry(batch, "mask", stage)
        if self.inferer is not None:  # losses are defined on the network's own logits
            logits, logged = self.infer(images), {}
        else:
            logits, loss, terms = self.logits_and_loss(images, target, stage)
            logged = {"loss": loss, **terms}
        # processes with fewer images than others get an all-void image, which must not count
        labeled = int((target != self.ignore_index).flatten(1).any(1).sum())
        for name, value in logged.items():
            # a custom loss may be NaN there, and 0 * NaN is NaN
            self.log(
                f"{stage}/{name}",
                value if labeled else torch.zeros_like(value),
                on_epoch=True,
                sync_dist=True,
                # Lightning averages batch_size over processes in its own dtype, which truncates an integer
                batch_size=float(labeled),  # type: ignore[arg-type]
            )
        self.evaluation_metrics(stage).update(logits.argmax(dim=1), target, batch.get("id"))

    def _log_metrics(self, stage: str) -> None:
        metrics = self.evaluation_metrics(stage)
        values = metrics.compute()
        excluded = getattr(getattr(self.trainer, "datamodule", None), "classes_excluded_from_mean", ())
        if set(excluded) & set(self.class_names):
            values |= mean_over_classes(values, [name for name in self.class_names if name not in excluded])
        for name, value in values.items():
            # already equal on all processes; sync_dist only tells Lightning so
            self.log(f"{stage}/{name}", value, prog_bar=name == "mIoU", sync_dist=True)
        metrics.reset()


def _entry(batch: dict[str, Any], key: str, stage: str) -> Tensor:
    if key not in batch:
        remedy = "; images without target can only be used with predict" if key == "mask" else ""
        raise ValueError(f"a {stage} batch needs {key!r}, but it holds {sorted(batch)} only{remedy}")
    entry: Tensor = batch[key]
    return entry


def _plain(value: Any) -> Any:
    """Convert to types that `weights_only` loading accepts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
