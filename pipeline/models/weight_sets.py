"""Choose among several sets of weights in a checkpoint."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.models.pickles import NumpyArray

# Keys under which weights are saved by timm's CheckpointSaver, DeiT's and DINO's training code, Lightning, and others.
_USUAL_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa)|(ema|swa)(?![a-z])|averaged")
# Keys of an optimizer's state, whose averages are named like the weights.
_OPTIMIZER = re.compile(r"optim|sched|exp_avg|momentum|grad")
_MAX_LEVELS, _MAX_LIST_LENGTH = 4, 16


def find_weights(uri: str, checkpoint: Any, model_keys: Collection[str], *, use_ema: bool) -> dict[str, Tensor]:
    """Return the mapping of names to tensors in a checkpoint.

    Args:
        uri: location of the checkpoint, for messages.
        checkpoint: its content; weights may be nested in mappings and lists.
        model_keys: names in the model's own state dict.
        use_ema: whether to prefer averaged weights if there are both.

    Raises:
        CheckpointError: there are no weights, or several sets and it is not clear which to take; the message names
            their keys.
    """
    found = dict(_mappings(checkpoint))
    holding = {key: tensors for key, tensors in found.items() if _holds_model(tensors, model_keys)}
    # Weights of another layout, such as the original DINOv2's, are recognized by about as many tensors as the model
    # has.
    holding = holding or {key: tensors for key, tensors in found.items() if 2 * len(tensors) > len(model_keys)}
    if holding:
        return holding[choose_set(uri, holding, use_ema)]
    tensors = _tensors(_under_usual_keys(checkpoint))
    if not tensors:
        raise CheckpointError(f"checkpoint {uri!r} holds no state dict: found {_describe(checkpoint)}")
    return tensors


def choose_set(uri: str, names: Collection[str], use_ema: bool) -> str:
    """Return the name of the averaged set of weights or of the other one, whichever `use_ema` prefers.

    Raises:
        CheckpointError: there are several sets of the preferred kind.
    """
    averaged = [name for name in names if _AVERAGED.search(name.lower())]
    plain = [name for name in names if name not in averaged]
    chosen = (averaged or plain) if use_ema else (plain or averaged)
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(repr(name) if name else "its top" for name in sorted(chosen))
    raise CheckpointError(
        f"checkpoint {uri!r} holds several sets of weights, under {names}: save one of them alone (use_ema chooses "
        "only between averaged ones, with ema or swa in the key, and others)"
    )


def _mappings(value: Any, key: str = "", levels: int = _MAX_LEVELS) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (dotted keys, tensors) of every nested mapping that holds tensors, except those of optimizers."""
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
        if tensors := _tensors(value):
            yield key, tensors
    elif isinstance(value, list | tuple) and len(value) <= _MAX_LIST_LENGTH:
        inner = dict(enumerate(value))
    for name, below in inner.items() if levels else ():
        if _OPTIMIZER.search(str(name).lower()) is None:
            yield from _mappings(below, f"{key}.{name}" if key else str(name), levels - 1)


def _holds_model(tensors: Mapping[str, Tensor], model_keys: Collection[str]) -> bool:
    return any(name == key or name.endswith(f".{key}") for key in sorted(model_keys)[:1] for name in tensors)


def _under_usual_keys(found: Any) -> Any:
    while isinstance(found, Mapping):
        wrapped = next((key for key in _USUAL_KEYS if isinstance(found.get(key), Mapping)), None)
        if wrapped is None:
            break
        found = found[wrapped]
    return found


def _tensors(found: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping by name, without the prefixes of `torch.compile`.

    NumPy arrays of numbers count as tensors.
    """
    if not isinstance(found, Mapping):
        return {}
    plain = {name.replace("_orig_mod.", ""): _as_tensor(v) for name, v in found.items() if isinstance(name, str)}
    return {name: value for name, value in plain.items() if value is not None}


def _as_tensor(value: Any) -> Tensor | None:
    if not isinstance(value, NumpyArray) or value.value is None:
        return value if isinstance(value, Tensor) else None
    try:
        return torch.from_numpy(value.value)
    except TypeError:  # a type that PyTorch does not have, such as float128
        return None


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with the keys {sorted(map(str, value))[:8]}"
    return f"a {type(value).__name__}"
