"""Draw calibration images at random, by image id."""

import hashlib


def sampling_rank(image_id: str, seed: int) -> int:
    """Return an image's place in a random order of all images: its own name and the seed decide, nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:7], "big")
