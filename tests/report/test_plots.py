"""Plots are pure: values in, markup out, the same each time, whatever the values are."""

import math
import re

import pytest

from pipeline.report.charts import curves, histogram
from pipeline.report.heat import grid, heat
from pipeline.report.page import Section, html_page
from pipeline.report.strips import bars, boxes, intervals, relative_intervals
from pipeline.report.svg import Plot, number, ticks, value_range
from tests.report.page_check import check_page


def numbers(plot: Plot, element: str, attribute: str) -> list[float]:
    return [float(text) for text in re.findall(rf'<{element}[^>]*? {attribute}="([^"]*)"', plot)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_brief() -> None:
    assert [number(value) for value in (1.0, 1.25, 1.256, -0.001, 10, 100)] == ["1", "1.25", "1.26", "0", "10", "100"]
    assert value_range([3.0, 3.0]) == (1.5, 4.5)
    assert value_range([0.0]) == (-0.5, 0.5)


def test_a_curve_goes_from_corner_to_corner() -> None:
    plot = curves({"loss": [(1, 4.0), (2, 1.0), (3, 0.0)]}, x_label="epoch", y_label="loss")
    points = re.findall(r'<polyline points="([^"]*)"', plot)
    assert points == ["46,22 218,158.5 390,204"]
    assert plot == curves({"loss": [(1, 4.0), (2, 1.0), (3, 0.0)]}, x_label="epoch", y_label="loss")


def test_long_curves_are_thinned_out_and_keep_their_last_point() -> None:
    plot = curves({"loss": [(x, 1 / (1 + x)) for x in range(4001)]}, x_label="step", y_label="loss")
    (points,) = re.findall(r'<polyline points="([^"]*)"', plot)
    assert len(points.split()) <= 401
    assert points.split()[-1].startswith("390,")


def test_several_curves_have_a_legend_of_as_many_rows_as_it_needs() -> None:
    series = {f"a rather long name {index}": [(0.0, float(index)), (1.0, 2.0)] for index in range(5)}
    plot = curves(series, x_label="x", y_label="y")
    assert all(name in plot for name in series)
    assert max(numbers(plot, "text", "x")) <= 400


def test_every_value_is_in_a_bin() -> None:
    plot = histogram([0.0, 0.1, 0.1, 5.0, -5.0, math.nan], x_label="share", num_bins=2, x_range=(0, 1))
    heights = numbers(plot, "rect", "height")
    # Four of five in the first bin, counting the one below the range; one in the last, from beyond it.
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.02)


def test_a_bar_is_as_long_as_its_value_and_a_missing_one_has_none() -> None:
    plot = bars({"a": 100.0, "b": 50.0, "c": None}, x_label="%", x_range=(0, 100))
    full, half, none = numbers(plot, "rect", "width")
    assert half == pytest.approx(full / 2, abs=0.01)
    assert none == 0
    assert ">–</text>" in plot


def test_bars_of_zeros_have_no_length_and_those_below_zero_end_there() -> None:
    assert numbers(bars({"a": 0.0, "b": 0.0}, x_label="nats"), "rect", "width") == [0, 0]
    plot = bars({"a": -1.0, "b": 1.0}, x_label="nats")
    starts, widths = numbers(plot, "rect", "x"), numbers(plot, "rect", "width")
    assert widths[0] == pytest.approx(widths[1], abs=0.02)
    assert widths[0] > 50
    assert starts[0] + widths[0] == pytest.approx(starts[1], abs=0.02)


def test_a_box_spans_the_middle_half() -> None:
    plot = boxes({"a": [0.0, 1.0, 2.0, 3.0, 4.0], "empty": []}, x_label="loss")
    (width,) = numbers(plot, "rect", "width")
    lines = numbers(plot, "line", "x2")
    assert width == pytest.approx((max(lines) - min(numbers(plot, "line", "x1"))) / 2, abs=0.02)
    assert plot.count("<circle") == 1


def test_an_interval_equal_to_its_reference_covers_the_band_and_one_far_beyond_is_marked() -> None:
    plot = relative_intervals({"same": (0.0, 1.0), "far": (-9.0, 1.0)}, x_label="real range")
    band, same, _ = numbers(plot, "rect", "width")
    assert band == same
    assert plot.count("<circle") == 1


def test_intervals_of_all_magnitudes_are_drawn() -> None:
    plot = intervals({"small": (-0.1, 0.1), "large": (-30.0, 400.0)}, x_label="activation")
    small, large = numbers(plot, "rect", "width")
    assert 1 < small < large


def test_squares_are_shaded_by_their_share_of_the_row() -> None:
    plot = heat([[3, 1], [0, 0]], ["cat", "dog"], rows="class", columns="prediction")
    assert numbers(plot, "rect", "fill-opacity") == pytest.approx(
        [0.06 + 0.94 * 0.75, 0.06 + 0.94 * 0.25, 0.06, 0.06], abs=0.006
    )
    assert [text for text in re.findall(r">([^<]+)</text>", plot) if text.isdigit()] == ["3", "1"]


def test_plots_without_a_single_finite_value_are_whole_pages_still() -> None:
    nothing = [math.nan, math.inf]
    plots = [
        curves({"a": [(0.0, math.nan)]}, x_label="x", y_label="y"),
        curves({}, x_label="x", y_label="y"),
        histogram(nothing, x_label="x"),
        bars({"a": math.nan}, x_label="x"),
        bars({}, x_label="x"),
        boxes({"a": nothing}, x_label="x"),
        intervals({"a": (math.inf, -math.inf)}, x_label="x"),
        relative_intervals({"a": (math.nan, 1.0)}, x_label="x"),
        heat([], [], rows="a", columns="b"),
        grid([[0.5]], label="x"),
    ]
    page = html_page("x", [Section(heading="x", plots=[("x", plot) for plot in plots])])
    check_page(page)
    assert "nan" not in page
    assert "inf" not in page.replace("finite", "")
