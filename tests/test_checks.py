from typing import Any

import pytest

from pipeline.checks import check_range
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "ends", "message"),
    [
        (-1, {"low": 0}, "x must not be negative, not -1"),
        (0, {"low": 0, "open_low": True}, "x must be positive, not 0"),
        (1, {"low": 2}, "x must be at least 2, not 1"),
        (2, {"low": 2, "open_low": True}, "x must be more than 2, not 2"),
        (1.0, {"low": 0, "high": 1, "open_high": True}, r"x must lie in \[0, 1\), not 1.0"),
        (0.0, {"low": 0, "high": 1, "open_low": True}, r"x must lie in \(0, 1\], not 0.0"),
        (float("nan"), {"low": 0}, "x must not be negative, not nan"),
    ],
)
def test_a_number_outside_its_range_is_refused(value: float, ends: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_range("x", value, **ends)


@pytest.mark.parametrize("value", [None, 0, 0.5, 1])
def test_a_number_within_its_range_passes(value: float | None) -> None:
    check_range("x", value, 0, 1)


@pytest.mark.parametrize("value", ["3", True, [1], 1j])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x must be a number, not "):
        check_range("x", value, 0)
