"""Write a job's page beside its output, without risk to the output."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import storage
from pipeline.credentials import without_credentials
from pipeline.errors import PipelineError, one_line
from pipeline.log import logger
from pipeline.report.page import Section, Table

PAGE = "report.html"
# Longest line, in characters: values are not broken.
_WIDTH = 2**31 - 1


def write_page(output: str, make: Callable[[], str]) -> str | None:
    """Write `<output>/report.html`, after everything that the job is for; see `write_extra`.

    Args:
        output: folder of the job.
        make: function that returns the page.

    Returns:
        URI of the page; None if it could not be written.
    """
    uri = write_extra(storage.join(output, PAGE), lambda: make().encode())
    if uri is not None:
        logger.info(f"report: {from_here(uri)}")
    return uri


def from_here(uri: str) -> str:
    """Return a path below the working folder relative to it, as people give it; any other location as it is."""
    path = Path(uri)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else uri


def write_extra(uri: str, make: Callable[[], bytes]) -> str | None:
    """Write a file that people look at and no program needs.

    If it cannot be made or written, a warning says so and nothing else is lost: the disk may be full, or a file that it
    shows unreadable.

    Args:
        uri: location of the file.
        make: function that returns the content of the file.

    Returns:
        The URI; None if it could not be written.
    """
    try:
        content = make()
        storage.with_retries(lambda: storage.write_bytes(uri, content))
    except (OSError, MemoryError, PipelineError) as error:
        logger.warning(f"{uri!r} was not written, all else is in place: {one_line(error)}")
        return None
    return uri


def settings_section(config: Mapping[str, Any]) -> Section:
    """Return all settings of a job, as a folded table of dotted names and values."""
    return Section(
        heading="Settings", folded=True, tables=[Table(header=["setting", "value"], rows=list(_flat(config, "")))]
    )


def _as_yaml(value: Any) -> str:
    """Return a setting as it stands in a config file."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=_WIDTH)
    # YAML ends a document that is one plain value with dots.
    return text.removesuffix("\n").removesuffix("\n...")


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = without_credentials(_as_yaml(value))
            rows.append((prefix + name, text if len(text) <= 200 else f"{text[:199]}…"))
    return rows
