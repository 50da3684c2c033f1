"""Saving and loading of trained modules, in a folder or on the Hugging Face Hub: weights, config and model card."""

from __future__ import annotations

import json
import time
from operator import methodcaller
from pathlib import Path
from typing import Any, Self

import yaml
from huggingface_hub import PyTorchModelHubMixin, constants
from pytorch_lightning import LightningModule

from beyondpixel.lightning_modules.networks.pretrained import hub_is_reachable, without_pretrained_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# excluded from the weights, so that these load with any loss
TRAINING_ONLY = ("loss.", "metrics.")
DATA_ATTRIBUTES = ("dataset_name", "class_names", "palette", "mean", "std", "ignore_index", "image_size")
# Jinja template, filled in by huggingface_hub
MODEL_CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
INPUT = "float32 (N, 3, H, W), RGB in 0..1, normalized as (x - mean) / std; any height and width"


class HubModule(
    PyTorchModelHubMixin,
    LightningModule,
    library_name="beyondpixel",
    pipeline_tag="image-segmentation",
    license="mit",
    model_card_template=MODEL_CARD,
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a LightningModule.

    In addition to `huggingface_hub`'s mixin: `config.json` contains the hyper-parameters and a description of the data;
    weights of the loss are excluded; the model card is filled in from a run folder; `from_pretrained` checks that
    weights and config match, and offline it fails within seconds with a one-sentence error.

    Attributes:
        data_description: dataset name, class names, palette, mean, std, void label and image size where known, and
            `input`, a sentence that describes the network's input.

    Example:
        >>> import tempfile
        >>> from beyondpixel.lightning_modules import DeepLabModule
        >>> folder = tempfile.mkdtemp()
        >>> DeepLabModule(num_classes=4, encoder="resnet18").save_pretrained(folder)
        >>> DeepLabModule.from_pretrained(folder).num_classes
        4
    """

    data_description: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def describe_data(self, datamodule: Any) -> None:
        """Set `data_description` from a data module.

        Args:
            datamodule: an object with any of the attributes `dataset_name`, `class_names`, `palette`, `mean`, `std`,
                `ignore_index` and `image_size`.
        """
        known = {name: getattr(datamodule, name, None) for name in DATA_ATTRIBUTES}
        # through JSON, so that it is the same before saving and after loading; tensors and arrays become lists
        self.data_description = json.loads(json.dumps({**known, "input": INPUT}, default=methodcaller("tolist")))

    def save_pretrained(
        self, save_directory: str | Path, *, run: str | Path | None = None, datamodule: Any = None, **options: Any
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and a model card, `README.md`.

        Args:
            save_directory: the folder; created if it is missing.
            run: a run folder; its recipe, seed, commit and scores go into the model card.
            datamodule: the data module of the training, see `describe_data`; the trainer's if None.
            options: those of `huggingface_hub.PyTorchModelHubMixin.save_pretrained`.
        """
        datamodule = datamodule or getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            self.describe_data(datamodule)
        card = {"run": run, **(options.pop("model_card_kwargs", None) or {})}
        Path(save_directory, "README.md").unlink(missing_ok=True)  # otherwise the mixin keeps an earlier model's card
        path: str | None = super().save_pretrained(save_directory, model_card_kwargs=card, **options)
        return path

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        weights = {
            # without the prefix that torch.compile adds
            name.replace("_orig_mod.", ""): weight.detach().cpu().contiguous()
            for name, weight in self.state_dict().items()
            if not name.startswith(TRAINING_ONLY)
        }
        save_file(weights, save_directory / WEIGHTS_FILE, metadata={"format": "pt"})
        config = {
            "class": type(self).__name__,
            "hyper_parameters": dict(self.hparams),
            "data": self.data_description,
        }
        (save_directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def generate_model_card(self, *args: Any, run: str | Path | None = None, **kwargs: Any) -> Any:
        """Generate the model card; see `save_pretrained`."""
        data, classes = self.data_description, int(self.hparams["num_classes"])
        names = data.get("class_names") or self.hparams.get("class_names") or list(map(str, range(classes)))
        colors = [f"#{bytes(color).hex()}" for color in data.get("palette") or []] or [""] * classes
        values = {
            "class_name": type(self).__name__,
            "num_classes": classes,
            "dataset": data.get("dataset_name"),
            "classes": list(zip(names, colors, strict=True)),
            **{name: data.get(name) for name in ("input", "mean", "std")},
            **({} if run is None else _run_values(Path(run))),
        }
        return super().generate_model_card(*args, **{**values, **kwargs})

    def push_to_hub(
        self, repo_id: str, *, run: str | Path | None = None, datamodule: Any = None, **options: Any
    ) -> str:
        """Push to a repository on the Hub, created if it is missing.

        Args:
            repo_id: `user/name`.
            run, datamodule: as for `save_pretrained`.
            options: those of `huggingface_hub.PyTorchModelHubMixin.push_to_hub`, such as `private`, `token`,
                `branch` and `commit_message`.

        Returns:
            The URL of the commit.

        Raises:
            ConnectionError: if the hub does not answer.
        """
        if not _hub_answers():
            raise ConnectionError(
                f"{repo_id}: the hub ({constants.ENDPOINT}) does not answer: check the network, HF_ENDPOINT and "
                "HF_HUB_OFFLINE, or write a local folder with save_pretrained"
            )
        if datamodule is not None:
            self.describe_data(datamodule)
        card = {"run": run, **(options.pop("model_card_kwargs", None) or {})}
        commit = super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        return str(commit)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """Load a saved module, in evaluation mode, on the CPU.

        `Trainer.fit` switches a `SegmentationModule` to training mode; in a loop of your own, call `train()`.

        Args:
            source: a local folder, or a repository of the hub (`user/name`).
            revision: branch, tag or commit of the repository.
            token, cache_dir, local_files_only: as for `huggingface_hub.hf_hub_download`.
            changes: hyper-parameters to override, such as `loss="ce"` or `lr=0.001`; a loss module is not saved and is
                replaced with "ce" unless given here.

        Raises:
            FileNotFoundError: if a local folder lacks a file.
            ConnectionError: if the repository cannot be reached and is not in the local cache.
            ValueError: if a module of another class was saved, or the weights do not match.

        Example:
            >>> DeepLabModule.from_pretrained("user/deeplab-rmi", loss="ce", lr=0.001)  # doctest: +SKIP
        """
        if Path(source).is_dir():
            folder = Path(source)
        else:
            folder = _download(str(source), local_files_only, revision=revision, token=token, cache_dir=cache_dir)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{source} has no {name}; expected a folder that save_pretrained wrote")
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "hyper_parameters" not in config:
            raise ValueError(f"{source}: {CONFIG_FILE} was not written by save_pretrained: it lacks hyper_parameters")
        if config.get("class") != cls.__name__:
            raise ValueError(
                f"{source} holds a {config.get('class')}: load it with that class, not with {cls.__name__}"
            )
        arguments = {**config["hyper_parameters"], **changes}
        with without_pretrained_weights():
            module = cls(**{**arguments, "loss": arguments.get("loss") or "ce"})
        module._load_weights(folder, changes)
        module.data_description = config.get("data", {})
        module.eval()
        return module

    def _load_weights(self, folder: Path, changes: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        try:
            found = self.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=False)
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: {WEIGHTS_FILE} does not fit its {CONFIG_FILE} and {changes}: {error}"
            ) from error
        missing = [name for name in found.missing_keys if not name.startswith(TRAINING_ONLY)]
        if missing or found.unexpected_keys:
            raise ValueError(
                f"{folder}: {WEIGHTS_FILE} has missing keys {missing[:5]} and unexpected keys "
                f"{found.unexpected_keys[:5]}; it was saved by another version of {type(self).__name__}"
            )


def _hub_answers() -> bool:
    return not constants.HF_HUB_OFFLINE and hub_is_reachable(int(time.monotonic() // 60))


def _download(source: str, local_files_only: bool, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    offline = local_files_only or not _hub_answers()
    try:
        files = [
            hf_hub_download(source, name, local_files_only=offline, **options) for name in (CONFIG_FILE, WEIGHTS_FILE)
        ]
    except HFValidationError as error:
        raise FileNotFoundError(f"there is no folder {source}, and it is not a repository name (user/name)") from error
    except OSError as error:  # base class of all errors of the hub, whether offline or not found
        reason = "offline mode, or the hub does not answer" if offline else str(error).splitlines()[0]
        raise ConnectionError(
            f"{source}: no such local folder, not in the local cache, and not on the hub ({reason}). Check the name, "
            "the network, HF_HUB_OFFLINE and the token, or give the folder that save_pretrained wrote"
        ) from error
    return Path(files[0]).parent


def _run_values(run: Path) -> dict[str, Any]:
    for name in ("config.yaml", "run.json", "summary.json"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"run={run} has no {name}; expected the folder of a tested run")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    recipe = {key: config[key] for key in ("data", "model", "seed_everything") if key in config}
    length = {key: config.get("trainer", {}).get(key) for key in ("max_steps", "max_epochs", "precision", "devices")}
    scores = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith("test/")}
    return {
        "seed": record.get("seed"),
        "commit": record.get("git_commit"),
        "recipe": yaml.safe_dump({**recipe, "trainer": length}, sort_keys=False),
        "scores": [(name, "none" if value is None else f"{value:.4g}") for name, value in scores.items()],
    }
