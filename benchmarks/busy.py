"""Measure what share of the time that a GPU is held it inverts, while parts are encoded and written beside it.

    python -m benchmarks.busy --shard-s 60 --images 128 --shards 5

A logical GPU and a stub that sleeps stand for the inversion; encoding, writing and all of Ray are real. Counted is the
time from the begin of the first shard, when the worker is warm, to the end of the last one. With `--serial`, shards are
encoded and written between two inversions, as in earlier versions. Prints one JSON line.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import timm
import torch

from benchmarks.circumstances import circumstances
from benchmarks.rounds import short
from pipeline.config import from_dict
from pipeline.models import save_model
from pipeline.synthesis import SynthesisConfig, synthesize
from pipeline.synthesis.actor import InvertedShard, Inverter
from pipeline.synthesis.guard import GuardedWriter
from pipeline.synthesis.outcome import Outcome

_SIDE = 224


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON line, as plain data."""
    with tempfile.TemporaryDirectory(prefix="busy-") as folder:
        log, stub = str(Path(folder, "log")), (options.shard_s, options.serial)
        hook = {"worker_process_setup_hook": lambda: set_up(log, *stub)}
        ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, runtime_env=hook)
        summary = synthesize(from_dict(SynthesisConfig, _settings(Path(folder), options)))
        ray.shutdown()
        spans = sorted(json.loads(line) for line in Path(log).read_text().splitlines())
    held = max(end for _, end in spans) - spans[0][0]
    return {
        "busy": short(sum(end - begin for begin, end in spans) / held),
        "shards": len(spans),
        "shard_s": options.shard_s,
        "images": options.images,
        "serial": options.serial,
        "between_s": short((held - sum(end - begin for begin, end in spans)) / max(1, len(spans) - 1)),
        "complete": summary["complete"],
        "ray": ray.__version__,
        **circumstances("benchmarks.busy", torch.device("cpu")),
    }


def _settings(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    sizes: dict[str, Any] = {"img_size": _SIDE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
    names = [f"class {label}" for label in range(10)]
    save_model(model, folder / "teacher", class_names=names, mean=(0.5,) * 3, std=(0.5,) * 3)
    return {
        "teacher": {"name": f"local-dir:{folder / 'teacher'}"},
        "output": str(folder / "output"),
        "classes": [0],
        "images_per_class": options.images * options.shards,
        "shard_size": options.images,
    }


def set_up(log: str, shard_s: float, serial: bool) -> None:
    """Let a worker sleep instead of inverting, and write down when; called by Ray in each of them."""

    def invert_shard(self: Inverter, shard_id: int, labels: Sequence[int], image_ids: Sequence[str]) -> InvertedShard:
        begin = time.time()
        time.sleep(shard_s)
        with Path(log).open("a") as file:
            file.write(f"{json.dumps([begin, time.time()])}\n")
        return _pictures(shard_id, labels, image_ids, self.class_names)

    Inverter.invert_shard = invert_shard  # pyright: ignore[reportAttributeAccessIssue]
    if serial:
        whole = GuardedWriter._invert

        def in_turn(self: GuardedWriter, turn: int, *, first: bool) -> Any:
            # In the inverting thread, so that the next shard waits for it.
            inverted = whole(self, turn, first=first)
            return inverted if inverted is None or isinstance(inverted, Outcome) else self._store(inverted)

        GuardedWriter._invert = in_turn  # pyright: ignore[reportAttributeAccessIssue]


def _pictures(shard_id: int, labels: Sequence[int], image_ids: Sequence[str], class_names: list[str]) -> InvertedShard:
    """Return a shard of noise, which takes longest to encode."""
    count, noise = len(labels), np.random.default_rng(shard_id)
    columns: dict[str, list[Any]] = {
        "image": list(noise.integers(0, 256, (count, _SIDE, _SIDE, 3), np.uint8)),
        "label": list(labels),
        "keep_indices": [list(range(46))] * count,
        "image_id": list(image_ids),
        "shard_id": [shard_id] * count,
        "class_loss": [0.5] * count,
        "teacher_confidence": [0.5] * count,
        "teacher_prediction": list(labels),
    }
    return InvertedShard(shard_id, class_names, columns, None, [], [1] * count, 0.0, 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard-s", type=float, default=60.0, help="seconds that a shard is inverted")
    parser.add_argument("--images", type=int, default=128, help="per shard")
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--serial", action="store_true", help="encode and write between two inversions")
    print(json.dumps(measure(parser.parse_args(argv))), flush=True)


if __name__ == "__main__":
    main()
