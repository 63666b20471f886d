"""Read weights from checkpoints of many kinds, at any fsspec location, without running code.

safetensors and npz files hold only data; files of `torch.save` are read as data, see `pipeline.models.pickles`. The
kind of a file is found from its content, not its name.
"""

import io
import re
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.documents import parse_json
from pipeline.errors import CheckpointError, DatasetError, first_few, one_line
from pipeline.file_kinds import describe_foreign
from pipeline.models.adapters import CONFIG, MERGE, adapter_tensor
from pipeline.models.containers import expanded_size, readable_kind
from pipeline.models.folders import describe_weights_folder
from pipeline.models.layouts import TORCHVISION, source_names
from pipeline.models.pickles import read_pickle
from pipeline.models.weight_sets import choose_set, find_weights
from pipeline.storage import join, list_files, list_folders, read_bytes

__all__ = ["find_weights_file", "read_checkpoint", "read_state_dict"]

# timm's own order of preference, and the indexes of sharded weights, which timm does not read.
_PREFERRED_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("pytorch_model.pth", "model.pth", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
)
_PREFERRED_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(\.\w+)$")


def read_state_dict(uri: str, model_keys: Collection[str], *, use_ema: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint alone; see `read_checkpoint`."""
    return read_checkpoint(uri, model_keys, use_ema=use_ema)[0]


def read_checkpoint(
    uri: str, model_keys: Collection[str], *, use_ema: bool = True
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read a checkpoint and name its tensors as the model does.

    Args:
        uri: location of a safetensors file, of a file that `torch.save` wrote, of an npz file, or of the `.index.json`
            of a sharded checkpoint.
        model_keys: names in the model's own state dict. Prefixes of DistributedDataParallel (`module.`),
            `torch.compile` (`_orig_mod.`), Lightning (`model.`) or averaged copies are removed from the names in the
            file.
        use_ema: whether to prefer averaged weights if the checkpoint has both, as timm does.

    Returns:
        The tensors, and a notice if layers that stand beside the model in its wrapper are left out, such as a
        classifier after the model's own.

    Raises:
        CheckpointError: the file is missing, corrupt or of a kind that is not read, holds anything but data, or holds
            several sets of weights, or an adapter.
    """
    weights = find_weights(uri, _read(uri), model_keys, use_ema=use_ema)
    if (adapter := adapter_tensor(weights, model_keys)) is not None:
        raise CheckpointError(f"checkpoint {uri!r} holds an adapter of PEFT, {adapter!r}: {MERGE}")
    prefixes = _wrapper_prefixes(weights, model_keys)
    prefix = choose_set(uri, prefixes, use_ema)
    # Metrics and weights of classes in a loss have one dimension.
    beside = [name for name, value in weights.items() if not name.startswith(tuple(prefixes)) and value.ndim > 1]
    notice = f"checkpoint {uri!r}: layers beside the model are left out, {first_few(sorted(beside))}"
    named = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    return named, (f"{notice}: where they follow it, its logits are not those of the whole",) if beside else ()


def find_weights_file(folder: str) -> str:
    """Return the URI of the weights in a folder that timm or transformers saved.

    Raises:
        CheckpointError: there are none, there are several and it is not clear which to read, or an adapter of PEFT is
            there as well, with which transformers would load them.
    """
    names = _list(folder)
    if CONFIG in names:
        raise CheckpointError(
            f"folder {folder!r} holds an adapter of PEFT, {CONFIG!r}, without which its weights are another model: "
            f"{MERGE}; if they hold it already, delete {CONFIG!r}"
        )
    for name in _PREFERRED_FILES:
        if name in names:
            return join(folder, name)
    for suffix in _PREFERRED_SUFFIXES:
        found = sorted(name for name in names if name.endswith(suffix))
        if len(found) > 1:
            raise CheckpointError(f"folder {folder!r} has several files of weights, {found[:5]}: leave one, or name it")
        if found:
            return join(folder, found[0])
    raise CheckpointError(f"folder {folder!r} has no weights: none of {', '.join(_PREFERRED_FILES[:4])} in {names[:8]}")


def _list(folder: str) -> list[str]:
    try:
        return list_files(folder)
    except DatasetError as error:
        raise CheckpointError(f"checkpoint: {error}") from error


def _read(uri: str) -> Any:
    content = _content(uri)
    match readable_kind(uri, content):
        case "safetensors":
            return _read_safetensors(uri, content)
        case "torch":
            return read_pickle(uri, content)
        case "npz":
            return _read_npz(uri, content)
        case "index":
            return _read_shards(uri, content)
    raise CheckpointError(f"checkpoint {uri!r} {describe_foreign(uri, content)}")


def _content(uri: str) -> bytes:
    """Return the content of a file of weights, of an index or of a shard.

    Raises:
        CheckpointError: the file cannot be read, or is an archive that unpacks to far more than its size.
    """
    try:
        content = read_bytes(uri)
    except DatasetError as error:
        if (names := _list(uri)) or list_folders(uri):
            raise CheckpointError(f"checkpoint {uri!r} is a folder: {describe_weights_folder(uri, names)}") from error
        raise CheckpointError(f"checkpoint: {error}") from error
    if (size := expanded_size(content)) is not None:
        raise CheckpointError(f"checkpoint {uri!r} would unpack {len(content)} bytes to {size}: it is no checkpoint")
    return content


def _read_safetensors(uri: str, content: bytes) -> dict[str, Tensor]:
    if shard := _SHARD.search(uri.rpartition("/")[2]):
        base, number, count, suffix = shard.groups()
        message = f"{int(number)} of {int(count)} parts of the weights: give the index, {base}{suffix}.index.json"
        raise CheckpointError(f"checkpoint {uri!r} is part {message}")
    return _parse_safetensors(uri, content)


def _parse_safetensors(uri: str, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"checkpoint {uri!r} is not a readable safetensors file: {error}") from error


def _read_npz(uri: str, content: bytes) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"checkpoint {uri!r} is not a readable npz file of numbers: {one_line(error)}") from error


def _read_shards(uri: str, content: bytes) -> dict[str, Tensor]:
    """Read the files that an index names; they lie beside it."""
    try:
        files: dict[str, str] = parse_json(content)["weight_map"]
        names = sorted(map(str, set(files.values())))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {uri!r} is not the index of a sharded checkpoint: no weight_map") from error
    weights: dict[str, Tensor] = {}
    for name in names:
        if "/" in name or "\\" in name:
            raise CheckpointError(f"checkpoint {uri!r} names {name!r}, which is not a file beside it")
        part = join(uri.rpartition("/")[0], name)
        read = _content(part)
        kind = readable_kind(part, read)
        if kind not in ("safetensors", "torch"):
            raise CheckpointError(f"checkpoint {part!r} {describe_foreign(part, read)}")
        weights |= _parse_safetensors(part, read) if kind == "safetensors" else read_pickle(part, read)
    missing = sorted(set(files) - set(weights))
    if missing:
        raise CheckpointError(
            f"checkpoint {uri!r} lacks {len(missing)} tensors that its index names, as {missing[0]!r}"
        )
    return weights


def _wrapper_prefixes(weights: Mapping[str, Tensor], model_keys: Collection[str]) -> list[str]:
    """Return the prefixes of the model's own names in a checkpoint, or of torchvision's names for them."""
    for keys in (model_keys, source_names(TORCHVISION, model_keys)):
        if complete := _prefixes(weights, keys):
            return complete
    # No prefix: another layout, such as the original DINOv2's, which timm's filter for the family may convert.
    return [""]


def _prefixes(weights: Mapping[str, Tensor], keys: Collection[str]) -> list[str]:
    """Return the prefixes under which most of some names are found."""
    suffixes = sorted(keys)[:1]
    prefixes = {name[: -len(s)] for s in suffixes for name in weights if name.endswith(s)}
    found = {p: sum(p + key in weights for key in keys) for p in prefixes if p == "" or p.endswith(".")}
    return sorted(p for p, count in found.items() if 2 * count > len(keys))
