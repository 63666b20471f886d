"""Read Hugging Face dataset cards: YAML at the head of `README.md` that says which files belong to which split."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from fsspec.utils import glob_translate

from pipeline import storage
from pipeline.dataset.classes import stated_names
from pipeline.dataset.splits import Splits, check_no_hidden_splits, parquet_splits
from pipeline.documents import parse_yaml
from pipeline.errors import DatasetError, as_line
from pipeline.log import logger

CARD = "README.md"


def read_card(uri: str) -> dict[str, Any]:
    """Return the YAML of the card in a folder; empty where the card has none.

    Raises:
        DatasetError: the card cannot be read.
    """
    card = storage.join(uri, CARD)
    lines = storage.read_bytes(card).decode("utf-8", errors="replace").lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in map(str.rstrip, lines[1:]):
        return {}
    end = [line.rstrip() for line in lines].index("---", 1)
    try:
        values = parse_yaml("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError) as error:
        raise DatasetError(f"{card!r} has a header that is not YAML: {as_line(error)}") from error
    return values if isinstance(values, dict) else {}


def card_config(uri: str, card: dict[str, Any]) -> dict[str, Any] | None:
    """Return the only or default configuration of a card; None if the card has none.

    Raises:
        DatasetError: the card has several configurations, and none is marked as the default.
    """
    configs = card.get("configs")
    configs = [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
    defaults = [config for config in configs if config.get("default") or config.get("config_name") == "default"]
    if len(configs) > 1 and len(defaults) != 1:
        names = ", ".join(repr(config.get("config_name")) for config in configs)
        raise DatasetError(
            f"{uri!r} has several configurations, {names}, according to its {CARD}: give the URI of the folder of one"
        )
    return (defaults or configs or [None])[0]


def card_splits(uri: str, config: dict[str, Any], names: Sequence[str]) -> Splits | None:
    """Group files by the `data_files` of a configuration, or by their names in its `data_dir`; None if it has neither.

    Splits without a file here are left out: one may have been downloaded without the others.

    Raises:
        DatasetError: no listed file is here, the card is not as Hugging Face documents it, or files without a split are
            named like different ones.
    """
    base = str(config.get("data_dir") or "").strip("/")
    if "data_files" not in config:
        return _splits_in(uri, f"{base}/", names) if base else None
    patterns = _patterns(uri, config["data_files"])
    files = {split: _matching(uri, base, globs, names) for split, globs in patterns.items()}
    files = {split: found for split, found in files.items() if found}
    if not files:
        given = next(iter(patterns.values()), [])
        raise DatasetError(
            f"{uri!r}: its {CARD} lists data_files such as {given[:1]}, and none is here: correct or remove it"
        )
    # Files that the card leaves out do not belong to the dataset.
    return Splits(files, [])


def card_class_names(card: dict[str, Any], config: dict[str, Any] | None) -> list[str] | None:
    """Return the names that a card's `dataset_info` gives to the values of `label`; None if it gives none."""
    infos = card.get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]
    wanted = (config or {}).get("config_name")
    for info in infos:
        if isinstance(info, dict) and _describes(info, wanted, alone=len(infos) == 1):
            for feature in info.get("features") or ():
                names = _names_of(feature)
                if names is not None:
                    return names
    return None


def agreed_names(uri: str, in_files: list[str] | None, in_card: list[str] | None) -> list[str] | None:
    """Return the class names of Parquet files, which the files or a card may hold.

    Raises:
        DatasetError: both the files and the card hold names, and they differ.
    """
    if in_files is not None and in_card is not None and in_files != in_card:
        raise DatasetError(
            f"{uri!r}: its Parquet files name {len(in_files)} classes, {in_files[:3]}..., and its {CARD} "
            f"{len(in_card)}, {in_card[:3]}...: correct the card"
        )
    return in_card if in_files is None else in_files


def _describes(info: dict[str, Any], wanted: Any, *, alone: bool) -> bool:
    """Return whether a `dataset_info` describes the configuration of that name; an only one may state none."""
    if alone and (wanted is None or "config_name" not in info):
        return True
    return info.get("config_name", "default") == (wanted or "default")


def class_order(uri: str, card: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Return the classes of an image folder in the order of its card, including classes without a subfolder.

    Warnings name what is in the card and is not read: the splits of an image folder are its folders.

    Args:
        uri: location of the folder.
        card: what `read_card` returned.
        names: names of the subfolders, in the order that they have without a card; empty if there are none.
    """
    if card.get("configs"):
        logger.warning(
            f"{uri!r}: the configs in its {CARD} are ignored: an image folder has its splits in folders (train, test)"
        )
    stated = card_class_names(card, None)
    if not names or stated is None:
        return list(names)
    absent = sorted(set(names) - set(stated))
    if absent:
        logger.warning(f"{uri!r}: the class names of its {CARD} are not read, because {absent[0]!r} is not among them")
        return list(names)
    return stated


def _names_of(feature: Any) -> list[str] | None:
    try:
        return stated_names(feature["dtype"]["class_label"]["names"]) if feature["name"] == "label" else None
    except (KeyError, TypeError):
        return None


def _patterns(uri: str, data_files: Any) -> dict[str, list[str]]:
    """Return the patterns of each split; files without a split are `train`, as in Hugging Face datasets."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, str):
            entry = {"split": "train", "path": entry}
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or "split" not in entry:
            raise DatasetError(f"{uri!r}: its {CARD} has the data_files entry {entry!r}, without split or path")
        patterns.setdefault(str(entry["split"]), []).extend(map(str, paths))
    return patterns


def _splits_in(uri: str, folder: str, names: Sequence[str]) -> Splits | None:
    """Group the files in a folder by their names below it; all are `train` if these name no split; None without files.

    Raises:
        DatasetError: the names of the files name no split, but suggest different ones.
    """
    inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    found = parquet_splits(inside)
    if inside and not found.files:
        check_no_hidden_splits(uri, inside)
        found = Splits({"train": inside}, [])
    files = {split: [folder + name for name in below] for split, below in found.files.items()}
    return Splits(files, [folder + name for name in found.others]) if inside else None


def _matching(uri: str, base: str, globs: Iterable[str], names: Sequence[str]) -> list[str]:
    expressions = [_expression(uri, f"{base}/{glob}" if base else glob) for glob in globs]
    return [name for name in names if any(expression.match(name) for expression in expressions)]


def _expression(uri: str, glob: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(glob.removeprefix("./")))
    except (ValueError, re.error) as error:
        raise DatasetError(f"{uri!r}: its {CARD} has the pattern {glob!r}, which cannot be read: {error}") from error
