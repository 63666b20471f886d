"""Observers: exact for any number of workers, and right by hand."""

import copy
import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import MinMaxObserver

from pipeline.errors import ConfigError, DatasetError
from pipeline.models import ModelConfig
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.clipping import least_squares_range, squared_errors
from pipeline.quantization.histogram import MAX_BINS, Histogram, count_values, merge_histograms
from pipeline.quantization.observers import (
    MeanSquaredError,
    MinMax,
    Observer,
    ObserverName,
    Percentile,
    make_observer,
    merge_observers,
)
from pipeline.quantization.ranges import check_observed_ranges

BITS = (2, 4, 8, 16)


def batches() -> list[Tensor]:
    """Values of very different sizes: of one sign, of both, all zero, tiny, with an outlier."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(7, 40, 30, generator=generator)
    scaled = [values * 10.0**power for values, power in zip(drawn, (0, -3, 2, -30, 0, 1, 0), strict=True)]
    return [*scaled, scaled[0].abs(), torch.zeros(3), torch.tensor([1000.5]), torch.full((5,), -1e-40)]


def see(name: ObserverName, batches: Sequence[Tensor]) -> Observer:
    observer = make_observer(name, 99 if name == "percentile" else None)
    for values in batches:
        observer.update(values)
    return observer


def fake_quantize(values: Tensor, bounds: tuple[float, float], bits: int) -> Tensor:
    """Quantize and dequantize with the scale and zero point that torchao gives a range."""
    observer = MinMaxObserver(torch.uint8, torch.per_tensor_affine, quant_min=0, quant_max=2**bits - 1, eps=2.0**-64)
    observer(torch.tensor(bounds))
    scale, zero_point = observer.calculate_qparams()
    return torch.fake_quantize_per_tensor_affine(values, scale.item(), int(zero_point.item()), 0, 2**bits - 1)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", get_args(ObserverName))
def test_any_number_of_workers_gives_the_same_range_to_the_last_bit(name: ObserverName, workers: int) -> None:
    alone = see(name, batches())
    # One worker more than has anything to read, and in another order.
    shares = [see(name, batches()[::-1][worker::workers]) for worker in range(workers)] + [see(name, [])]
    merged = merge_observers([{"point": share} for share in shares])["point"]
    assert (merged.low, merged.high) == (alone.low, alone.high)
    assert [merged.range(bits) for bits in BITS] == [alone.range(bits) for bits in BITS]


def test_merged_histograms_are_that_of_all_values() -> None:
    together = count_values(torch.cat([values.flatten() for values in batches()]))
    for order in (batches(), batches()[::-1]):
        merged = count_values(order[0])
        for values in order[1:]:
            merged = merge_histograms(merged, count_values(values))
        assert (merged.exponent, merged.first) == (together.exponent, together.first)
        # Tiny values below zero may count as zero beside large ones, where float32 has no smaller number.
        assert abs(merged.counts - together.counts).sum() <= 2 * 5
        assert merged.counts.sum() == together.counts.sum()
        assert MAX_BINS / 2 <= len(merged.counts) <= MAX_BINS


@pytest.mark.parametrize(
    ("values", "exponent", "first", "length"),
    [
        ([0.0, 1.0], -13, 0, 2**13 + 1),
        ([-1.0, 0.999], -13, -(2**13), 2**14 - 8),
        ([-1.0, 1.0], -12, -(2**12), 2**13 + 1),
        ([3.0], -12, 0, 3 * 2**12 + 1),
        ([-3.0], -12, -3 * 2**12, 3 * 2**12 + 1),
        ([0.0], -100, 0, 1),
    ],
)
def test_bins_reach_from_zero_to_the_extremes(values: list[float], exponent: int, first: int, length: int) -> None:
    histogram = count_values(torch.tensor(values))
    assert (histogram.exponent, histogram.first, len(histogram.counts)) == (exponent, first, length)
    found = [histogram.first + int(number) for number in histogram.counts.nonzero()[0]]
    assert found == [math.floor(value / 2.0**exponent) for value in values]


def of_counts(observer: MeanSquaredError | Percentile, histogram: Histogram) -> MeanSquaredError | Percentile:
    observer.histogram, borders = histogram, histogram.borders
    observer.low, observer.high = float(borders[0]), float(borders[-1])
    return observer


@pytest.mark.parametrize(
    ("percentile", "bounds"), [(100, (-2, 4)), (99, (-2, 4)), (95, (-2, 3)), (90, (-1, 3)), (70, (0, 2)), (51, (0, 1))]
)
def test_a_percentile_keeps_whole_bins(percentile: float, bounds: tuple[float, float]) -> None:
    histogram = Histogram(0, -2, np.array([8, 12, 40, 22, 14, 4]))
    assert of_counts(Percentile(percentile), histogram).range(8) == bounds


def test_an_outlier_is_clipped() -> None:
    values = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([500.0])])
    assert see("min_max", [values]).range(4) == (-1, 500)
    low, high = see("percentile", [values]).range(4)
    assert -1 <= low < -0.95
    assert 0.9 < high < 1.1
    _, high = see("mse", [values.clamp(max=50)]).range(4)
    assert high < 5


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("number", range(7))
def test_the_range_of_least_error_has_no_larger_one_than_min_max(number: int, bits: int) -> None:
    values = batches()[number].double().pow(3).float() if number % 2 else batches()[number]
    observer = see("mse", [values])
    errors = [
        (fake_quantize(values, bounds, bits) - values).square().mean().item()
        for bounds in (observer.range(bits), (observer.low, observer.high))
    ]
    assert errors[0] <= errors[1]
    if bits < 8 and number == 1:
        assert errors[0] < 0.8 * errors[1]


def test_errors_are_those_of_quantizing_the_values() -> None:
    histogram = Histogram(-3, -20, np.random.default_rng(0).integers(0, 9, 60))
    values = torch.from_numpy(histogram.centers.repeat(histogram.counts)).float()
    ranges = [(-2.5, 5.0), (-1.0, 3.3), (0.0, 2.0), (0.7, 1.0), (-2.0, -1.0)]
    for bits in (2, 4):
        lows, highs = np.array(ranges).T
        errors = squared_errors(histogram, lows, highs, bits)
        expected = [(fake_quantize(values, bounds, bits) - values).square().sum().item() for bounds in ranges]
        # Where a value lies between two levels, either is as near.
        np.testing.assert_allclose(errors, expected, rtol=1e-4)


def test_the_search_finds_what_all_ranges_together_offer() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).pow(3)
    histogram, low, high = count_values(values), float(values.min()), float(values.max())
    grid = 2.0 ** -np.arange(0, 8, 1 / 32)
    lows, highs = (ends.ravel() for ends in np.meshgrid(low * grid, high * grid))
    least = squared_errors(histogram, lows, highs, 4).min()
    found = np.array([least_squares_range(histogram, low, high, 4)])
    assert squared_errors(histogram, found[:, 0], found[:, 1], 4)[0] <= 1.02 * least


@pytest.mark.parametrize("name", get_args(ObserverName))
def test_values_that_are_not_finite_are_refused_whichever_worker_saw_them(name: ObserverName) -> None:
    good, bad = torch.tensor([-1.0, 2.0]), torch.tensor([0.0, math.nan])
    for shares in (
        [[good], [bad]],
        [[bad], [good]],
        [[bad, good], []],
        [[], [good, bad]],
        [[torch.tensor(math.inf)], []],
    ):
        merged = merge_observers([{"head:input": see(name, share)} for share in shares])["head:input"]
        with pytest.raises(DatasetError, match="'head:input' have no finite range"):
            check_observed_ranges({"head:input": (merged.low, merged.high)})


def test_a_worker_without_images_changes_nothing() -> None:
    merged = merge_observers([{"point": MinMax()}, {"point": see("min_max", batches())}])["point"]
    assert merged.range(8) == see("min_max", batches()).range(8)


def test_a_merged_observer_leaves_the_other_as_it_was() -> None:
    one, other = see("mse", batches()[:1]), see("mse", batches()[4:5])
    before = copy.deepcopy(other)
    one.merge(other)
    assert other.range(4) == before.range(4) != one.range(4)


def test_a_percentile_without_its_observer_is_refused() -> None:
    def make(**changes: object) -> CalibrationConfig:
        return CalibrationConfig(teacher=ModelConfig(name="x"), images="x", output="x", **changes)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="percentile is 99, and observer mse has no use for it"):
        make(observer="mse", percentile=99)
    with pytest.raises(ConfigError, match="percentile must lie in \\(50, 100\\], not 50"):
        make(observer="percentile", percentile=50)
    with pytest.raises(ConfigError, match=r"observer must be one of \['min_max', 'percentile', 'mse'\], not 'median'"):
        make(observer="median")
