"""Nearest neighbors: exact, and the same whatever is far away."""

import numpy as np
import pytest

from pipeline.synthesis.neighbors import nearest, nearest_within, pixel_vectors


def test_the_nearest_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    queries, references = random.standard_normal((700, 5)), random.standard_normal((31, 5))
    distances, indices = nearest(queries, references)
    every = np.linalg.norm(queries[:, None] - references[None], axis=2)
    assert np.array_equal(indices, every.argmin(axis=1))
    assert np.allclose(distances, every.min(axis=1))


def test_an_equal_vector_is_at_distance_zero() -> None:
    vectors = np.array([[1e4, 1], [1e4, 1.001], [0, 0]], np.float32)
    distances, indices = nearest(vectors, vectors)
    assert distances.tolist() == [0, 0, 0]
    assert indices.tolist() == [0, 1, 2]


def test_within_a_label_no_vector_is_its_own_neighbor_and_a_lonely_one_has_none() -> None:
    vectors, labels = np.array([[0], [3], [4], [3.5], [9]], np.float32), np.array([0, 0, 0, 1, 2])
    distances, indices = nearest_within(vectors, labels)
    assert indices.tolist() == [1, 2, 1, -1, -1]
    assert distances[:3].tolist() == [3, 1, 1]
    assert np.isnan(distances[3:]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_are_one_apart_at_any_size(channels: int) -> None:
    for sides in ((8, 8), (64, 64), (8, 48)):
        images = [np.full((side, side, channels), value, np.uint8) for side, value in zip(sides, (0, 255), strict=True)]
        vectors = pixel_vectors(images)
        assert np.linalg.norm(vectors[0] - vectors[1]) == pytest.approx(1)
