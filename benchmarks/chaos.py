"""Run a synthesis under random faults, and compare the dataset with an undisturbed one, byte for byte.

    python -m benchmarks.chaos --faults 100 --seed 0

A cluster of four Ray nodes in one process tree, with logical GPUs, makes one tiny dataset after another, on a loopback
object store and in a local folder in turn, while faults of all kinds of `benchmarks.chaos_faults` strike shards. A job
that ends before its dataset is whole is run again. The undisturbed dataset is made in this process, without Ray.

Prints one JSON line: faults that were seen to strike; whether all datasets are identical in their parts and manifests;
parts that are lost or differ; files that are one too many; and seconds from each strike until the shard that it struck
was done. Exits with 1 if anything differs or a fault did not strike. Needs the extra `test`.
"""

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
import yaml

from benchmarks.chaos_cluster import NUM_NODES, Nodes
from benchmarks.chaos_dataset import Difference, compare, make_undisturbed, settings, write_teacher
from benchmarks.chaos_episode import Outcome, Struck, play
from benchmarks.chaos_faults import Episode, draw
from benchmarks.chaos_store import BUCKET, FaultyStore
from benchmarks.circumstances import circumstances
from benchmarks.drill import Result, drill, parser_of

# Shards for each fault of an episode.
_SHARDS_PER_FAULT = 3


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """The JSON line, as plain data."""
    started = time.monotonic()
    torch.set_num_threads(1)
    os.environ.update((store := FaultyStore()).env)
    num_shards = _SHARDS_PER_FAULT * min(options.faults, options.per_episode)
    episodes = draw(options.faults, options.seed, num_shards=num_shards, per_episode=options.per_episode)
    write_teacher(folder / "teacher")
    undisturbed = settings(folder / "teacher", str(folder / "undisturbed"), num_shards)
    make_undisturbed(undisturbed)
    nodes = Nodes()
    played: list[tuple[Outcome, Difference]] = []
    try:
        for number, episode in enumerate(episodes):
            output = f"s3://{BUCKET}/{number}" if episode.place == "s3" else str(folder / f"output-{number}")
            config = folder / f"{number}.yaml"
            config.write_text(yaml.safe_dump(settings(folder / "teacher", output, num_shards)))
            job = ["jobs.synthesize", "--config", str(config)]
            outcome = play(episode, job, output, nodes, store, folder / f"episode-{number}")
            played.append((outcome, compare(output, undisturbed["output"])))
            _tell(number, episode, *played[-1])
    finally:
        nodes.close()
        store.close()
    seconds = round(time.monotonic() - started)
    return {**_result(options.faults, played), "seconds": seconds, **_circumstances(options, num_shards, store)}


def is_right(result: Result) -> bool:
    """Return whether every fault struck, and left no trace."""
    return bool(result["identical"] and result["faults"] == result["drawn"] and not result["unexpected"])


def _result(drawn: int, played: Sequence[tuple[Outcome, Difference]]) -> dict[str, Any]:
    outcomes, differences = [outcome for outcome, _ in played], [difference for _, difference in played]
    struck = [one for outcome in outcomes for one in outcome.struck]
    lost, doubled = (sum(len(names) for names in each) for each in zip(*differences, strict=True))
    return {
        "faults": len(struck),
        "drawn": drawn,
        "identical": all(outcome.complete for outcome in outcomes) and not lost and not doubled,
        "lost": lost,
        "doubled": doubled,
        "recovered_s": _seconds(struck),
        "by_kind": {kind: _seconds(of_kind) for kind, of_kind in _by_kind(struck).items()},
        "datasets": len(played),
        "exit_codes": dict(sorted(Counter(str(code) for outcome in outcomes for code in outcome.codes).items())),
        "unexpected": [line for outcome in outcomes for line in outcome.unexpected],
    }


def _by_kind(struck: Sequence[Struck]) -> dict[str, list[Struck]]:
    return {kind: [one for one in struck if one.kind == kind] for kind in sorted({one.kind for one in struck})}


def _seconds(struck: Sequence[Struck]) -> dict[str, float]:
    """Return how many faults there were, and the seconds that it took until their shards were done."""
    seconds = [one.recovered_s for one in struck if one.recovered_s is not None]
    if not seconds:
        return {"faults": len(struck)}
    return {"faults": len(struck), "median": round(statistics.median(seconds), 1), "most": round(max(seconds), 1)}


def _tell(number: int, episode: Episode, outcome: Outcome, difference: Difference) -> None:
    kinds = ", ".join(f"{fault.kind} at {fault.shard_id}" for fault in episode.faults)
    print(
        f"dataset {number} on {episode.place}: {len(outcome.struck)} of {len(episode.faults)} faults struck ({kinds}); "
        f"runs ended with {outcome.codes}; lost {difference.lost}, doubled {difference.doubled}",
        file=sys.stderr,
        flush=True,
    )


def _circumstances(options: argparse.Namespace, num_shards: int, store: FaultyStore) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "shards_per_dataset": num_shards,
        "nodes": NUM_NODES,
        "requests_in_trouble": store.hit.total(),
        "ray": ray.__version__,
        **circumstances("benchmarks.chaos", torch.device("cpu")),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--faults", type=int, default=100, help="faults in all")
    parser.add_argument("--seed", type=int, default=0, help="decides which faults strike, and which shards")
    parser.add_argument("--per-episode", type=int, default=10, help="faults while one dataset is made")
    return drill(parser, measure, is_right, argv)


if __name__ == "__main__":
    sys.exit(main())
