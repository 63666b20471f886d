"""Measure seconds per inversion step: this engine and a plain one, each dense and sparse, in one process.

    python -m benchmarks.inversion --model deit_base_patch16_224 --batch 8 --alive 46 --dtype bfloat16

The four are stepped in turn, so that a machine whose speed drifts slows all; each ratio is the median of the rounds'
ratios. The plain one is always fp32. With `--compile` ours are compiled, and two that are not stand beside them.

Beside the seconds: the operations counted (`pipeline.inversion.flops`), what that makes a second, and the machine's own
peak in a product of large matrices of the same type. Weights are random: they do not change the work. Prints one JSON
line.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch

from benchmarks.circumstances import circumstances
from benchmarks.plain import PlainInversion
from pipeline.inversion import Inversion, InversionConfig, Teacher, frozen_copy
from pipeline.inversion.flops import TeacherShape, step_flops
from pipeline.precision import announce_dtype

Steps = dict[str, Callable[[], object]]

# A step before the stop; after it one to compile, one to warm up and one to record a CUDA graph.
WARM_UP = 4
_LONGEST_PRODUCT_S = 0.5


def make_run(options: argparse.Namespace, teacher: Teacher, *, alive: int | None, steps: int) -> Inversion:
    """An inversion that from its second step on reads `alive` patches of each image; None for all of them."""
    stops: dict[str, Any] = {"stop_steps": [], "stop_fractions": []}
    if alive is not None:
        # Half a patch more than wanted: the engine rounds down.
        stops = {"stop_steps": [1], "stop_fractions": [1 - (alive + 0.5) / teacher.num_patches]}
    config = InversionConfig(
        iterations=steps, dtype=options.dtype, compile=options.compile, micro_batch=options.micro_batch, **stops
    )
    targets = torch.arange(options.batch) % teacher.num_classes
    return Inversion(teacher, targets, config, seeds=list(range(options.batch)))


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Mean seconds of some calls."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return operations per second of the machine's best product of two large square matrices.

    They are smaller where a product would take long, as one in bfloat16 does on a processor without the instructions.
    """
    largest = 8192 if device.type == "cuda" else 2048
    size = 256
    # A product of twice the size takes eight times as long.
    while size < largest and 8 * _product_seconds(size, dtype, device, of=3) < _LONGEST_PRODUCT_S:
        size *= 2
    return 2 * size**3 / _product_seconds(size, dtype, device, of=8)


def _product_seconds(size: int, dtype: torch.dtype, device: torch.device, *, of: int) -> float:
    """Return the least of several measurements, after three products that warm up."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.matmul(left, right)
    return min(seconds(lambda: left @ right, 2, device) for _ in range(of))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The JSON line, as plain data."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    announce_dtype(options.dtype, on_gpu=device.type == "cuda")
    teacher, ours, steps = _make_runs(options, device)
    for step in steps.values():
        seconds(step, WARM_UP, device)
    rounds = take_turns(steps, options, device)
    medians = {name: statistics.median(took[name] for took in rounds) for name in steps}
    return {
        "model": options.model,
        "batch": options.batch,
        "micro_batch": options.micro_batch,
        "patches": [teacher.num_patches, options.alive],
        "dtype": options.dtype,
        "seconds": {name: float(f"{value:.4g}") for name, value in medians.items()},
        "ratios": ratios(rounds),
        "work": _work(options, teacher, medians, matmul_peak(getattr(torch, options.dtype), device)),
        "compile_s": {name: round(run.result().compile_s, 1) for name, run in ours.items()},
        **circumstances("benchmarks.inversion", device),
    }


def take_turns(runs: Steps, options: argparse.Namespace, device: torch.device) -> list[dict[str, float]]:
    """Seconds of a step of each run, round by round."""
    return [{name: seconds(step, options.steps, device) for name, step in runs.items()} for _ in range(options.rounds)]


def _make_runs(options: argparse.Namespace, device: torch.device) -> tuple[Teacher, dict[str, Inversion], Steps]:
    """The teacher, our runs as asked for, and the steps of all that are compared."""
    torch.manual_seed(0)
    teacher = Teacher(timm.create_model(options.model), mean=(0.5,) * 3, std=(0.5,) * 3).to(device)
    ours = _our_runs(options, teacher)
    steps: Steps = {name: run.step for name, run in ours.items()}
    if options.compile:
        eager = _our_runs(argparse.Namespace(**{**vars(options), "compile": False}), teacher)
        steps |= {f"eager_{name}": run.step for name, run in eager.items()}
    if options.plain:
        targets = torch.arange(options.batch) % teacher.num_classes
        for name, alive in (("plain_dense", None), ("plain_sparse", options.alive)):
            model = timm.create_model(options.model).to(device)
            steps[name] = PlainInversion(model, targets, alive=alive).step
    return teacher, ours, steps


def _our_runs(options: argparse.Namespace, teacher: Teacher) -> dict[str, Inversion]:
    total = WARM_UP + options.steps * options.rounds
    ready = frozen_copy(teacher, options.dtype, compiled=options.compile)
    return {
        name: make_run(options, ready, alive=alive, steps=total)
        for name, alive in (("dense", None), ("sparse", options.alive))
    }


def ratios(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds of how many times faster the second is than the first."""
    pairs = [("dense", "sparse")]
    if "eager_dense" in rounds[0]:
        pairs += [("eager_dense", "dense"), ("eager_sparse", "sparse")]
    if "plain_dense" in rounds[0]:
        pairs += [("plain_dense", "plain_sparse"), ("plain_dense", "dense"), ("plain_sparse", "sparse")]
    return {f"{a}/{b}": round(statistics.median(took[a] / took[b] for took in rounds), 3) for a, b in pairs}


def _work(options: argparse.Namespace, teacher: Teacher, medians: dict[str, float], peak: float) -> dict[str, Any]:
    """Counted operations of our steps, and how near to the machine's peak they come."""
    shape = TeacherShape.of(teacher)
    counted = {
        "dense": step_flops(shape, teacher.num_patches).total * options.batch,
        "sparse": step_flops(shape, options.alive).total * options.batch,
    }
    reached = {name: flops / medians[name] for name, flops in counted.items()}
    return {
        "gflop": {name: round(flops / 1e9, 2) for name, flops in counted.items()},
        "counted_ratio": round(counted["dense"] / counted["sparse"], 3),
        "gflop_per_s": {name: round(rate / 1e9, 1) for name, rate in reached.items()},
        "peak_gflop_per_s": round(peak / 1e9, 1),
        "share_of_peak": {name: round(rate / peak, 3) for name, rate in reached.items()},
    }


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that benchmarks of steps share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of ours")
    parser.add_argument("--micro-batch", type=int, help="of ours while every patch is alive; by default the batch")
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile")
    parser.add_argument("--steps", type=int, default=2, help="steps a round and run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--alive", type=int, default=46, help="patches an image keeps in the sparse runs")
    print(json.dumps(measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
