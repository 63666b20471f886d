"""Add a node to a cluster on which a training has fewer workers than it wants, and see it take another one.

    python -m benchmarks.growth

A training that wants two workers and is content with one starts on a cluster with room for one. In its third epoch a
node joins, and the training is held in that epoch until its worker is ended to be started again beside another. Prints
one JSON line: workers at the end and in each epoch, seconds from the node's arrival to the end of the epoch, whether
every epoch is there once and read every image once. Exits with 1 if not, or if there was no second worker. Needs the
extra `test`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[reportMissingModuleSource]  # Ray brings it, and it is found once Ray is imported
import ray
import torch
import yaml

from benchmarks.chaos_cluster import JobProcess, Nodes
from benchmarks.chaos_dataset import write_teacher
from benchmarks.chaos_faults import Fault
from benchmarks.chaos_worker import FOLDERS
from benchmarks.circumstances import circumstances
from benchmarks.drill import Result, drill, parser_of
from pipeline.dataset import write_images

_IMAGES, _CLASSES, _EPOCHS = 64, 10, 6
# Counts from 0. From this epoch on, each waits for up to a minute for something from outside, which growing is here.
_FIRST_HELD = 2
_HOLDS = [Fault("node_replaced", epoch).names[0] for epoch in range(_FIRST_HELD, _EPOCHS)]
_STARTS_S, _RUN_S = 400.0, 300.0


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """The JSON line, as plain data."""
    started = time.monotonic()
    config, orders = _write_config(folder), folder / "orders-of-it"
    for name in FOLDERS:
        (orders / name).mkdir(parents=True)
    for name in _HOLDS:
        (orders / "orders" / name).touch()
    nodes = Nodes(cpus=1, num_nodes=0)
    try:
        env = {"CHAOS": str(orders), "GROWTH_LOOK_S": str(options.look_s)}
        job = JobProcess(["benchmarks.growth_job", "--config", str(config)], nodes.address, env, folder / "run")
        held = orders / "struck" / _HOLDS[0]
        job.wait_for(held.exists, _STARTS_S)
        nodes.grow()
        joined, alone = time.monotonic(), json.loads(held.read_text())["pid"]
        # The training ends its workers to start them again with the new one.
        job.wait_for(lambda: not psutil.pid_exists(alone), _STARTS_S)
        for name in _HOLDS:
            (orders / "acted" / name).touch()
        job.wait_for(lambda: len(_rows(folder / "student")) > _FIRST_HELD, _STARTS_S)
        grown_s = time.monotonic() - joined
        job.wait(_RUN_S)
    finally:
        nodes.close()
    result = {**_result(job, folder / "student"), "grown_s": round(grown_s, 1), "look_s": options.look_s}
    more = {"seconds": round(time.monotonic() - started), "ray": ray.__version__}
    return {**result, **more, **circumstances("benchmarks.growth", torch.device("cpu"))}


def is_right(result: Result) -> bool:
    """Return whether a worker was added, and no image came twice or was left out."""
    return result["exit_code"] == 0 and result["workers"] == 2 and result["each_image_once"]


def _write_config(folder: Path) -> Path:
    write_teacher(folder / "teacher")
    pixels = np.random.default_rng(0).integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8)
    names = [f"class {label}" for label in range(_CLASSES)]
    write_images(str(folder / "images.parquet"), pixels, [row % _CLASSES for row in range(_IMAGES)], names)
    values = {
        "teacher": {"name": f"local-dir:{folder / 'teacher'}"},
        "student": {"depth_pruned": [0]},
        "images": str(folder / "images.parquet"),
        "output": str(folder / "student"),
        "epochs": _EPOCHS,
        "batch_size": 8,
        # Growing waits for four of them.
        "checkpoint_minutes": 0.01,
        "workers": {"size": 2, "min_size": 1, "device": "cpu"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


def _rows(output: Path) -> list[dict[str, Any]]:
    """Return what is written of each epoch."""
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _result(job: JobProcess, output: Path) -> dict[str, Any]:
    rows = _rows(output)
    epochs, images = [row["epoch"] for row in rows], {(row["images"], row["image_ids_checksum"]) for row in rows}
    digests = json.loads((output / "result.json").read_text())["weights_sha256"] if job.code == 0 else []
    return {
        "workers": len(digests),
        "workers_by_epoch": [row["workers"] for row in rows],
        "equal_weights": len(set(digests)) == 1,
        "each_image_once": epochs == list(range(1, _EPOCHS + 1)) and len(images) == 1 and images.pop()[0] == _IMAGES,
        "epochs": len(rows),
        "exit_code": job.code,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--look-s", type=float, default=5.0, help="seconds between two looks for room; 300 in jobs")
    return drill(parser, measure, is_right, argv)


if __name__ == "__main__":
    sys.exit(main())
