"""Write and open ONNX files with QuantizeLinear and DequantizeLinear pairs."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline.artifacts.facts import Facts
from pipeline.artifacts.failures import not_written
from pipeline.artifacts.formats import Format
from pipeline.artifacts.onnx_files import local_files, refuse_unreadable
from pipeline.artifacts.opened import Opened, Predictor
from pipeline.artifacts.programs import clip_narrow_activations, largest_integer
from pipeline.errors import CheckpointError, ConfigError, FormError, one_line

WeightType = Literal["uint8", "int8", "int16", "int4"]
# From this opset on QuantizeLinear takes 16 bits, and DequantizeLinear 4; older ones are read by more runtimes.
_OPSET, _OPSET_OTHER_BITS = 20, 21
# Largest size of weights within the file: Protobuf ends at 2 GiB, and the graph takes some of it.
_MAX_INLINE_BYTES = 2**31 - 2**27
_INPUT_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_OUTPUT_TYPES = (*_INPUT_TYPES, "tensor(double)")


def save_onnx(
    program: ExportedProgram,
    path: str | Path,
    facts: Facts | None = None,
    *,
    weights: WeightType = "int8",
    max_inline_bytes: int = _MAX_INLINE_BYTES,
) -> list[Path]:
    """Write a program with the input `images` and the output `logits`.

    Args:
        program: a float or quantized program, whose only input is images.
        path: the file to write; large weights go into a second file, `<path>.data`, which belongs beside it.
        facts: class names and normalization, for the file's metadata.
        weights: how int8 weights are stored. `uint8` has the zero point 128: ONNX Runtime's products of uint8
            activations and int8 weights saturate in 16 bits on x86 processors without VNNI, those of two uint8 do not.
            `int16` is for activations of more than 8 bits, which ONNX Runtime rounds to 8 beside 8-bit weights.
            `int4` packs two weights of 4 bits or fewer into a byte.
        max_inline_bytes: largest size, in bytes, of all weights together that the file itself holds; more go into the
            second file.

    Returns:
        The files that were written.

    Raises:
        ConfigError: the ONNX packages are not installed.
        FormError: ONNX lacks an operator of the program, or weights of more than 4 bits were to be stored in 4.
        ModelError: the program was not converted, for another reason.
        OSError: the disk is full, or refuses.
    """
    check_onnx()
    if weights == "int4" and largest_integer(program, "dequantize_per_channel") > 8:
        raise FormError(f"{Path(path).name}: weights of more than 4 bits cannot be stored in 4")
    clipped = clip_narrow_activations(program)
    try:
        exported: Any = torch.onnx.export(
            clipped,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            opset_version=_OPSET_OTHER_BITS if weights == "int4" or _has_16_bits(program) else _OPSET,
        )
    except torch.onnx.OnnxExporterError as error:
        raise not_written("the model was not converted to ONNX", error) from error
    model = exported.model
    _forget_origins(model)
    if weights != "int8":
        _store_weights(model, weights)
    model.metadata_props.update((facts or Facts()).to_strings())
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    exported.save(str(path), external_data=size > max_inline_bytes)
    return sorted(Path(path).parent.glob(f"{Path(path).name}*"))


def check_onnx() -> None:
    """Find out before the work that the ONNX packages are missing.

    Raises:
        ConfigError: a package is missing; the message names it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX files need the extra 'onnx': pip install '.[onnx]' ({error})") from error


def open_onnx(uri: str, *, exact: bool = False) -> Opened:
    """Open an ONNX model in ONNX Runtime on the CPU, with as many threads as torch has.

    Args:
        uri: location of the model. Weights that it keeps in further files are looked for beside it.
        exact: whether to leave out ONNX Runtime's optimizations, so that it dequantizes before every operator as the
            `.pt2` does, and no product can saturate.

    Raises:
        ConfigError: the ONNX packages are not installed.
        DatasetError: there is no such file, or a file that it needs is missing.
        CheckpointError: it is not an ONNX model, or takes or gives other than one batch of images and one of logits.
    """
    check_onnx()
    with local_files(uri) as path:
        return open_session(make_session(path, uri, exact=exact), uri)


def open_session(session: Any, uri: str) -> Opened:
    """Return the artifact that ONNX Runtime has read.

    Raises:
        CheckpointError: it takes or gives other than one batch of images and one of logits.
    """
    entries = session.get_inputs()
    if len(entries) != 1 or entries[0].type not in _INPUT_TYPES or len(entries[0].shape) != 4:
        found = [(entry.name, entry.type, entry.shape) for entry in entries]
        raise CheckpointError(f"{uri!r} must take one float [batch, channels, height, width], not {found}")
    batch, *size = entries[0].shape
    return Opened(
        _predictor(session, uri, _find_logits(session, uri)),
        Facts.from_strings(session.get_modelmeta().custom_metadata_map, uri),
        # A size that is named instead of numbered is any size.
        tuple(size) if all(isinstance(side, int) for side in size) else None,
        batch if isinstance(batch, int) else None,
    )


def _find_logits(session: Any, uri: str) -> str:
    """Return the name of the output that holds the logits."""
    types = {output.name: output.type for output in session.get_outputs()}
    outputs = list(types)
    if len(outputs) > 1 and "logits" not in outputs:
        raise CheckpointError(f"{uri!r} has the outputs {outputs}: which of them are the logits is not known")
    output = "logits" if "logits" in outputs else outputs[0]
    if types[output] not in _OUTPUT_TYPES:
        raise CheckpointError(f"{uri!r} gives {types[output]} as {output!r}, not logits, which are floating numbers")
    return output


def make_session(path: Path, uri: str, *, exact: bool = False) -> Any:
    """Return ONNX Runtime's session of a file on this machine, see `open_onnx`.

    Raises:
        CheckpointError: it cannot be read; the message names `uri`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise refuse_unreadable(path, uri, error) from error


def _predictor(session: Any, uri: str, output: str) -> Predictor:
    entry = session.get_inputs()[0]
    dtype = _INPUT_TYPES[entry.type]

    def predict(images: Tensor) -> Tensor:
        try:
            logits = session.run([output], {entry.name: images.to(dtype).numpy()})[0]
        except _runtime_errors() as error:
            raise CheckpointError(f"{uri!r} cannot be run on images {list(images.shape)}: {one_line(error)}") from error
        return torch.as_tensor(logits).float()

    return predict


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors, which derive from Exception alone."""
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile")
    return tuple(getattr(state, name) for name in (*names, "RuntimeException", "NoModel", "ModelLoaded", "EPFail"))


def _store_weights(model: Any, stored: WeightType) -> None:
    """Keep int8 weights and their zero points in another type; in an unsigned one both are shifted by 128."""
    import ml_dtypes
    import onnx_ir as ir

    found = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0].dtype == ir.DataType.INT8:
            found |= {value.name: value for value in (node.inputs[0], node.inputs[2])}
    for value in found.values():
        shifted = value.const_value.numpy().astype("int16") + (128 if stored == "uint8" else 0)
        kind = ir.DataType[stored.upper()]
        numbers = shifted.astype(ml_dtypes.int4 if stored == "int4" else stored)
        value.const_value = ir.Tensor(numbers, name=value.name, dtype=kind)
        value.dtype = kind


def _has_16_bits(program: ExportedProgram) -> bool:
    wide = (torch.int16, torch.uint16)
    return any(argument in wide for node in program.graph.nodes for argument in node.args)


def _forget_origins(model: Any) -> None:
    """Leave out names of files of the machine that exported."""
    graph = model.graph
    for holder in (*graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        holder.metadata_props.clear()


FORMAT = Format(
    save=save_onnx,
    open=open_onnx,
    check=check_onnx,
    open_exact=partial(open_onnx, exact=True),
    takes_weights=True,
)
