"""Compile programs to AOTInductor packages (`.aoti.pt2`), and open packages: they are machine code.

A package holds a library that runs on processors like the one it was compiled on, and the weights.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.failures import new_archive, not_written
from pipeline.artifacts.formats import Format
from pipeline.artifacts.misnamed import check_expansion, describe_misnamed
from pipeline.artifacts.opened import Opened, Predictor
from pipeline.artifacts.programs import clip_narrow_activations, input_shape, largest_integer, without_origins
from pipeline.documents import parse_json
from pipeline.errors import CheckpointError, ConfigError, one_line
from pipeline.log import logger

# End of the name of the metadata file in the archive; torch writes it from `aot_inductor.metadata`.
_METADATA = ".wrapper_metadata.json"
# Beginnings of the names, in `torch.cpu.get_capabilities`, of instruction sets that compilers use for computing.
_COMPUTING = ("avx", "amx", "fma3", "f16c", "bmi", "sse4_1", "sse4_2", "neon", "sve", "fp16", "bf16", "i8mm", "dot")
# With one of these, x86 processors add products of 8 bits in 32 bits at once, and in 16 bits otherwise.
_ADDS_IN_32_BITS = ("avx512_vnni", "avx_vnni", "amx_int8")


def save_aoti(program: ExportedProgram, path: str | Path, facts: Facts | None = None) -> list[Path]:
    """Compile a program for this processor and write it as a package.

    Products of integers of 8 bits or fewer run in integer kernels wherever those are exact on this processor: on x86
    processors without VNNI, sums of two products of 8-bit activations and 8-bit weights would saturate, so that such a
    program dequantizes before every product there.

    Args:
        program: a float or quantized program, whose only input is images, with its example inputs.
        path: the file to write; its name ends with `.pt2`.
        facts: class names and normalization, for the metadata of the package.

    Returns:
        The file that was written.

    Raises:
        ConfigError: there is no C++ compiler.
        FormError: the compiler lacks an operator of the program.
        ModelError: the program could not be compiled: the compiler may have been killed, or the disk of temporary files
            be full.
        OSError: the disk is full, or refuses.
    """
    check_aoti()
    metadata = {**(facts or Facts()).to_strings(), **_circumstances(program, str(path))}
    prepared = clip_narrow_activations(without_origins(program))
    options = {**_options(program), "aot_inductor.metadata": metadata}
    try:
        # The compiler folds constants only where no gradients are computed.
        with new_archive(path) as file, torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
            compile_to = partial(torch._inductor.aoti_compile_and_package, prepared, inductor_configs=options)
            compile_to(package_path=file)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise not_written("the model cannot be compiled by AOTInductor", error) from error
    _drop_sources(Path(path))
    return [Path(path)]


def check_aoti() -> None:
    """Find out before the work that there is no C++ compiler.

    Raises:
        ConfigError: there is none; the message names the compiler that was looked for.
    """
    name = _compiler()
    if shutil.which(name) is None:
        raise ConfigError(
            f"AOTInductor packages are compiled where they are made, and the C++ compiler {name!r} is not installed "
            "here: install it (`apt-get install g++`), name another one in the variable CXX, or leave out `aoti`"
        )


def open_aoti(uri: str) -> Opened:
    """Open a package, which runs the machine code that it holds: `load_quantized` does so only where that is allowed.

    Raises:
        DatasetError: there is no such file.
        CheckpointError: the file is not a package, does not say which images it reads, or was compiled for a processor
            that has instructions which this one lacks.
    """
    with storage.local_file(uri) as path:
        metadata = _read_metadata(path, uri)
        _check_processor(metadata, uri)
        batch, *size = _stated_shape(metadata, uri)
        try:
            # `aoti_load_package` would compile a probe of this processor, and there may be no compiler.
            loader = _loader()(str(path), "model", False, 1, -1, False)
        except RuntimeError as error:
            raise CheckpointError(f"cannot load {uri!r} as an AOTInductor package: {one_line(error)}") from error
    return Opened(_predictor(loader, tuple(size), uri), Facts.from_strings(metadata, uri), tuple(size), batch)


def has_exact_integers(program: ExportedProgram) -> bool:
    """Whether all its integers have 8 bits or fewer, and this processor's sums of their products cannot saturate."""
    activations, weights = _largest(program)
    if not activations or max(activations, weights) > 255:
        return False
    return 2 * activations * weights < 2**15 or _adds_in_32_bits()


def _largest(program: ExportedProgram) -> tuple[int, int]:
    """Return the largest integers of activations and of weights; 0 and 0 of a float program."""
    return largest_integer(program, "quantize_per_tensor"), largest_integer(program, "dequantize_per_channel")


def _adds_in_32_bits() -> bool:
    capabilities = torch.cpu.get_capabilities()
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not on_x86 or any(capabilities.get(name) for name in _ADDS_IN_32_BITS)


def _compiler() -> str:
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def _options(program: ExportedProgram) -> dict[str, Any]:
    """Return torch's settings of the compilation."""
    integer, floating = has_exact_integers(program), not any(_largest(program))
    options: dict[str, Any] = {
        # By default torch would fetch a compiler where conda is installed.
        "cpp.cxx": (_compiler(),),
        # The number of threads is that of the machine where the package runs, not of the one that compiled it.
        "cpp.dynamic_threads": True,
        "aot_inductor.enable_line_tables": False,
        # Folds constants: packs weights for the kernels. Dequantized weights would be stored as floats.
        "freezing": integer or floating,
    }
    if integer:
        # Private, but the public way, importing torchao's quantizer for x86, changes settings of the whole process.
        from torchao.quantization.pt2e.inductor_passes import x86

        x86._register_quantization_weight_pack_pass()
        options["pre_grad_custom_pass"] = x86.quant_lift_up
    return options


def _circumstances(program: ExportedProgram, name: str) -> dict[str, str]:
    """Return what has to be known of a package before it is opened; values are JSON."""
    batch, *size = input_shape(program, name)
    shape = [batch if isinstance(batch, int) else None, *size]
    return {
        "images": json.dumps(shape),
        "instruction_sets": json.dumps(_instruction_sets()),
        "torch": json.dumps(torch.__version__),
    }


def _instruction_sets() -> list[str]:
    return list_instruction_sets(torch.cpu.get_capabilities())


def list_instruction_sets(capabilities: Mapping[str, bool | int]) -> list[str]:
    """Return the instruction sets that code may need: names, and `name=number` where a number must be the same.

    The length of SVE's vectors is one: code is compiled for it, and computes something else with another.

    Args:
        capabilities: result of `torch.cpu.get_capabilities`.
    """
    found = {name: value for name, value in capabilities.items() if value and name.startswith(_COMPUTING)}
    return sorted(name if value is True else f"{name}={value}" for name, value in found.items())


def _drop_sources(path: Path) -> None:
    """Leave out the C++ sources of the library, which name files of the machine that compiled."""
    short = path.with_name(f"{path.name}.part")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(short, "w") as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".cpp"):
                kept.writestr(entry.filename, whole.read(entry))
    short.replace(path)


def _read_metadata(path: Path, uri: str) -> dict[str, str]:
    """Return what a package says of itself; runs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(archive, path, uri)
            found = [name for name in archive.namelist() if name.endswith(_METADATA)]
            metadata = parse_json(archive.read(found[0])) if len(found) == 1 else None
    except (zipfile.BadZipFile, ValueError, LookupError, RuntimeError) as error:
        found = describe_misnamed(path, "an AOTInductor package")
        reason = f"it {found}" if found else one_line(error, limit=200)
        raise CheckpointError(f"cannot read {uri!r} as an AOTInductor package: {reason}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{uri!r} is not an AOTInductor package: it holds {len(found)} compiled models")
    return {str(key): str(value) for key, value in metadata.items()}


def _check_processor(metadata: Mapping[str, str], uri: str) -> None:
    """Refuse code that this processor cannot run: the process would be killed in the middle of it."""
    kinds = (metadata.get("AOTI_PLATFORM", sys.platform), metadata.get("AOTI_MACHINE", platform.machine()))
    if kinds != (sys.platform, platform.machine()) or metadata.get("AOTI_DEVICE_KEY", "cpu") != "cpu":
        raise CheckpointError(f"{uri!r} was compiled for {' '.join(kinds)} ({metadata.get('AOTI_DEVICE_KEY')})")
    try:
        needed, made_by = (parse_json(metadata.get(key, "[]")) for key in ("instruction_sets", "torch"))
    except ValueError as error:
        raise CheckpointError(f"{uri!r} has metadata that cannot be read: {error}") from error
    if missing := sorted(set(needed) - set(_instruction_sets())):
        raise CheckpointError(
            f"{uri!r} was compiled on a processor with {', '.join(missing)}, which this one lacks: calibrate on a "
            "machine like the one that is to run it"
        )
    if made_by and made_by != torch.__version__:
        logger.warning(f"{uri}: compiled with torch {made_by}, run with {torch.__version__}")


def _stated_shape(metadata: Mapping[str, str], uri: str) -> list[Any]:
    try:
        shape = parse_json(metadata.get("images", "null"))
    except ValueError:
        shape = None
    if not isinstance(shape, list) or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise CheckpointError(
            f"{uri!r} does not say which images it reads, and compiled code does not check them: state them in its "
            'metadata, as in {"images": "[null, 3, 224, 224]"}'
        )
    return shape


def _loader() -> Any:
    inner: Any = torch._C
    return inner._aoti.AOTIModelPackageLoader


def _predictor(loader: Any, size: tuple[int, ...], uri: str) -> Predictor:
    def predict(images: Tensor) -> Tensor:
        # The code reads memory as it was compiled to, whatever the size and layout of the images.
        if images.ndim != 4 or tuple(images.shape[1:]) != size or not len(images):
            raise CheckpointError(f"{uri!r} reads images of {['batch', *size]}, not {list(images.shape)}")
        with torch.inference_mode():
            return loader.run([images.to("cpu", torch.float32).contiguous()])[0].float()

    return predict


def _note(program: ExportedProgram) -> str | None:
    largest = max(_largest(program))
    if not largest or has_exact_integers(program):
        return None
    if largest > 255:
        return "above 8 bits: computed in float"
    return (
        "computed in float, so no faster than fp32: this processor has no VNNI, without which sums of 8-bit products "
        "saturate; weights of 7 bits use integer kernels here, and so do 8 bits on a processor with VNNI"
    )


FORMAT = Format(save=save_aoti, open=open_aoti, check=check_aoti, runs_code=True, note=_note)
