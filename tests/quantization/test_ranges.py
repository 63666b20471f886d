"""Ranges: comparing and checking them."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.errors import DatasetError
from pipeline.quantization import range_error
from pipeline.quantization.ranges import check_observed_ranges, reduce_ranges


def test_range_error_is_the_mean_share_of_the_real_range() -> None:
    reference = {"a": (0.0, 10.0), "b": (-1.0, 1.0)}
    ranges = {"a": (-1.0, 12.0), "b": (-1.0, 0.5)}
    assert range_error(ranges, reference) == pytest.approx(((1 + 2) / 10 + 0.5 / 2) / 2)
    assert range_error(reference, reference) == 0


def test_ranges_of_different_observers_are_not_compared() -> None:
    with pytest.raises(DatasetError, match=r"different observers: \['b'\]"):
        range_error({"a": (0, 1)}, {"a": (0, 1), "b": (0, 1)})


def test_an_empty_reference_range_is_refused() -> None:
    with pytest.raises(DatasetError, match="reference range of 'a' is empty"):
        range_error({"a": (0, 1)}, {"a": (2, 2)})


@pytest.mark.parametrize("bounds", [(math.inf, -math.inf), (0.0, math.nan), (-math.inf, 1.0)])
def test_ranges_without_a_scale_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(DatasetError, match=r"'head:input' have no finite range"):
        check_observed_ranges({"head:input": bounds})


def reduce_with_nan(rank: int, folder: str) -> None:
    """Take part in two reductions as one of two workers: in each, another worker saw NaN."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    seen = {"first": (-1.0, 2.0), "second": (-1.0, 2.0), "both": (-1.0 - rank, 2.0 + rank)}
    seen["first" if rank == 0 else "second"] = (math.nan, math.nan)
    Path(folder, f"{rank}.json").write_text(json.dumps(reduce_ranges(seen, torch.device("cpu"))))
    dist.destroy_process_group()


def test_nan_that_one_worker_saw_is_not_lost_among_the_others(tmp_path: Path) -> None:
    mp.spawn(reduce_with_nan, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        ranges = {name: tuple(bounds) for name, bounds in json.loads((tmp_path / f"{rank}.json").read_text()).items()}
        assert ranges["both"] == (-2, 3)
        for name in ("first", "second"):
            with pytest.raises(DatasetError, match=f"'{name}' have no finite range"):
                check_observed_ranges({name: ranges[name]})
