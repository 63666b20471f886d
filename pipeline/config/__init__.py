"""Configs as frozen dataclasses: parsed from YAML and flags, written as plain data."""

from pipeline.config.defaults import first_default, former_default
from pipeline.config.parsing import from_dict, make_parser, parse_config
from pipeline.config.plain_data import digest, to_dict

__all__ = [
    "digest",
    "first_default",
    "former_default",
    "from_dict",
    "make_parser",
    "parse_config",
    "to_dict",
]
