"""Pretrained weights for encoders, from a local file or a hub."""

import functools
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import huggingface_hub.constants
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# the layers after the last feature map, as torchvision and timm name them
_CLASSIFIER_PREFIXES = ("fc.", "classifier.", "head.", "head_", "last_linear.", "conv_head.", "bn2.", "norm.")
_SHOWN_KEYS = 5
_PROBE_SECONDS = 3

# reasons of failed downloads, by the names of encoder and weights, and the minute
_failures: dict[tuple[str, str, int], str] = {}
_skipped: ContextVar[bool] = ContextVar("pretrained_weights_skipped", default=False)


@contextmanager
def without_pretrained_weights() -> Iterator[None]:
    """Build networks with random weights, whatever their `encoder_weights`: a checkpoint is loaded into them.

    Example:
        >>> from beyondpixel.lightning_modules.networks import build_encoder
        >>> with without_pretrained_weights():
        ...     encoder, _ = build_encoder("resnet18", output_stride=16, weights="a_file_that_is_gone.pth")
    """
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def read_pretrained(name: str, weights: str) -> Mapping[str, Tensor] | None:
    """Read pretrained weights from a file or the hub; return None within `without_pretrained_weights`.

    Args:
        name: SMP's name of the encoder (timm's with the prefix `tu-`).
        weights: path of a local file, a state dict as torchvision or timm publish it (`.pth`, read with
            `weights_only=True`, or `.safetensors`); or the name of weights on the hub: `"imagenet"`, another name
            that SMP has for this encoder, or a timm tag.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a state dict, or the hub has no such weights.
        ConnectionError: if the hub's weights are not in the local cache and cannot be downloaded.

    Example:
        >>> read_pretrained("resnet18", "imagenett")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: unknown encoder_weights='imagenett' for encoder 'resnet18': offered are imagenet, ssl, swsl, ...
    """
    if _skipped.get():
        return None
    path = Path(weights).expanduser()
    if path.suffix in _FILE_SUFFIXES or path.exists():
        return _read_file(path)
    return _fetch(_name_on_hub(name, weights), weights)


def fill_encoder(encoder: nn.Module, published: Mapping[str, Tensor], *, name: str, weights: str) -> None:
    """Load a state dict with torchvision's, timm's or SMP's names; layers of the classifier are optional and ignored.

    Raises:
        ValueError: if the weights do not match; the message has `name`, `weights` and the keys.
    """
    current = encoder.state_dict()
    targets = {_canonical(key): key for key in current}
    renamed = {targets.get(_canonical(key), key): value for key, value in published.items()}
    kinds = {
        # some publishers omit BatchNorm's counter, which only matters for momentum=None
        "missing": [key for key in current if key not in renamed and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in renamed if key not in current and not key.startswith(_CLASSIFIER_PREFIXES)],
        "of another shape": _reshaped(renamed, current),
    }
    problems = "; ".join(_listed(kind, keys) for kind, keys in kinds.items() if keys)
    if problems:
        raise ValueError(
            f"encoder_weights={weights!r} does not fit the encoder {name.removeprefix('tu-')!r}: keys {problems}. "
            "Was the file made for another architecture?"
        )
    encoder.load_state_dict({**current, **renamed}, strict=False)


def _reshaped(state: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} {tuple(value.shape)} instead of {tuple(current[key].shape)}"
        for key, value in state.items()
        if key in current and value.shape != current[key].shape
    ]


def _listed(kind: str, keys: Sequence[str]) -> str:
    return f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN_KEYS])}{' ...' if len(keys) > _SHOWN_KEYS else ''}"


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"encoder_weights={str(path)!r}: there is no such file (looked from {Path.cwd()}); give the path of a "
            "state dict, the name 'imagenet' to fetch weights, or null to train from scratch"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(path, device="cpu")
        return tensors
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"encoder_weights={str(path)!r} is not a plain state dict (names to tensors); "
            "a training checkpoint is loaded with load_from_checkpoint or --ckpt_path instead"
        )
    return state


def _canonical(key: str) -> str:
    """Normalize a key: timm's feature extractors add `model.` and turn `stages.0` into `stages_0`."""
    return key.removeprefix("model.").replace("_", ".")


def _name_on_hub(name: str, weights: str) -> str:
    """Return SMP's name of the encoder with these weights: timm's contains their tag."""
    architecture, _, own_tag = name.partition(".")
    if name.startswith("tu-"):
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture.removeprefix('tu-')}.*")]
        choices = ["imagenet", *tags] if tags else []
    else:
        choices = sorted(smp.encoders.encoders[name]["pretrained_settings"])
    if weights not in choices:
        offered = f"offered are {', '.join(choices)}" if choices else "none are offered"
        raise ValueError(
            f"unknown encoder_weights={weights!r} for encoder {name.removeprefix('tu-')!r}: {offered}, "
            "a path of a local file, and null to train from scratch"
        )
    tag = own_tag if weights == "imagenet" else weights
    return f"{architecture}.{tag}" if name.startswith("tu-") and tag else name


def _fetch(donor_name: str, weights: str) -> Mapping[str, Tensor]:
    """Return SMP's state dict of an encoder with these weights, from hub or cache; a failure is cached for a minute."""
    minute = int(time.monotonic() // 60)
    reason = _failures.get((donor_name, weights, minute))
    if reason is None:
        try:
            with _offline_unless_reachable(minute):
                donor = smp.encoders.get_encoder(
                    donor_name, weights=True if donor_name.startswith("tu-") else weights, output_stride=32
                )
            return donor.state_dict()  # type: ignore[no-any-return]
        except Exception as error:  # the exception of a failed download depends on library, version and network
            reason = _failures[donor_name, weights, minute] = type(error).__name__
    raise ConnectionError(
        f"encoder_weights={weights!r} of {donor_name.removeprefix('tu-')!r} could not be fetched ({reason}) and are "
        "not in the hub's cache. Without a network, give a local file with --model.encoder_weights FILE; or copy the "
        "cache of a machine that has them, set HF_HOME to it, and HF_HUB_OFFLINE=1 to skip asking the hub; or train "
        "from scratch with --model.encoder_weights null"
    )


@contextmanager
def _offline_unless_reachable(minute: int) -> Iterator[None]:
    """Restrict the hub's client to its cache if the hub is unreachable; by default it retries five times and waits."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = before or not hub_is_reachable(minute)
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


@functools.lru_cache(maxsize=1)
def hub_is_reachable(minute: int) -> bool:
    """Return whether the hub answers within three seconds; checked once per minute."""
    answered = threading.Event()

    def request() -> None:
        try:
            urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:  # an error status is an answer
            answered.set()
        except OSError:
            return
        answered.set()

    # in a thread, as DNS look-ups have no timeout
    probe = threading.Thread(target=request, daemon=True)
    probe.start()
    probe.join(_PROBE_SECONDS)
    return answered.is_set()
