"""Compare observers on a quantized teacher: top-1 of every observer, bit width and set of images.

    python -m benchmarks.observers --teacher local-dir:runs/demo/digits/teacher \\
        --labeled runs/demo/digits/held_out.parquet --images sparse=runs/demo/sparse dense=runs/demo/dense \\
        noise=runs/demo/noise real=runs/demo/digits/real.parquet

One pass over each set of images counts the values for all observers. Layers are rounded in a simulation of the
quantized graph, whose points and scales are those of the artifacts. `--plant` plants outliers into the teacher
(`benchmarks/outliers.py`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.circumstances import circumstances
from benchmarks.markdown import table
from benchmarks.outliers import plant_outliers
from pipeline.dataset.collection import find_images
from pipeline.dataset.rows import read_unit
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.quantization.batches import gather_batches, plan_windows
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import export_images
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.observers import HistogramObserver, MeanSquaredError, MinMax, Observer, Percentile
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.reading import iterate_inputs, read_patch_counts
from pipeline.quantization.simulation import Simulation

WIDTHS = tuple(BitWidths(weights=weights, activations=bits) for weights, bits in ((8, 8), (4, 8), (3, 8), (4, 4)))
OBSERVERS = {
    "min_max": MinMax,
    "percentile 99.9": partial(Percentile, 99.9),
    "percentile 99.99": partial(Percentile, 99.99),
    "percentile 99.999": partial(Percentile, 99.999),
    "mse": MeanSquaredError,
}


def observe(loaded: LoadedModel, uri: str, placement: Placement) -> dict[str, HistogramObserver]:
    """Count the values at every point, of all images, on their kept patches."""
    images = find_images(uri)
    batches = [
        batch
        for window in plan_windows(read_patch_counts(images, loaded, dense=False), 32, None, 0)
        for batch in window.batches
    ]
    observer = RangeObserver(loaded.model, placement, HistogramObserver)
    rows = iterate_inputs(images, loaded, {image_id for batch in batches for image_id in batch})
    observer.observe(gather_batches(rows, batches))
    return observer.observers  # type: ignore[return-value]


def read_labeled(loaded: LoadedModel, uri: str) -> tuple[Tensor, Tensor]:
    """Return normalized images [N, C, H, W] and their labels [N], in this process."""
    images = find_images(uri)
    tables = [read_unit(images.sources[number], unit, ["image_id", "label"]) for number, unit in images.units]
    labels = {str(row["image_id"]): row["label"] for part in tables for one in part for row in one.to_pylist()}
    rows = list(iterate_inputs(images, loaded, labels))
    pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
    return pixels, torch.tensor([labels[row["image_id"]] for row in rows])


def ranges_of(name: str, counted: dict[str, HistogramObserver]) -> dict[int, Ranges]:
    """Return the ranges of an observer that saw what was counted, for each bit width of activations."""
    observers: dict[str, Observer] = {}
    for point, seen in counted.items():
        observers[point] = OBSERVERS[name]()
        vars(observers[point]).update(vars(seen))
    bits = {widths.activations for widths in WIDTHS}
    return {width: {point: observer.range(width) for point, observer in observers.items()} for width in bits}


def top1(simulation: Simulation, images: Tensor, labels: Tensor, bits: BitWidths) -> float:
    """Percent of the images that the quantized model classifies as labeled."""
    predicted = simulation.predict(images, dict.fromkeys(simulation.num_weights, bits)).argmax(1)
    return 100 * (predicted == labels).double().mean().item()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--labeled", required=True)
    parser.add_argument("--images", nargs="+", required=True, metavar="NAME=URI")
    parser.add_argument("--placement", default="linear", choices=["linear", "matmul", "published"])
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    loaded = load_model(ModelConfig(name=options.teacher))
    if options.plant:
        loaded = replace(loaded, model=plant_outliers(loaded.model))
    program = export_images(loaded.model, options.placement)
    images, labels = read_labeled(loaded, options.labeled)
    rows = []
    for name, _, uri in (item.partition("=") for item in options.images):
        counted = observe(loaded, uri, options.placement)
        for observer in OBSERVERS:
            simulation = Simulation(program, options.placement, ranges_of(observer, counted))
            scores = [f"{top1(simulation, images, labels, bits):.1f}" for bits in WIDTHS]
            rows.append([name, observer, *scores])
            print(*rows[-1], file=sys.stderr, flush=True)
    print(table(["images", "observer", *(bits.label.upper() for bits in WIDTHS)], rows))
    print(f"\n{json.dumps(circumstances('benchmarks.observers', torch.device('cpu')))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
