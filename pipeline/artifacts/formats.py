"""The table of artifact formats, and the way to a file of any of them.

A format is a module of this package that holds a `Format` as `FORMAT`. Its files end with its name, or as `_ENDINGS`
says. Importing the table is cheap: a format's module, and what it needs, is imported when it is first used.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pipeline.artifacts.facts import Facts
    from pipeline.artifacts.opened import Opened

FormatName = Literal["pt2", "onnx", "aoti"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
# torch writes and reads compiled packages in files that end with `.pt2` alone.
_ENDINGS: dict[str, str] = {"aoti": "aoti.pt2"}


def _nothing() -> None:
    """Need no package besides torch's."""


def _no_note(_: "ExportedProgram") -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Functions that write, vet and open files of one format.

    Attributes:
        save: writes a program whose only input is images, given the path of the file and the `Facts` that it states,
            and returns the paths that it wrote: large weights may go to `<path>.data`. It raises FormError only for a
            program that can never have this form, so that nobody tries again.
        open: opens a file at a URI, as `load_quantized` does. It refuses files that could run code, unless files of the
            format are code (`runs_code`), and files that read anything but one batch of images.
        check: raises ConfigError before any work if a package or a compiler is missing.
        open_exact: opens a file without the optimizations of a runtime whose products of int8 weights may saturate;
            None for formats that have no such products.
        takes_weights: whether `save` takes an argument `weights`, which says how they are stored, as `save_onnx` does.
        in_torch: whether files run in torch, so that the float model itself is their baseline. For other formats one is
            exported.
        runs_code: whether opening a file runs machine code that it holds. `load_quantized` then opens it only if that
            is allowed.
        note: returns a remark on a program's figures for the report, or None.
    """

    save: "Callable[..., list[Path]]"
    open: "Callable[[str], Opened]"
    check: Callable[[], None] = _nothing
    open_exact: "Callable[[str], Opened] | None" = None
    takes_weights: bool = False
    in_torch: bool = False
    runs_code: bool = False
    note: "Callable[[ExportedProgram], str | None]" = _no_note


def ending_of(name: FormatName) -> str:
    """Return the ending of a format's file names, such as `.onnx`."""
    return f".{_ENDINGS.get(name, name)}"


def format_of(name: str | Path) -> FormatName | None:
    """Return the format that the name of a file states, in lower or upper case; None where it states none.

    Of two endings the longer one counts: `model.aoti.pt2` is no `.pt2` program.
    """
    stated: list[FormatName] = [known for known in FORMATS if str(name).lower().endswith(ending_of(known))]
    return max(stated, key=lambda known: len(ending_of(known))) if stated else None


def unlisted_artifacts(names: Iterable[str], listed: Collection[str]) -> list[str]:
    """Return the artifacts among the files of an output that its report does not list: an earlier run made them."""
    return [name for name in names if format_of(name) is not None and name not in listed]


def format_named(name: FormatName) -> Format:
    """Return the functions that write and open files of a format."""
    return import_module(f"pipeline.artifacts.{name}").FORMAT


def save(program: "ExportedProgram", path: Path, facts: "Facts", **how: Any) -> list[Path]:
    """Write a program in the format that the name of the file states.

    Args:
        program: a float or quantized program, whose only input is images.
        path: the file to write.
        facts: class names and normalization, for the file's metadata.
        how: further settings of that format.

    Returns:
        The files that were written.

    Raises:
        ConfigError: a package is not installed.
        FormError: the program has no form in that format.
        ModelError: it could not be written, for another reason.
        OSError: the disk is full, or refuses.
        CheckpointError: the name states no format.
    """
    return _find(path).save(program, path, facts, **how)


def load_quantized(uri: str | Path, *, allow_compiled: bool = False) -> "Opened":
    """Open a file in the format that its name states.

    What is returned is called with normalized images, float32 [B, C, H, W], and returns logits, float32 [B, classes].

    Args:
        uri: path on this machine, or any fsspec URI.
        allow_compiled: whether to open compiled packages (`.aoti.pt2`) as well. They are machine code, which runs with
            all rights of this process as soon as the file is opened: allow it only for files whose origin you trust.

    Raises:
        ConfigError: a package is not installed.
        DatasetError: there is no such file, or a file that it needs is missing.
        CheckpointError: the name states no format, the file is corrupt or of another kind than its name says, could run
            code, or takes other than one batch of images.
    """
    kind = _find(uri)
    if kind.runs_code and not allow_compiled:
        raise CheckpointError(
            f"{str(uri)!r} is compiled code, which runs with all your rights when it is opened; it is only opened with "
            "allow_compiled, for a file whose origin you trust"
        )
    return kind.open(str(uri))


def _find(name: str | Path) -> Format:
    known = format_of(name)
    if known is None:
        raise CheckpointError(
            f"{str(name)!r} is no artifact: it ends with none of {', '.join(map(ending_of, FORMATS))}"
        )
    return format_named(known)
