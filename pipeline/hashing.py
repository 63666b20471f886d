"""Numbers from texts, for seeds and random orders: the same in every process, unlike Python's own `hash`."""

from hashlib import sha256


def hash_number(text: str, num_bytes: int) -> int:
    """Return the first bytes of a text's SHA-256 as a number of `8 * num_bytes` bits."""
    return int.from_bytes(sha256(text.encode()).digest()[:num_bytes])
