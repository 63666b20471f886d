"""Check a model's weights, and compute their digest."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, first_few

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Ends of names of weights in foreign layouts (`attn.qkv.weight`, `embedding/kernel`, `cls_token`), as opposed to
# integer buffers (`position_ids`, `relative_position_index`).
_WEIGHT_NAME = re.compile(r"(weight|bias|kernel|scale|gamma|beta|embed|embedding|embeddings|token|tokens|proj)$")
# Resampled positions and new heads may need more than was trained, and small models need no check.
_LEAST_LARGE, _MOST_LARGER = 10**7, 4


def check_floating(uri: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that weights are floating-point numbers: integers lack their scale.

    PyTorch would copy quantized 8-bit integers into the model as values up to 127.

    Args:
        uri: location of the checkpoint, for messages.
        weights: tensors as they were read from the file.
        model: the model to load them into. Where it has an integer buffer, the file may have integers too.

    Raises:
        CheckpointError: a tensor is of another type; the message gives the name and type of the first one.
    """
    made = model.state_dict()
    for name, value in weights.items():
        own = made.get(name)
        is_weight = own.is_floating_point() if own is not None else _WEIGHT_NAME.search(name) is not None
        if is_weight and (found := _unusual_type(value)) is not None:
            raise CheckpointError(f"checkpoint {uri!r}: {name!r} is {found}")


def _unusual_type(value: Tensor) -> str | None:
    """Say what a tensor is if it is not dense floating point, and what to do about it."""
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_quantized or type(value) not in (Tensor, nn.Parameter):
        kind = dtype if value.is_quantized else type(value).__name__
        return f"quantized ({kind}): dequantize it first"
    if value.is_meta:
        return "without values (on torch's meta device): save the weights themselves"
    if value.layout != torch.strided:
        return f"sparse ({str(value.layout).removeprefix('torch.')}): make it dense first, with to_dense()"
    if value.dtype in _FLOATING:
        return None
    if value.is_complex() or value.dtype == torch.bool:
        return f"{dtype}, not floating numbers: save it as float32 first"
    return f"{dtype}, as quantized weights are: dequantize it first"


def check_heads(uri: str, weights: dict[str, Tensor], model: nn.Module) -> None:
    """Check that the classifiers have as many classes as the model.

    Raises:
        CheckpointError: a classifier has another number of classes; the message says which number to set.
    """
    for head in named_layers(model, "classifier"):
        weight = weights.get(f"{head}.weight")
        if weight is not None and weight.shape[0] != model.num_classes:
            raise CheckpointError(
                f"checkpoint {uri!r} has {weight.shape[0]} classes, the model has {model.num_classes}: "
                f"set num_classes to {weight.shape[0]}"
            )


def head_classes(weights: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Return how many classes the classifier in a file has.

    None if the file has no classifier, or one with a background class in front, which the model does not have.
    """
    if model.pretrained_cfg.get("label_offset"):  # type: ignore[union-attr]
        return None
    found = [weights.get(f"{head}.weight") for head in named_layers(model, "classifier")]
    return next((weight.shape[0] for weight in found if weight is not None and weight.ndim), None)


def check_representation(what: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse weights with a layer between features and classifier that the model lacks: timm drops it silently.

    Google's first ViTs for ImageNet-21k have one, and the classifier that was trained on what it returns.

    Raises:
        CheckpointError: the weights have such a layer; the message names its tensor.
    """
    made = model.state_dict()
    dropped = [name for name in weights if re.search(r"(^|[./])pre_logits[./]", name) and name not in made]
    if dropped:
        raise CheckpointError(
            f"{what} was trained with a layer before the classifier, {dropped[0]!r}, which timm's model does not have, "
            "so that its logits would be wrong: give weights without it, such as those fine-tuned to fewer classes"
        )


def named_layers(model: nn.Module, entry: str) -> list[str]:
    """Return the names that a model's config gives under an entry: one, several or none.

    The config may come from somebody else's file, so entries that are no texts are left out.
    """
    stated: Any = model.pretrained_cfg.get(entry)  # type: ignore[union-attr]
    names = stated if isinstance(stated, list | tuple) else [stated]
    return [name for name in names if isinstance(name, str)]


def check_amount(uri: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that a model is not many times as large as its weights, before it takes memory.

    Raises:
        CheckpointError: the model is far larger than its weights; a `config.json` may state any size.
    """
    wanted = sum(value.numel() for value in model.state_dict().values())
    given = sum(value.numel() for value in weights.values())
    if wanted > _LEAST_LARGE + _MOST_LARGER * given:
        raise CheckpointError(f"checkpoint {uri!r} has {given} numbers, the model would take {wanted}")


def check_first_layer(what: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check the first layer: timm would resample trained weights to other patches and channels, and change the model.

    Args:
        what: how the message names the source of the weights.
        weights: tensors as they were trained.
        model: the model that the config asks for.

    Raises:
        CheckpointError: the shapes of the first layer differ.
    """
    made = model.state_dict()
    for layer in named_layers(model, "first_conv"):
        trained, asked = weights.get(f"{layer}.weight"), made.get(f"{layer}.weight")
        # A flat weight or another name means another layout, which timm's filter for the family may convert.
        if trained is None or asked is None or trained.ndim != 4 or asked.ndim != 4:
            continue
        if trained.shape[1:] != asked.shape[1:]:
            raise CheckpointError(f"{what} was trained on {_first_text(trained)}, the model reads {_first_text(asked)}")


def _first_text(weight: Tensor) -> str:
    """Describe the patches that a first layer's weight [D, C, height, width] reads."""
    _, channels, height, width = weight.shape
    return f"{height}x{width} pixels of {channels} channel{'s' if channels > 1 else ''}"


def describe_misfit(error: BaseException) -> str | None:
    """Summarize an error of `load_state_dict`: how many names and shapes differ, and the first few.

    None if the error is about something else.
    """
    text, found = str(error), []
    for kind in ("Missing", "Unexpected"):
        names = re.findall(r'"([^"]+)"', "".join(re.findall(rf"{kind} key\(s\) in state_dict: (.*)", text)))
        if names:
            found.append(describe_tensors(kind.lower(), names))
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\) from .*?Size\((.*?)\)", text)
    if shapes:
        mismatched = [f"{name} is {given}, not {wanted}" for name, given, wanted in shapes]
        found.append(f"{len(shapes)} tensors of other shapes ({first_few(mismatched)})")
    return ", ".join(found) or None


def describe_tensors(kind: str, names: Sequence[str]) -> str:
    """Say how many tensors are missing or unexpected, and which are the first."""
    return f"{len(names)} {kind} tensors ({first_few(names)})"


def check_finite_weights(where: str, model: nn.Module) -> None:
    """Check that weights are finite; a NaN would otherwise show up shard after shard.

    Raises:
        CheckpointError: a weight is NaN or infinite; the message names its tensor.
    """
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"weights of {where!r} are not finite: {name!r} has NaN or infinity")


def weight_digest(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of a model's weights: names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
