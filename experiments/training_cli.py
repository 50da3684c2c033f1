"""LightningCLI with defaults that need no file, links from data to model, and a run folder for every fit."""

from __future__ import annotations

import functools
import logging
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO

import beyondpixel.datamodules
import beyondpixel.lightning_modules  # noqa: F401  (both imported so that YAML may name their classes shortly)
from beyondpixel.experiments.checkpoint_files import AtomicCheckpointIO
from beyondpixel.experiments.class_table import ClassTable
from beyondpixel.experiments.config_mistakes import mistakes_in_config, mistakes_in_model
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.evaluation_recorder import EvaluationRecorder
from beyondpixel.experiments.inference.checkpoints import check_fits
from beyondpixel.experiments.inference.evaluation import EvaluationProtocol
from beyondpixel.experiments.inference.protocol import Protocol
from beyondpixel.experiments.last_checkpoint import LastCheckpoint
from beyondpixel.experiments.layers import Origin
from beyondpixel.experiments.recorder import RunRecorder, identify
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.spec_files import SpecError
from beyondpixel.experiments.starting import checkpoint_to_resume, start_over
from beyondpixel.experiments.step_seeds import StepSeeds
from beyondpixel.experiments.tracking import RunFolderLogger, wandb_logger
from beyondpixel.lightning_modules.callbacks import (
    ConfusionFigure,
    InferenceTime,
    PredictionImages,
    PredictionWriter,
    Throughput,
)
from beyondpixel.lightning_modules.networks import without_pretrained_weights

DEFAULT_SEED = 1
DEFAULT_FOLDER = "outputs/fit"
# keys of `trainer.fit` and of the command line that are no part of what a run is
NOT_CONFIG = ("config", "ckpt_path", "weights_only", "overwrite")
# what the parser raises for a mistake in a config
PARSER_ERRORS = (ArgumentError, ValueError, TypeError)
EVALUATIONS = ("validate", "test", "predict")
PROTOCOL_WORDS = ("tta", "window", "overlap", "postprocess")


@functools.cache
def quieten_lightning() -> None:
    """Leave out what a user can do nothing about: advertisements, and Lightning's use of deprecated torch parts."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda line: "Tip:" not in str(line.msg))
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # on a node of a cluster, where a run need not be a job
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # it suspects a mistake when arguments are handed over while the process has its own
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # an evaluation has no use for the callbacks of the training
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")


class SegmentationCLI(LightningCLI):
    """`beyondpixel fit | validate | test | predict`.

    Without any argument `fit` trains DeepLabv3+ on generated scenes. `fit` writes a run folder
    (`trainer.default_root_dir`), resumes a run that it finds there unfinished, and keeps one that is finished.
    """

    def __init__(self, args: list[str] | dict[str, Any] | None = None, run: bool = True) -> None:
        quieten_lightning()
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            run=run,
            seed_everything_default=DEFAULT_SEED,
            save_config_callback=None,  # the run recorder writes it, where a resumed run finds it
            auto_configure_optimizers=False,
            # hyper-parameters in a checkpoint stay plain: it loads without this command line and its parser
            load_from_checkpoint_support=False,
            trainer_defaults={"max_steps": 300, "default_root_dir": DEFAULT_FOLDER, "log_every_n_steps": 10},
            parser_kwargs={"exit_on_error": run},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults, and links so that a data set's facts are said once."""
        parser.set_defaults(
            {
                "model": {"class_path": "beyondpixel.lightning_modules.DeepLabModule"},
                "data": {"class_path": "beyondpixel.datamodules.ShapesDataModule"},
            }
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="replace a finished run in trainer.default_root_dir"
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        for name in ("num_classes", "ignore_index", "class_names"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's, and for evaluations the words of the inference protocol."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in EVALUATIONS:
            add = parser.add_argument
            add("--tta", type=str | None, help="average over views: flip, scales=0.5,1,1.5, or 'scales=0.5,1 flip'")
            add("--window", type=int | None, help="side of sliding windows in pixels; whole images without it")
            add("--overlap", type=float | None, help="share of a window that the next one covers (default: a third)")
            add("--postprocess", type=str | None, help="crf:STEPS, a fully connected CRF on the probabilities")
        return parser

    def _protocol(self) -> Protocol:
        """What the words of an evaluation ask for."""
        return Protocol.parse(**{name: self._get(self.config, name) for name in PROTOCOL_WORDS})

    def _run_subcommand(self, subcommand: str) -> None:
        """Say in one sentence which checkpoint does not fit, where torch would list every layer."""
        checkpoint = self._get(self.config, "ckpt_path")
        if subcommand in EVALUATIONS and checkpoint not in (None, "last", "best", "hpc"):
            check_fits(checkpoint, self.model)
        super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        """Lightning would lay the checkpoint's hyper-parameters over the config; here the run's config.yaml rules."""

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self._get(self.config, "trainer")["default_root_dir"] or DEFAULT_FOLDER)

    def resolved_config(self) -> dict[str, Any]:
        """The whole config as plain types, enough to repeat the run."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        dumped: dict[str, Any] = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False))
        return {key: value for key, value in dumped.items() if key not in NOT_CONFIG}

    def before_instantiate_classes(self) -> None:
        """Refuse or resume before minutes are spent on building things."""
        if self.subcommand == "fit" and not self.config["fit"]["overwrite"]:
            resume = checkpoint_to_resume(self.folder, self.resolved_config())
            if self.config["fit"]["ckpt_path"] is None and resume is not None:
                self.config["fit"]["ckpt_path"] = str(resume)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what a constructor refuses is a mistake in the config."""
        checkpoint = self._get(self.config, "ckpt_path")
        # a checkpoint fills the whole network, so the file or network that its encoder's weights came from may be gone
        with without_pretrained_weights() if checkpoint else nullcontext():
            try:
                super().instantiate_classes()
            except (ValueError, OSError) as error:  # FileNotFoundError and ConnectionError are OSErrors
                raise UserError(str(own_error(error) or error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs to the run folder and to W&B, and keeps `last` and `best` checkpoints."""
        given = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = list(given["callbacks"] or [])
        loggers: Any = given["logger"]
        if self.subcommand in (None, "fit"):
            if self._get(self.config, "overwrite"):
                start_over(self.folder)  # only now, when model and data are built and can be trained
            config = self.resolved_config()
            record = identify(self.folder, config)
            if loggers in (None, True):
                run_folder_logger: Logger = RunFolderLogger(self.folder)
                loggers = [run_folder_logger, *filter(None, [wandb_logger(self.folder, config, record)])]
            callbacks += run_callbacks(self.folder, config["seed_everything"])
            callbacks.append(RunRecorder(self.folder, config, record))
        else:  # an evaluation prints its scores; the run folder keeps those of its own test
            kwargs["enable_checkpointing"] = False
            loggers = loggers if loggers not in (None, True) else False
            protocol = self._protocol()
            if not protocol.is_default:
                callbacks.append(EvaluationProtocol(protocol))
            if self.subcommand == "predict":
                callbacks.append(PredictionWriter(self.folder.path / "predictions"))
            else:
                callbacks += [EvaluationRecorder(self._validated_run()), InferenceTime()]
        plugins = list(given["plugins"] or [])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        return super().instantiate_trainer(logger=loggers, callbacks=callbacks, plugins=plugins, **kwargs)

    def _validated_run(self) -> RunFolder | None:
        """The run whose checkpoint is validated; nothing else may write what is known about a run."""
        checkpoint = self._get(self.config, "ckpt_path")
        own = checkpoint and self.folder.path.resolve() in Path(checkpoint).resolve().parents
        return self.folder if own and self.subcommand == "validate" else None

    def after_fit(self) -> None:
        """Say where everything is."""
        print(
            f"Run folder: {self.folder.path}\nTest it with: beyondpixel test --ckpt_path {self.folder.last_checkpoint}"
        )


def run_callbacks(folder: RunFolder, seed: int) -> list[Callback]:
    """Checkpoints `last` and `best`, learning rate, speeds, pictures, and what a test leaves in the run's folder."""
    return [
        LastCheckpoint(folder.last_checkpoint),  # first, so that the batch it stops before leaves no trace
        StepSeeds(seed),
        ModelCheckpoint(
            folder.last_checkpoint.parent,
            "best",
            monitor="val/mIoU",
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # only a validation can say what is best; without one there is no `best`
        ),
        LearningRateMonitor(logging_interval="step"),
        Throughput(),
        PredictionImages(),
        ClassTable(),
        ConfusionFigure(),
        InferenceTime(),
        EvaluationRecorder(folder),
    ]


def resolve_config(config: dict[str, Any], source: str | Path | Origin) -> dict[str, Any]:
    """A config with every default filled in, checked without building anything.

    Args:
        config: LightningCLI's keys.
        source: where the keys were given, or what to name in an error.

    Raises:
        SpecError: naming every unknown key, class or loss, and every value of the wrong type, and where it was given.

    Example:
        >>> config = resolve_config({"model": {"class_path": "DeepLabModule"}, "seed_everything": 3}, "an example")
        >>> config["data"]["class_path"], config["seed_everything"]
        ('beyondpixel.datamodules.ShapesDataModule', 3)
    """
    origin = source if isinstance(source, Origin) else Origin(Path(source))
    mistakes = mistakes_in_model(config.get("model"))
    try:
        resolved = _resolve(config)
    except PARSER_ERRORS as error:
        mistakes += mistakes_in_config(config, _resolve, PARSER_ERRORS)
        if not mistakes:  # no key is wrong by itself
            raise SpecError([f"{origin}: {error}"]) from error
    if mistakes:
        raise SpecError([f"{origin.place_of(keys)}: {'.'.join(keys)}: {text}" for keys, text in mistakes])
    return resolved


def _resolve(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("trainer", {}), dict):  # the parser takes anything
        raise TypeError(f"trainer: expected keys and values, got {config['trainer']!r}")
    return _ParseOnly(args=config, run=False).resolved_config()


def own_error(error: BaseException | None) -> BaseException | None:
    """What a class of ours said, out of the parser's report on everything that it tried."""
    while error is not None:
        frames = list(traceback.walk_tb(error.__traceback__))
        if frames and str(frames[-1][0].f_globals.get("__name__", "")).startswith("beyondpixel."):
            return error
        error = error.__cause__ or error.__context__
    return None


class _ParseOnly(SegmentationCLI):
    """Reads and checks a config."""

    def _set_seed(self) -> None:
        """Checking a config draws no random number."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""
