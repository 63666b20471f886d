"""Read the `config.json` of a model folder, and say what a folder is that has none."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm

from pipeline.checks import describe_normalization_fault
from pipeline.documents import parse_json
from pipeline.file_kinds import MODEL_CONFIG
from pipeline.models.adapters import CONFIG, MERGE
from pipeline.storage import exists, join, list_files, list_folders, read_bytes

_WEIGHTS = (".safetensors", ".index.json", ".pth", ".pth.tar", ".bin", ".ckpt", ".pt", ".npz")
# Folder of revisions in a cache of Hugging Face's hub.
_SNAPSHOTS = "snapshots"
# File that shows which software saved a folder → what the folder is, and what to do with it.
_KINDS = {
    "zero_to_fp32.py": ("a DeepSpeed checkpoint", "convert it: python FOLDER/zero_to_fp32.py FOLDER weights"),
    "latest": ("a DeepSpeed checkpoint", "convert it with its zero_to_fp32.py"),
    "saved_model.pb": ("a TensorFlow SavedModel", "save its tensors under timm's names with torch.save"),
    "_CHECKPOINT_METADATA": ("an Orbax checkpoint (JAX)", "save its tensors under timm's names with torch.save"),
    CONFIG: ("an adapter of PEFT", MERGE),
}


def read_model_config(folder: str) -> dict[str, Any]:
    """Return the `config.json` of a folder at any location; empty if there is none, or if it is no JSON object.

    Raises:
        DatasetError: the file exists and cannot be read.
    """
    uri = join(folder, MODEL_CONFIG)
    if not exists(uri):
        return {}
    try:
        value = parse_json(read_bytes(uri))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def describe_contents(folder: str) -> str:
    """Say what to give instead of a folder without a `config.json`, from what lies in it; empty if it has one.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    names = list_files(folder)
    if MODEL_CONFIG in names:
        return ""
    if kind := _kind(folder, names):
        return f"; it is {kind}"
    if inner := _model_folders(folder):
        return f"; give one of the model folders in it ({', '.join(inner[:5])})"
    if weights := _weights(names):
        return f"; set name to timm's name of the model, and checkpoint to a file in it ({', '.join(weights[:5])})"
    return ""


def _model_folders(folder: str) -> list[str]:
    """Return the folders in a folder that hold a model; those of a repository in the hub's cache lie one deeper."""
    names = list_folders(folder)
    names += [f"{_SNAPSHOTS}/{name}" for name in list_folders(join(folder, _SNAPSHOTS))] if _SNAPSHOTS in names else []
    return [name for name in names if exists(join(folder, name, MODEL_CONFIG))]


def describe_weights_folder(uri: str, names: list[str]) -> str:
    """Say what a folder is that was given as a file of weights, and what to give instead.

    Args:
        uri: location of the folder.
        names: names of the files in the folder.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    if kind := _kind(uri, names):
        return kind
    if not names:
        return f"give the file of weights in one of those in it ({', '.join(list_folders(uri)[:5])})"
    return f"give the file of weights in it ({', '.join((_weights(names) or names)[:5])})"


def _kind(uri: str, names: list[str]) -> str | None:
    """Say what a folder without readable weights is, and what to do; None if that is not known."""
    if any(name.endswith(".distcp") for name in names):
        convert = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {uri} weights.pth"
        return f"a distributed checkpoint (FSDP); convert it: {convert}"
    for name, (what, instead) in _KINDS.items():
        if name in names:
            return f"{what}; {instead.replace('FOLDER', uri)}"
    return None


def _weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(_WEIGHTS)]


@contextmanager
def folder_of_timm(folder: str) -> Iterator[str]:
    """Yield a folder whose `config.json` timm can read: the given one, or a copy of its config.

    transformers saves a timm model in its `TimmWrapper` with a config that has timm's entries, but for those that timm
    cannot do without: it writes `model_args` as null, and no `pretrained_cfg` for a model that it has made itself.

    Args:
        folder: path on this machine; the folder need not exist.
    """
    stated = read_model_config(folder) if Path(folder).is_dir() else {}
    if stated.get("model_type") != "timm_wrapper" or not isinstance(stated.get("architecture"), str):
        yield folder
        return
    registered = timm.get_pretrained_cfg(stated["architecture"])
    entries = {} if registered is None else registered.to_dict(remove_source=True)
    own = stated.get("pretrained_cfg")
    own = own if isinstance(own, dict) else entries
    # transformers makes the model from timm's own entry: whether its image size is an argument does not depend on this.
    fixed = {name: entries[name] for name in ("fixed_input_size",) if name in entries}
    repaired = {**stated, "model_args": stated.get("model_args") or {}, "pretrained_cfg": {**own, **fixed}}
    with tempfile.TemporaryDirectory(prefix="timm-") as made:
        Path(made, MODEL_CONFIG).write_text(json.dumps(repaired))
        yield made


def stated_normalization(config: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return the `mean` and `std` that timm wrote into a folder's config; empty if one of them is missing.

    Raises:
        ValueError: the values are impossible.
    """
    own = config.get("pretrained_cfg")
    if not isinstance(own, dict) or own.get("mean") is None or own.get("std") is None:
        return {}
    stated = {name: own[name] for name in ("mean", "std")}
    if fault := describe_normalization_fault(stated):
        raise ValueError(fault)
    return {name: tuple(map(float, values)) for name, values in stated.items()}


def describe_problem(config: dict[str, Any]) -> str | None:
    """Say what a model outputs, from what transformers wrote into its config; None where it is one class per image.

    timm drops that entry when it reads the folder.
    """
    match config.get("problem_type"):
        case None | "single_label_classification":
            return None
        case "multi_label_classification" as problem:
            return f"outputs several labels per image ({problem})"
        case "regression" as problem:
            return f"outputs values ({problem})"
        case problem:
            return f"outputs something other than classes (problem_type {problem!r:.60})"
