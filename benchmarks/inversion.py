"""Seconds a step of inversion, sparse against dense, in one process on one machine.

    python -m benchmarks.inversion --model deit_tiny_patch16_224 --batch 8 --alive 46

The two are stepped in turn, so that a machine whose speed drifts slows both; the ratio is the median of the rounds'
ratios. Weights are random: they do not change the work. Prints one JSON line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import timm
import torch

from pipeline.inversion import Inversion, InversionConfig, Teacher


def make_run(teacher: Teacher, *, batch: int, alive: int | None, dtype: str, steps: int) -> Inversion:
    """An inversion that from its second step on reads `alive` patches of each image; None for all of them."""
    stops: dict[str, Any] = {"stop_steps": [], "stop_fractions": []}
    if alive is not None:
        # Half a patch more than wanted: the engine rounds down.
        stops = {"stop_steps": [1], "stop_fractions": [1 - (alive + 0.5) / teacher.num_patches]}
    config = InversionConfig(iterations=steps, dtype=dtype, **stops)  # type: ignore[arg-type]
    targets = torch.arange(batch) % teacher.num_classes
    return Inversion(teacher, targets, config, seeds=list(range(batch)))


def seconds(run: Inversion, steps: int) -> float:
    """Mean seconds of some steps."""
    device = run.images.device
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        run.step()
    _wait(device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The JSON line, as plain data."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher(timm.create_model(options.model), mean=(0.5,) * 3, std=(0.5,) * 3).to(device)
    total = 2 + options.steps * options.rounds
    shape = {"batch": options.batch, "dtype": options.dtype, "steps": total}
    dense, sparse = make_run(teacher, alive=None, **shape), make_run(teacher, alive=options.alive, **shape)
    for run in (dense, sparse):
        seconds(run, 2)
    rounds = [(seconds(dense, options.steps), seconds(sparse, options.steps)) for _ in range(options.rounds)]
    return {
        "model": options.model,
        "batch": options.batch,
        "patches": [teacher.num_patches, sparse.keep_indices.shape[1]],
        "dtype": options.dtype,
        "dense_s": statistics.median(d for d, _ in rounds),
        "sparse_s": statistics.median(s for _, s in rounds),
        "ratio": statistics.median(d / s for d, s in rounds),
        "ratios": sorted(round(d / s, 3) for d, s in rounds),
        **circumstances(device),
    }


def circumstances(device: torch.device) -> dict[str, Any]:
    """What a figure was measured on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": f"python -m benchmarks.inversion {' '.join(sys.argv[1:])}".strip(),
        "commit": commit.stdout.strip() or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--alive", type=int, default=46, help="patches an image keeps in the sparse run")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=3, help="steps a round and run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    print(json.dumps(measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
