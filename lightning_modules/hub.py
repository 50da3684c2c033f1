"""Trained modules as two files, in a local folder or on the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from beyondpixel.lightning_modules.networks.pretrained import without_pretrained_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"  # the name that the hub's own tools look for
# what only training needs is not in the file, so that it loads whatever loss it is loaded with
TRAINING_ONLY = ("loss.", "metrics.")


class HubMixin(nn.Module if TYPE_CHECKING else object):  # type: ignore[misc]
    """`save_pretrained`, `from_pretrained` and `push_to_hub`, as libraries around the hub have them.

    For a :class:`~beyondpixel.lightning_modules.SegmentationModule`, whose plain hyper-parameters go into
    ``config.json`` and whose weights, without those of the loss, go into ``model.safetensors``. Local folders need no
    network and no account.

    Example:
        >>> import tempfile
        >>> from beyondpixel.lightning_modules import DeepLabModule
        >>> folder = tempfile.mkdtemp()
        >>> DeepLabModule(num_classes=4, encoder="resnet18").save_pretrained(folder)
        >>> DeepLabModule.from_pretrained(folder).num_classes
        4
    """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, which is made if need be."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: weight.detach().cpu().contiguous()
            for name, weight in self.state_dict().items()
            if not name.startswith(TRAINING_ONLY)
        }
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = {"class": type(self).__name__, "hyper_parameters": dict(self.hparams)}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """Load a module that was saved, in evaluation mode, on the CPU.

        Args:
            source: a local folder, or a repository of the hub (``user/name``).
            revision: branch, tag or commit of the repository.
            token, cache_dir, local_files_only: as for ``huggingface_hub.hf_hub_download``.
            changes: hyper-parameters that are to differ, such as ``loss="ce"`` or ``lr=0.001``; a ``loss`` that was a
                module was not saved, and is "ce" unless given here.

        Raises:
            FileNotFoundError: if a local folder lacks a file.
            ConnectionError: if the repository cannot be reached and is not in the local cache.
            ValueError: if what was saved is of another class, or the weights do not fit.

        Example:
            >>> DeepLabModule.from_pretrained("user/deeplab-rmi", loss="ce", lr=0.001)  # doctest: +SKIP
        """
        from safetensors.torch import load_file

        options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        config_file, weights_file = (_find(source, name, **options) for name in (CONFIG_FILE, WEIGHTS_FILE))
        config = json.loads(config_file.read_text())
        if not isinstance(config, dict) or "hyper_parameters" not in config:
            raise ValueError(f"{source}: {CONFIG_FILE} was not written by save_pretrained: it lacks hyper_parameters")
        if config.get("class") != cls.__name__:
            raise ValueError(
                f"{source} holds a {config.get('class')}: load it with that class, not with {cls.__name__}"
            )
        hyper_parameters = config["hyper_parameters"]
        if hyper_parameters.get("loss", "ce") is None:
            hyper_parameters["loss"] = "ce"
        with without_pretrained_weights():
            module = cls(**{**hyper_parameters, **changes})
        try:
            found = module.load_state_dict(load_file(weights_file), strict=False)
        except RuntimeError as error:
            raise ValueError(
                f"{source}: {WEIGHTS_FILE} does not fit its {CONFIG_FILE} and {changes}: {error}"
            ) from error
        missing = [name for name in found.missing_keys if not name.startswith(TRAINING_ONLY)]
        if missing or found.unexpected_keys:
            raise ValueError(
                f"{source}: {WEIGHTS_FILE} lacks {missing[:5]} and has {found.unexpected_keys[:5]} too many; it was "
                f"saved by another version of {cls.__name__}"
            )
        module.eval()
        return module

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
    ) -> str:
        """Save to a repository of the hub, which is made if need be.

        Args:
            repo_id: ``user/name``.
            private: whether a new repository is private; the account's default if None.
            token: of the account; the one that ``hf auth login`` stored if None.
            revision: the branch; the main one if None.
            commit_message: of the upload.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(
                api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)
            )


def _find(source: str | Path, name: str, **options: Any) -> Path:
    if Path(source).is_dir():
        file = Path(source) / name
        if not file.is_file():
            raise FileNotFoundError(f"{source} has no {name}; expected a folder that save_pretrained wrote")
        return file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(str(source), name, **options))
    except HFValidationError as error:
        raise FileNotFoundError(f"there is no folder {source}, and it is no name of a repository, user/name") from error
    except OSError as error:  # every error of the hub's, offline and not found alike, is one
        raise ConnectionError(
            f"{source}: no such local folder, and the hub does not give {name} ({str(error).splitlines()[0]}). Check "
            "the name, the network and the token, or give the folder that save_pretrained wrote"
        ) from error
