"""Draw calibration images at random, by image id."""

from pipeline.hashing import hash_number


def sampling_rank(image_id: str, seed: int) -> int:
    """Return an image's rank in a random order of all images, which depends only on its name and the seed."""
    return hash_number(f"{seed}:{image_id}", 7)
