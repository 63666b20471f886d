"""Ranges: comparing and checking them."""

import math

import pytest

from pipeline.errors import DatasetError
from pipeline.quantization import range_error
from pipeline.quantization.ranges import check_observed_ranges, tell_constant


def test_range_error_is_the_mean_share_of_the_real_range() -> None:
    reference = {"a": (0.0, 10.0), "b": (-1.0, 1.0)}
    ranges = {"a": (-1.0, 12.0), "b": (-1.0, 0.5)}
    assert range_error(ranges, reference) == pytest.approx(((1 + 2) / 10 + 0.5 / 2) / 2)
    assert range_error(reference, reference) == 0


def test_ranges_of_different_observers_are_not_compared() -> None:
    with pytest.raises(DatasetError, match=r"different observers: \['b'\]"):
        range_error({"a": (0, 1)}, {"a": (0, 1), "b": (0, 1)})


def test_an_activation_that_is_constant_in_the_reference_is_left_out() -> None:
    reference = {"a": (2.0, 2.0), "b": (0.0, 10.0)}
    assert range_error({"a": (0.0, 1.0), "b": (0.0, 8.0)}, reference) == pytest.approx(0.2)
    with pytest.raises(DatasetError, match="all 1 activations are constant in the reference"):
        range_error({"a": (0, 1)}, {"a": (2, 2)})
    with pytest.raises(DatasetError, match="reference range of 'a' is empty: 3 to 2"):
        range_error({"a": (0, 1)}, {"a": (3, 2)})


def test_constant_activations_of_a_reference_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell_constant("there", {"a": (0.0, 1.0)})
    assert capsys.readouterr().err == ""
    tell_constant("there", {"a": (0.0, 0.0), "b": (0.0, 1.0)})
    line = "reference 'there': 1 of 2 activations are constant there, and are left out of the comparison (a)"
    assert line in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"^reference 'there': all 1 activations are constant there"):
        tell_constant("there", {"a": (0.0, 0.0)})


@pytest.mark.parametrize("bounds", [(math.inf, -math.inf), (0.0, math.nan), (-math.inf, 1.0)])
def test_ranges_without_a_scale_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(DatasetError, match=r"'head:input' have no finite range"):
        check_observed_ranges({"head:input": bounds})
