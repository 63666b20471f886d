"""Read `torch.save` files as data, without importing or calling what they name.

`torch.load` with `weights_only` reads tensors, containers and numbers. Training code commonly saves more beside the
weights that is plain data too: NumPy scalars, paths, times, parsed arguments, OmegaConf and Lightning settings. Each
such name is resolved to a stand-in from this file: numbers and arrays are read from their bytes, mappings become dicts,
and the rest is dropped. NumPy's own functions are not used: a crafted dtype makes them read raw bytes as pointers.
"""

import argparse
import io
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.errors import CheckpointError, one_line
from pipeline.models.containers import is_of_torch, pickle_protocol

# Errors of `torch.load` for a truncated or damaged file.
_CORRUPT_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, EOFError, OSError),
    struct.error,
)


class Dropped:
    """Stand-in for data that is not needed."""

    def __new__(cls, *_: Any, **__: Any) -> "Dropped":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Mapping:
    """Stand-in for a library's mapping class; makes a dict."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _Sequence:
    """Stand-in for a sequence class; makes a list."""

    def __new__(cls, *_: Any) -> Any:
        return []


class _NumberType:
    """Stand-in for `numpy.dtype`: numbers and booleans in either byte order, and nothing that holds objects."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, ...); the rest describes structures, and flags that must not be trusted.
        self.order = str(state[1])

    def read(self, data: Any, count: int) -> np.ndarray | None:
        """Return `count` values as an array in the machine's byte order; None for anything but numbers."""
        if re.fullmatch(r"[biufc]\d{1,2}", self.code) is None or not isinstance(data, bytes):
            return None
        values = np.frombuffer(data, np.dtype((self.order if self.order in ("<", ">") else "=") + self.code), count)
        return values.astype(values.dtype.newbyteorder("="))


class NumpyArray:
    """Stand-in for `numpy.ndarray`.

    Attributes:
        value: the numbers of the array; None if it holds something else.
    """

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        count = int(np.prod(shape, dtype=np.int64))
        values = kind.read(data, count) if isinstance(kind, _NumberType) else None
        self.value = None if values is None else values.reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*_: Any) -> NumpyArray:
    return NumpyArray()


def _scalar(kind: Any, data: Any = b"") -> Any:
    values = kind.read(data, 1) if isinstance(kind, _NumberType) else None
    return None if values is None else values[0].item()


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_NODES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Interpolation", "Path", "String", "Value")
_OMEGACONF = (
    *("base.ContainerMetadata", "base.Metadata", "base.Node", "base.SCMode"),
    *(f"nodes.{kind}Node" for kind in _NODES),
)
_STAND_INS: dict[Callable[..., Any], tuple[str, ...]] = {
    _NumberType: ("numpy.dtype",),
    NumpyArray: ("numpy.ndarray",),
    _reconstruct: tuple(f"{module}._reconstruct" for module in _NUMPY),
    _scalar: tuple(f"{module}.scalar" for module in _NUMPY),
    _Mapping: (
        "collections.defaultdict",
        "easydict.EasyDict",
        "addict.addict.Dict",
        "munch.Munch",
        "yacs.config.CfgNode",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    _Sequence: ("collections.deque", "builtins.frozenset"),
    Dropped: (
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "bytes", "list", "dict", "tuple", "object")),
        *(f"builtins.{name}" for name in ("slice", "range", "type")),
        *("types.SimpleNamespace", "uuid.UUID", "uuid.SafeUUID", "decimal.Decimal", "fractions.Fraction"),
        *("typing.Any", "typing.Union", "typing.Optional", "typing.List", "typing.Dict"),
        *("numpy.bool", "numpy.bool_", "numpy.int32", "numpy.int64", "numpy.float16", "numpy.float32", "numpy.float64"),
        *("torch.torch_version.TorchVersion", "ml_collections.config_dict.config_dict.ConfigDict"),
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
        *(f"omegaconf.{name}" for name in _OMEGACONF),
    ),
}
_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    *((stand_in, name) for stand_in, names in _STAND_INS.items() for name in names),
]


def read_pickle(uri: str, content: bytes) -> Any:
    """Return the content of a `torch.save` file, with tensors on the CPU.

    Args:
        uri: location of the file, for messages.
        content: content of the file.

    Raises:
        CheckpointError: the file is corrupt, or names a class or function that is not known to be data.
    """
    if not is_of_torch(content):
        raise CheckpointError(f"checkpoint {uri!r} was pickled, but not by torch.save: {_resave(uri, _UNPICKLE)}")
    try:
        with torch.serialization.safe_globals(_SAFE), warnings.catch_warnings():
            # Warnings about pickle protocols, read-only storage and the like, about which a user can do nothing.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        protocol = pickle_protocol(content)
        why = refusal_of(error)
        if "GLOBAL" not in str(error) and protocol not in (None, 2):
            why = f"was pickled with protocol {protocol}, and only protocol 2 is read"
        raise CheckpointError(f"checkpoint {uri!r} {why}, and was not opened: {_resave(uri, _LOAD)}") from error
    except _CORRUPT_ERRORS as error:
        raise CheckpointError(f"checkpoint {uri!r} is corrupt: {_reason(error)}") from error


def read_own(uri: str, content: bytes | memoryview) -> Any:
    """Return what this software itself saved with `torch.save`, with tensors on the CPU: only plain data is accepted.

    Args:
        uri: location of the file, for messages.
        content: content of the file.

    Raises:
        CheckpointError: the file is damaged, or holds more than plain data.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {uri!r} {refusal_of(error)}, and was not opened") from error
    except (RuntimeError, EOFError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {uri!r} cannot be read: {str(error).splitlines()[0]}") from error


def refusal_of(error: pickle.UnpicklingError) -> str:
    """Say why `torch.load` with `weights_only` did not read a file; its own message advises to run the file's code."""
    unknown = re.search(r"GLOBAL (\S+)", str(error))
    return f"holds more than weights ({unknown[1]})" if unknown else "holds more than weights, or is not a checkpoint"


_LOAD = "torch.load(FILE, weights_only=False)"
_UNPICKLE = "pickle.load(open(FILE, 'rb'))"
# Code that finds the weights in a state dict, a whole model, or a dict of either.
_WEIGHTS = "w = w.get('state_dict', w.get('model', w)) if isinstance(w, dict) else w"


def _resave(uri: str, load: str) -> str:
    """Say how to save only the weights. The command runs whatever code is in the file."""
    name = uri.rpartition("/")[2] if "://" in uri else uri
    read = f"import torch, pickle; w = {load.replace('FILE', repr(name))}; {_WEIGHTS}"
    command = f"{read}; torch.save(getattr(w, 'state_dict', lambda: w)(), 'weights.pth')"
    return f'if you trust the file, save its weights alone: python -c "{command}"'


def _reason(error: BaseException) -> str:
    return one_line(error).split(". ")[0]
