"""Read the `config.json` of a model folder."""

from typing import Any

from pipeline.checks import describe_normalization_fault
from pipeline.documents import parse_json
from pipeline.file_kinds import MODEL_CONFIG
from pipeline.storage import exists, join, read_bytes


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


def stated_normalization(config: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return the `mean` and `std` that timm wrote into a folder's config; empty if one of them is missing.

    Raises:
        ValueError: they are impossible values.
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
