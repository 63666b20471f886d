"""Lists of shards that are not done: short, and with the number of all."""

import pytest

from pipeline.dataset.undone import MOST_LISTED, id_ranges, list_undone
from pipeline.synthesis.classes import read_classes


@pytest.mark.parametrize(
    ("ids", "entries"),
    [([], []), ([2], [2]), ([0, 1, 7, 8], [0, 1, 7, 8]), ([0, 1, 2, 4, 9, 10, 11, 12], ["0-2", 4, "9-12"])],
)
def test_three_neighbors_are_a_range_and_fewer_stay_numbers(ids: list[int], entries: list[int | str]) -> None:
    assert id_ranges(ids) == entries


def test_ranges_are_written_as_those_of_classes() -> None:
    ids = [0, 1, 2, 4, 9, 10, 11, 12]
    assert [each for labels in read_classes(id_ranges(ids)) for each in labels] == ids


def test_of_very_many_the_first_are_listed_and_all_are_counted() -> None:
    scattered = list(range(0, 100_000, 2))
    records = [{"shard_id": shard_id, "reason": "NaN"} for shard_id in scattered]
    assert list_undone(failed=records, missing=scattered) == {
        "num_failed": 50_000,
        "failed": records[:MOST_LISTED],
        "num_missing": 50_000,
        "missing": scattered[:MOST_LISTED],
    }
