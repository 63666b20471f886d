"""Draw calibration images at random, by image id."""

import hashlib


def sampling_rank(image_id: str, seed: int) -> int:
    """Return an image's rank in a random order of all images, which depends only on its name and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:7], "big")
