import pytest

from pipeline.synthesis.preview import choose
from pipeline.synthesis.shards import ShardPlan


def plan(classes: int, per_class: int) -> ShardPlan:
    return ShardPlan(range(classes), per_class, 16)


@pytest.mark.parametrize(
    ("classes", "per_class", "labels", "each"),
    [(10, 3, 10, 3), (10, 50, 10, 8), (40, 50, 40, 2), (96, 2, 96, 1), (1000, 1, 96, 1)],
)
def test_as_many_of_each_class_as_fit(classes: int, per_class: int, labels: int, each: int) -> None:
    shards = plan(classes, per_class)
    chosen = choose(shards, set(range(len(shards))))
    found = [label for label, _, _ in chosen]
    assert len(set(found)) == labels
    assert {found.count(label) for label in found} == {each}
    assert found == sorted(found)


def test_only_what_is_done() -> None:
    assert choose(plan(10, 4), {1}) == [(label, 1, (label - 4) * 4 + row) for label in range(4, 8) for row in range(4)]
    assert choose(plan(10, 4), set()) == []
