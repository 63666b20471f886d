"""Which images to calibrate on, where there are more than are wanted. No torch: Ray's tasks import it."""

import hashlib

import pyarrow as pa


def sampling_rank(image_id: str, seed: int) -> int:
    """Where an image comes in a random order of all images: its own name and the seed decide, nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:7], "big")


def lowest_ranked(rows: pa.Table, count: int, seed: int) -> pa.Table:
    """The rows of a block that could be among the `count` images drawn from all blocks."""
    ranks = [sampling_rank(image_id, seed) for image_id in rows["image_id"].to_pylist()]
    lowest = sorted(range(len(ranks)), key=ranks.__getitem__)[:count]
    return rows.take(sorted(lowest))
