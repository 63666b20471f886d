"""Nearest neighbors among small sets of vectors, exactly."""

import numpy as np
from PIL import Image

from pipeline.pictures import as_picture

# Number of queries at a time: distances to 10,000 references then take 40 MB.
_CHUNK = 512
# Side, in pixels, of the squares that images are shrunk to.
_SIDE = 32


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean distance of each query's nearest reference, and which it is.

    Args:
        queries: float [N, D], one vector per row.
        references: float [M, D], at least one vector.

    Returns:
        Distances float64 [N], and indices int64 [N].
    """
    # Squares of float32 would leave no digits of the small distances that matter here.
    points = references.astype(np.float64)
    squares = np.square(points).sum(axis=1)
    distances, indices = np.empty(len(queries)), np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _CHUNK):
        chunk = queries[start : start + _CHUNK].astype(np.float64)
        squared = np.square(chunk).sum(axis=1)[:, None] + squares - 2 * chunk @ points.T
        best = squared.argmin(axis=1)
        indices[start : start + _CHUNK] = best
        # Computed again for the nearest ones, because rounding may turn a small squared distance negative.
        distances[start : start + _CHUNK] = np.linalg.norm(chunk - points[best], axis=1)
    return distances, indices


def nearest_within(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each vector's nearest other one with its label, and which it is.

    Args:
        vectors: float [N, D], one vector per row.
        labels: int [N], label of each vector.

    Returns:
        Distances float64 [N], NaN where no other has the label; and indices int64 [N], -1 there.
    """
    distances, indices = np.full(len(vectors), np.nan), np.full(len(vectors), -1, np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        for row in rows if len(rows) > 1 else ():
            others = rows[rows != row]
            (distances[row],), (best,) = nearest(vectors[row : row + 1], vectors[others])
            indices[row] = others[best]
    return distances, indices


def pixel_vectors(images: list[np.ndarray]) -> np.ndarray:
    """Return images as vectors whose Euclidean distance is the root mean square difference of their pixels.

    Args:
        images: uint8 [H, W, C] with 1 or 3 channels, which may differ in size but not in channels. They are shrunk to
            32x32 pixels if any is larger, or if their sizes differ.

    Returns:
        float32 [N, D]; pixels are in [0, 1] before the division by √D.
    """
    same = len({image.shape for image in images}) <= 1 and all(max(image.shape[:2]) <= _SIDE for image in images)
    arrays = images if same else [_square(image) for image in images]
    flat = np.stack([array.reshape(-1) for array in arrays]).astype(np.float32)
    return flat / (255 * np.sqrt(flat.shape[1], dtype=np.float32))


def _square(image: np.ndarray) -> np.ndarray:
    square = as_picture(image).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(square).reshape(_SIDE, _SIDE, image.shape[2])
