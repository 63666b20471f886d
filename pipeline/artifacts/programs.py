"""Prepare exported programs for writing, and read shapes and integers from them, for all formats."""

import copy
from typing import Any

import torch
from torch.export import ExportedProgram

from pipeline.errors import CheckpointError


def without_origins(program: ExportedProgram) -> ExportedProgram:
    """Return a copy that does not name files of the machine that exported it."""
    program = copy.deepcopy(program)
    for node in program.graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def input_shape(exported: ExportedProgram, uri: str) -> list[Any]:
    """Return the shape of a program's images, [batch, channels, height, width]; a dynamic size is no integer.

    Raises:
        CheckpointError: the program, which the message calls `uri`, takes other than one batch of float32 images.
    """
    inputs = set(exported.graph_signature.user_inputs)
    values = [node.meta["val"] for node in exported.graph.nodes if node.name in inputs]
    found = [[getattr(value, "dtype", None), *getattr(value, "shape", ())] for value in values]
    if len(found) != 1 or len(found[0]) != 5 or found[0][0] != torch.float32:
        raise CheckpointError(f"{uri!r} must take one float32 [batch, channels, height, width], not {found}")
    return found[0][1:]


def clip_narrow_activations(program: ExportedProgram) -> ExportedProgram:
    """Return a copy in which what does not fill its container is clipped to the range of its bits first.

    ONNX's QuantizeLinear saturates at the limits of its container, whatever the bit width, and so do compiled kernels
    that write integers: at 4 bits a value beyond the calibrated range would come out as 16 to 255.
    """
    # Registers the operator named below.
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401

    program = copy.deepcopy(program)
    graph = program.graph_module.graph
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    for node in list(graph.find_nodes(op="call_function", target=quantize)):
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


def largest_integer(program: ExportedProgram, operator: str) -> int:
    """Return the largest value, or span of activations, that integers of an operator take; 0 without the operator."""
    spans = [0]
    for node in program.graph.nodes:
        if str(node.target).startswith(f"quantized_decomposed.{operator}.") and node.op == "call_function":
            low, high = (int(limit) for limit in node.args[-3:-1])
            spans.append(high - low if operator == "quantize_per_tensor" else max(-low, high))
    return max(spans)
