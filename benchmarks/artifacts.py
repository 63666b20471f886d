"""Time and size of each runtime's artifacts against the same runtime's fp32, on this processor.

    python -m benchmarks.artifacts --batches 1 32

The model has uniform random weights and reads uniform noise. Compared are ONNX Runtime, AOTInductor and torch itself,
which runs the `.pt2`. AOTInductor compiles each of its files, which takes minutes and a C++ compiler. All forwards take
turns. Prints one JSON line; `speedup` and `size` are ratios to the fp32 of the same runtime.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from benchmarks.circumstances import circumstances
from benchmarks.rounds import latencies, observe_ranges, random_images, random_model, short
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import FormatName, ending_of, format_named, load_quantized, save
from pipeline.artifacts.opened import Predictor
from pipeline.artifacts.weights import model_predictor
from pipeline.quantization.agreement import largest_deviation, relative_error
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.graphs import convert, export_images, reexport

_CALIBRATION = 8  # images
# The goal, where the processor has VNNI: as many times as fast as fp32, at this share of its size.
_SPEEDUP, _SIZE = 1.7, 0.3
# How ONNX files store weights of 8 bits, and of 4.
_STORED: dict[int, tuple[Any, ...]] = {8: ("uint8", "int8"), 4: ("int8", "int4")}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON line, as plain data."""
    torch.set_num_threads(options.threads)
    before = os.getloadavg()
    model = random_model(options.model)
    images = random_images(model, _CALIBRATION + max(options.batches))
    with tempfile.TemporaryDirectory() as folder:
        predictors, rows = _files(model, images, options, Path(folder))
        latency = latencies(predictors, images[_CALIBRATION:], options.batches, options.rounds)
    for name, row in rows.items():
        row["ms_per_image"] = latency[name]
        fp32 = f"{row['runtime']} fp32"
        if name != fp32:
            row["speedup"] = {batch: short(latency[fp32][batch] / taken) for batch, taken in latency[name].items()}
            row["size"] = short(row["size_mb"] / rows[fp32]["size_mb"])
    return {
        "model": options.model,
        "images": "uniform noise",
        "goal": {"speedup": _SPEEDUP, "size": _SIZE, "on": "processors with VNNI"},
        "met": _met(rows),
        "artifacts": rows,
        "rounds": options.rounds,
        "load_average": [[short(load) for load in loads] for loads in (before, os.getloadavg())],
        **circumstances("benchmarks.artifacts", torch.device("cpu")),
    }


def _met(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the W8A8 artifacts that compute what was calibrated and reach the goal at every batch size."""
    right = {name: row for name, row in rows.items() if "w8a8" in name and row["deviation"] <= row["bound"]}
    reached = {name for name, row in right.items() if min(row["speedup"].values()) >= _SPEEDUP and row["size"] <= _SIZE}
    return sorted(reached)


def _files(
    model: nn.Module, images: Tensor, options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Predictor], dict[str, dict[str, Any]]]:
    """Write and open every file, and compare its logits on the calibration images."""
    program, calibration = export_images(model, "linear"), images[:_CALIBRATION]
    ranges = observe_ranges(model, calibration)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    predictors: dict[str, Predictor] = {"pt2 fp32": model_predictor(model)}
    rows: dict[str, dict[str, Any]] = {"pt2 fp32": {"runtime": "pt2", "size_mb": short(size / 1e6)}}
    floating = predictors["pt2 fp32"](calibration)
    for kind in options.formats:
        if kind != "pt2":
            predictors[f"{kind} fp32"], rows[f"{kind} fp32"] = _file(kind, program, folder)
    for weights in options.weights:
        quantized = reexport(convert(program, BitWidths(weights=weights), "linear", ranges), program)
        with torch.inference_mode():
            expected = quantized.module()(calibration)
        bound = short(largest_deviation(expected, floating))
        for kind in options.formats:
            for stored in _STORED.get(weights, ("int8",)) if kind == "onnx" else (None,):
                name = f"{kind} w{weights}a8{f' in {stored}' if stored else ''}"
                predictors[name], row = _file(kind, quantized, folder, **({"weights": stored} if stored else {}))
                deviation = short(relative_error(predictors[name](calibration), expected))
                rows[name] = {**row, "deviation": deviation, "bound": bound}
    return predictors, rows


def _file(kind: FormatName, program: ExportedProgram, folder: Path, **how: Any) -> tuple[Predictor, dict[str, Any]]:
    path = Path(tempfile.mkdtemp(dir=folder), f"model{ending_of(kind)}")
    size = sum(file.stat().st_size for file in save(program, path, Facts(), **how))
    note = format_named(kind).note(program)
    row: dict[str, Any] = {"runtime": kind, "size_mb": short(size / 1e6)}
    # Compiled by this process a moment ago.
    return load_quantized(path, allow_compiled=True).predict, row if note is None else {**row, "note": note}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--formats", nargs="+", choices=["pt2", "onnx", "aoti"], default=["pt2", "onnx", "aoti"])
    parser.add_argument("--weights", type=int, nargs="+", default=[8, 7, 4], help="bits; activations have 8")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    print(json.dumps(measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
