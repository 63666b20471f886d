"""Weights as people have them: any fsspec location, several ways of wrapping, and never code.

safetensors files hold data alone. `.pth` files are read with `weights_only=True`; the one class allowed beside tensors
and containers is `argparse.Namespace`, which timm's CheckpointSaver stores.
"""

import argparse
import io
import pickle
import re
import struct
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import CheckpointError, DatasetError
from pipeline.storage import read_bytes

# Where savers put the weights: timm's CheckpointSaver, DeiT's and DINO's training code, Lightning, plain dicts.
_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict")
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")
# What `torch.load` stumbles over in a file that is cut off or mangled.
_CORRUPT = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError)
_CORRUPT_ERRORS = (*_CORRUPT, EOFError, OSError, struct.error)


def read_state_dict(uri: str, model_keys: Collection[str], *, use_ema: bool = True) -> dict[str, Tensor]:
    """Read a checkpoint and name its tensors as the model does.

    Args:
        uri: `.safetensors`, or anything `torch.load` reads (`.pth`, `.pt`, `.pth.tar`, `.bin`, `.ckpt`).
        model_keys: names in the model's own state dict; what DistributedDataParallel (`module.`), `torch.compile`
            (`_orig_mod.`), Lightning (`model.`) or an averaged copy put before them is taken off.
        use_ema: prefer averaged weights where the checkpoint has both (as timm does).

    Raises:
        CheckpointError: missing, corrupt, holding anything but data, or holding two sets of weights.
    """
    checkpoint = _read_safetensors(uri) if uri.endswith(".safetensors") else _read_pickle(uri)
    weights = {name.replace("_orig_mod.", ""): value for name, value in _find_weights(uri, checkpoint, use_ema).items()}
    prefix = _wrapper_prefix(uri, weights, model_keys, use_ema)
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def _content(uri: str) -> bytes:
    try:
        return read_bytes(uri)
    except DatasetError as error:
        raise CheckpointError(f"checkpoint: {error}") from error


def _read_safetensors(uri: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(_content(uri))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"checkpoint {uri!r} is not a readable safetensors file: {error}") from error


def _read_pickle(uri: str) -> Any:
    content = io.BytesIO(_content(uri))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Of pickle protocols, that there is a read-only storage, and other things that a user can do nothing about.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {uri!r} {refusal_of(error)}, and was not opened") from error
    except _CORRUPT_ERRORS as error:
        raise CheckpointError(f"checkpoint {uri!r} is corrupt: {_reason(error)}") from error


def refusal_of(error: pickle.UnpicklingError) -> str:
    """Why `torch.load` with `weights_only` did not read a file; its own text is advice to run what is in there."""
    unknown = re.search(r"GLOBAL (\S+)", str(error))
    return f"holds more than weights ({unknown[1]})" if unknown else "holds more than weights, or is not a checkpoint"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]


def _find_weights(uri: str, checkpoint: Any, use_ema: bool) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what was saved."""
    found = checkpoint
    while isinstance(found, Mapping):
        wrapped = next((k for k in (*(_EMA_KEYS if use_ema else ()), *_WEIGHT_KEYS) if _is_mapping(found.get(k))), None)
        if wrapped is None:
            break
        found = found[wrapped]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"checkpoint {uri!r} holds no state dict: found {_describe(checkpoint)}")
    return tensors


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with the keys {sorted(map(str, value))[:8]}"
    return f"a {type(value).__name__}"


def _wrapper_prefix(uri: str, weights: Mapping[str, Tensor], model_keys: Collection[str], use_ema: bool) -> str:
    """What stands before the model's own names: the prefix under which most of them are found."""
    suffixes = sorted(model_keys)[:1]
    prefixes = {name[: -len(s)] for s in suffixes for name in weights if name.endswith(s)}
    found = {p: sum(p + key in weights for key in model_keys) for p in prefixes if p == "" or p.endswith(".")}
    complete = sorted(p for p, count in found.items() if 2 * count > len(model_keys))
    if len(complete) > 1:
        averaged = [p for p in complete if "ema" in p.lower()]
        complete = averaged if use_ema and averaged else [p for p in complete if p not in averaged]
    if len(complete) > 1:
        raise CheckpointError(f"checkpoint {uri!r} holds several copies of the model, under {complete}")
    # Nothing found: another layout (original DINOv2, say), which timm's own filter for the family may know.
    return complete[0] if complete else ""
