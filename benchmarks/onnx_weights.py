"""Compare how ONNX files can store weights: error and speed in ONNX Runtime on this processor.

    python -m benchmarks.onnx_weights --batches 1 32
    python -m benchmarks.onnx_weights --model local-dir:DIGITS/teacher --images DIGITS/held_out.parquet

DIGITS is what `python -m examples.digits.teacher --output DIGITS` wrote. Without `--images` the model is made with
uniform random weights and reads uniform noise: its products are large. Compared are files of one quantized model with
weights of 8 bits stored as int8 and as uint8, of one with weights of 7 bits, and the float model. Their forwards take
turns, so that a machine whose speed drifts slows all. Prints one JSON line.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.circumstances import circumstances
from benchmarks.rounds import latencies, observe_ranges, random_images, random_model, short
from pipeline.artifacts.onnx import open_onnx, save_onnx
from pipeline.artifacts.opened import Predictor
from pipeline.models import ModelConfig, RealImageTransform, load_model
from pipeline.quantization.agreement import largest_deviation, relative_error
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.graphs import convert, export_images, reexport

# How a file is stored: bits of its weights, and the type that holds them.
_STORED: dict[str, tuple[int, Any]] = {"int8": (8, "int8"), "uint8": (8, "uint8"), "7 bits": (7, "int8")}
_CALIBRATION = 32  # images


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON line, as plain data."""
    torch.set_num_threads(options.threads)
    model, images = _read(options) if options.images else _make(options)
    calibration, images = images[:_CALIBRATION], images[_CALIBRATION:]
    with torch.inference_mode():
        floating = model(images)
    with tempfile.TemporaryDirectory() as folder:
        predictors, rows = _files(model, calibration, images, floating, Path(folder))
    latency = latencies(predictors, images, options.batches, options.rounds)
    rows = {name: {**row, "ms_per_image": latency[name]} for name, row in rows.items()}
    return {
        "model": options.model,
        "images": len(images) if options.images else "uniform noise",
        "files": rows,
        **circumstances("benchmarks.onnx_weights", torch.device("cpu")),
    }


def _make(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    model = random_model(options.model)
    return model, random_images(model, _CALIBRATION + max(*options.batches, 32))


def _read(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    loaded = load_model(ModelConfig(name=options.model))
    transform = RealImageTransform(loaded)
    codes = pq.read_table(options.images, columns=["image"])["image"].to_pylist()
    return loaded.model, torch.stack([transform(Image.open(io.BytesIO(code["bytes"]))) for code in codes])


def _files(
    model: nn.Module, calibration: Tensor, images: Tensor, floating: Tensor, folder: Path
) -> tuple[dict[str, Predictor], dict[str, dict[str, Any]]]:
    """Write, open and compare a file of each kind."""
    program = export_images(model, "linear")
    ranges = observe_ranges(model, calibration)
    path = folder / "fp32.onnx"
    save_onnx(program, path)
    predictors = {"fp32": open_onnx(str(path)).predict}
    rows: dict[str, dict[str, Any]] = {"fp32": {"size_mb": round(path.stat().st_size / 1e6, 3)}}
    for name, (bits, stored) in _STORED.items():
        quantized = reexport(convert(program, BitWidths(weights=bits), "linear", ranges), program)
        with torch.inference_mode():
            expected = quantized.module()(images)
        path = folder / f"{name}.onnx"
        save_onnx(quantized, path, weights=stored)
        predictors[name] = open_onnx(str(path)).predict
        logits = predictors[name](images)
        rows[name] = {
            "size_mb": round(path.stat().st_size / 1e6, 3),
            "fp32_error": short(relative_error(logits, floating)),
            "pt2_fp32_error": short(relative_error(expected, floating)),
            "deviation_from_pt2": short(relative_error(logits, expected)),
            "bound": short(largest_deviation(expected, floating)),
            "agreement_with_fp32": short(100 * (logits.argmax(1) == floating.argmax(1)).float().mean().item()),
        }
    return predictors, rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--images", help="Parquet with a column `image`; more than 32, which calibrate")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    print(json.dumps(measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
