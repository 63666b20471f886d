"""Quantized programs as files: `.pt2` for torch, ONNX QDQ for everything else. Both take images alone."""

import copy
from pathlib import Path
from typing import Any

import torch
import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  (registers the operators named below)
from torch import fx
from torch.export import ExportedProgram

from pipeline.errors import ConfigError, ModelError

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
# From this opset on QuantizeLinear takes 16 bits; older ones are read by more runtimes.
_OPSET, _OPSET_16_BITS = 20, 21


def save_pt2(program: ExportedProgram, path: str | Path) -> None:
    """Write a program as `torch.export.load` reads it, after `import torchao`.

    It is the reference: integers are dequantized before every operator, so it is not fast.
    """
    program = copy.deepcopy(program)
    _forget_sources(program.graph_module)
    program.example_inputs = None
    torch.export.save(program, path)


def save_onnx(program: ExportedProgram, path: str | Path) -> None:
    """Write a program as one ONNX file of QuantizeLinear and DequantizeLinear pairs, input `images`, output `logits`.

    Raises:
        ConfigError: the ONNX packages are not installed.
        ModelError: the program has no ONNX form.
    """
    check_onnx()
    clipped = _clip_narrow_activations(program)
    try:
        exported: Any = torch.onnx.export(
            clipped,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            opset_version=_OPSET_16_BITS if _has_16_bits(program) else _OPSET,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(f"the model has no ONNX form: {' '.join(str(error).split())[:300]}") from error
    _forget_origins(exported.model)
    exported.save(str(path), external_data=False)


def check_onnx() -> None:
    """Find out before the work that the ONNX packages are missing.

    Raises:
        ConfigError: with the name of the missing package.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the onnx format needs the extra 'onnx': {error}") from error


def _clip_narrow_activations(program: ExportedProgram) -> ExportedProgram:
    """A copy in which what does not fill its container is clipped to the range of its bits first.

    QuantizeLinear saturates at the limits of its container, whatever the bit width: at 4 bits a value beyond the
    calibrated range would come out as 16 to 255.
    """
    program = copy.deepcopy(program)
    graph = program.graph_module.graph
    for node in list(graph.find_nodes(op="call_function", target=_QUANTIZE)):
        source, scale, zero_point, quant_min, quant_max, container = node.args
        limits = torch.iinfo(container)
        if (quant_min, quant_max) != (limits.min, limits.max):
            bounds = ((quant_min - zero_point) * scale, (quant_max - zero_point) * scale)
            with graph.inserting_before(node):
                clip = graph.call_function(torch.ops.aten.clamp.default, (source, *bounds))
            clip.meta = {"val": source.meta["val"]}
            node.update_arg(0, clip)
    program.graph_module.recompile()
    return program


def _has_16_bits(program: ExportedProgram) -> bool:
    wide = (torch.int16, torch.uint16)
    return any(argument in wide for node in program.graph.nodes for argument in node.args)


def _forget_sources(graph_module: fx.GraphModule) -> None:
    """Leave out the stack traces, which name files of the machine that exported."""
    for node in graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)


def _forget_origins(model: Any) -> None:
    """As `_forget_sources`, for an ONNX model; its batch dimension gets its name here."""
    graph = model.graph
    for holder in (*graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        holder.metadata_props.clear()
