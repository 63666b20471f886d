"""The table of artifact formats, and the way to a file of any of them.

A format is a module of this package, named as its files end, that holds a `Format` as `FORMAT`. Importing the table is
cheap: a format's module, and what it needs, is imported when it is first used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pipeline.artifacts.facts import Facts
    from pipeline.artifacts.opened import Opened

FormatName = Literal["pt2", "onnx"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)


def _nothing() -> None:
    """Need no package besides torch's."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Functions that write, vet and open files of one format.

    Attributes:
        save: takes a program with images as its one input, the file to write, and the `Facts` that it is to state, as
            `save` does. It returns the files that it wrote: what does not fit into the file lies in `<path>.data`.
        open: takes a URI, as `load` does. What could run code is refused, and so is what takes other than one batch of
            images.
        check: raises ConfigError, before any work, where a package is missing.
        open_exact: opens without the optimizations of a runtime whose products of int8 weights may saturate, so that
            none does. `save` takes `weights` then, see `save_onnx`. None for other formats.
        in_torch: torch runs it, so that the float model itself is what to compare it with.
        note: what its figures in a report need said.
    """

    save: "Callable[..., list[Path]]"
    open: "Callable[[str], Opened]"
    check: Callable[[], None] = _nothing
    open_exact: "Callable[[str], Opened] | None" = None
    in_torch: bool = False
    note: str | None = None


def format_of(name: str | Path) -> FormatName | None:
    """Return the format that the name of a file states, in lower or upper case; None where it states none."""
    return next((known for known in FORMATS if str(name).lower().endswith(f".{known}")), None)


def format_named(name: FormatName) -> Format:
    """Return the functions that write and open files of a format."""
    return import_module(f"pipeline.artifacts.{name}").FORMAT


def save(program: "ExportedProgram", path: Path, facts: "Facts", **how: Any) -> list[Path]:
    """Write a program in the format that the name of the file states.

    Args:
        program: a float or a quantized one, which takes images alone.
        path: the file to write.
        facts: class names and normalization, which the file is to state.
        how: further settings of that format's own.

    Returns:
        The files that were written.

    Raises:
        ConfigError: a package is not installed.
        ModelError: the program has no form in that format.
        CheckpointError: the name states no format.
    """
    return _find(path).save(program, path, facts, **how)


def load(uri: str) -> "Opened":
    """Open a file in the format that its name states.

    Raises:
        ConfigError: a package is not installed.
        DatasetError: there is no such file, or a file that it needs is missing.
        CheckpointError: the name states no format, the file is corrupt or of another kind than its name says, could run
            code, or takes other than one batch of images.
    """
    return _find(uri).open(uri)


def _find(name: str | Path) -> Format:
    known = format_of(name)
    if known is None:
        raise CheckpointError(f"{str(name)!r} is no artifact: it ends with none of {', '.join(FORMATS)}")
    return format_named(known)
