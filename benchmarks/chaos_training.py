"""Kill workers, nodes and drivers of trainings and calibrations, and compare their results with undisturbed ones.

    python -m benchmarks.chaos_training --kills 20 --seed 0

Each job runs with two workers on a cluster as that of `benchmarks.chaos`, under two kills: a training at the beginning
of an epoch, a calibration at a worker's batch. A job that ends before it is done is run again. Prints one JSON line:
kills that struck, and whether every weight of students and artifacts is the same to the last bit as that of the same
job undisturbed. Exits with 1 if not. Needs the extra `test`.
"""

import argparse
import random
import re
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import yaml

from benchmarks.chaos_cluster import Nodes
from benchmarks.chaos_dataset import write_teacher
from benchmarks.chaos_episode import Outcome, play
from benchmarks.chaos_faults import Episode, Fault, Kind
from benchmarks.chaos_store import FaultyStore
from benchmarks.circumstances import circumstances
from benchmarks.drill import Result, drill, parser_of
from pipeline.dataset import write_images

JOBS = ("distill", "calibrate")
KINDS: tuple[Kind, ...] = ("actor_killed", "node_replaced", "driver_killed", "driver_terminated")
_AT_ONCE = 2
# At least as many epochs, and as many batches of each worker.
_TIMES = 4
_IMAGES, _CLASSES = 32, 10
# What torch.export notes of where a graph lay in memory.
_ADDRESS = re.compile(rb'graph_id\\*": \d+')


def draw_kills(num_kills: int, seed: int) -> list[tuple[str, Episode]]:
    """Draw jobs in turn and their kills, each kind about as often as any other."""
    draws = random.Random(seed)
    deck: list[Kind] = []
    while len(deck) < num_kills:
        deck += draws.sample(KINDS, len(KINDS))
    drawn = []
    for number, start in enumerate(range(0, num_kills, _AT_ONCE)):
        kinds = deck[start : min(start + _AT_ONCE, num_kills)]
        times = sorted(draws.sample(range(_TIMES), len(kinds)))
        drawn.append((JOBS[number % len(JOBS)], Episode("local", tuple(map(Fault, kinds, times)))))
    return drawn


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """The JSON line, as plain data."""
    started = time.monotonic()
    write_teacher(folder / "teacher")
    pixels = np.random.default_rng(0).integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8)
    labels, names = [row % _CLASSES for row in range(_IMAGES)], [f"class {label}" for label in range(_CLASSES)]
    write_images(str(folder / "images.parquet"), pixels, labels, names)
    store = FaultyStore()
    nodes = Nodes(cpus=1)
    try:
        expected = {job: _weights(_run(job, Episode("local", ()), "undisturbed", nodes, store, folder)) for job in JOBS}
        outcomes, different = [], []
        for number, (job, episode) in enumerate(draw_kills(options.kills, options.seed)):
            output = _run(job, episode, str(number), nodes, store, folder, outcomes)
            if _weights(output) != expected[job]:
                different.append(output.name)
            print(f"{job} {number}: {episode.faults}, {outcomes[-1]}; different: {different}", file=sys.stderr)
    finally:
        nodes.close()
        store.close()
    result = {**_result(options.kills, outcomes, different), "seconds": round(time.monotonic() - started)}
    more = {"seed": options.seed, "ray": ray.__version__}
    return {**result, **more, **circumstances("benchmarks.chaos_training", torch.device("cpu"))}


def is_right(result: Result) -> bool:
    """Return whether every kill struck, and left no trace."""
    return bool(result["identical"] and result["kills"] == result["drawn"] and not result["unexpected"])


def _run(
    job: str,
    episode: Episode,
    name: str,
    nodes: Nodes,
    store: FaultyStore,
    folder: Path,
    outcomes: list[Outcome] | None = None,
) -> Path:
    """Run a job under kills, append how it went, and return its output."""
    output = folder / f"{job}-{name}"
    config = folder / f"{job}-{name}.yaml"
    config.write_text(yaml.safe_dump(_settings(job, folder, output)))
    arguments = [f"jobs.{job}", "--config", str(config)]
    outcome = play(episode, arguments, str(output), nodes, store, folder / f"orders-{job}-{name}")
    if outcomes is not None:
        outcomes.append(outcome)
    elif not outcome.complete:
        raise SystemExit(f"the undisturbed {job} failed: see {folder}")
    return output


def _settings(job: str, folder: Path, output: Path) -> dict[str, Any]:
    common = {
        "teacher": {"name": f"local-dir:{folder / 'teacher'}"},
        "images": str(folder / "images.parquet"),
        "output": str(output),
        "batch_size": 4,
        "workers": {"size": 2, "device": "cpu"},
    }
    if job == "distill":
        return {**common, "student": {"depth_pruned": [0]}, "epochs": _TIMES + 1}
    return {**common, "settings": [{"weights": 8, "activations": 8}], "formats": ["pt2"]}


def _weights(output: Path) -> dict[str, bytes]:
    """Return the weights of students, and what is in artifacts."""
    found = {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*.safetensors")}
    for file in output.rglob("*.pt2"):
        # The archive itself holds times.
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if not name.endswith("serialization_id")]
            found |= {f"{file.name}/{name}": _ADDRESS.sub(b"", archive.read(name)) for name in names}
    return found


def _result(drawn: int, outcomes: Sequence[Outcome], different: list[str]) -> dict[str, Any]:
    struck = [one.kind for outcome in outcomes for one in outcome.struck]
    return {
        "kills": len(struck),
        "drawn": drawn,
        "identical": not different and all(outcome.complete for outcome in outcomes),
        "different": different,
        "by_kind": dict(sorted(Counter(struck).items())),
        "jobs": len(outcomes),
        "exit_codes": dict(sorted(Counter(str(code) for outcome in outcomes for code in outcome.codes).items())),
        "unexpected": [line for outcome in outcomes for line in outcome.unexpected],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="decides who is killed, and when")
    return drill(parser, measure, is_right, argv)


if __name__ == "__main__":
    sys.exit(main())
