"""Defaults of settings that were others when the settings were introduced."""

import dataclasses
from typing import Any

_FORMER_DEFAULT = "former_default"


def former_default(value: Any) -> dict[str, Any]:
    """Return the metadata of a setting whose default was another one when it was introduced, or is to be changed.

    The first default is the value that is left out of the identity of a run (`pipeline.outputs.identifying_settings`).
    So outputs made with it keep their digests, and those made with today's default differ from them.
    """
    return {_FORMER_DEFAULT: value}


def first_default(field: dataclasses.Field[Any]) -> Any:
    """Return the default that a setting was introduced with."""
    if _FORMER_DEFAULT in field.metadata:
        return field.metadata[_FORMER_DEFAULT]
    return default_of(field)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a setting; `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
