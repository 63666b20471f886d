"""The benchmark of steps: the line of a small model, and correct ratios."""

import json
from collections.abc import Iterator

import pytest
import torch

from benchmarks.inversion import main, ratios
from pipeline.precision import has_bfloat16

SMALL = ["--model=test_vit", "--alive=23", "--rounds=1", "--steps=1", "--threads=1"]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_line_of_figures(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--batch=2", "--micro-batch=1", f"--dtype={dtype}"])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert ("bfloat16 is emulated" in printed.err) == (dtype == "bfloat16" and not has_bfloat16())
    seconds = found["seconds"]
    assert seconds.keys() == {"dense", "sparse", "plain_dense", "plain_sparse"}
    for pair, ratio in found["ratios"].items():
        first, second = pair.split("/")
        assert ratio == pytest.approx(seconds[first] / seconds[second], rel=1e-2)
    assert 3 < found["work"]["counted_ratio"] < 100 / 23 + 1
    assert found["compile_s"] == {"dense": 0, "sparse": 0}


def test_compiled_steps_are_compared_with_eager_ones() -> None:
    rounds = [{"dense": 2.0, "sparse": 1.0, "eager_dense": eager, "eager_sparse": 3.0} for eager in (4.0, 6.0, 7.0)]
    assert ratios(rounds) == {"dense/sparse": 2.0, "eager_dense/dense": 3.0, "eager_sparse/sparse": 3.0}
