"""Memory that runs out is the same error on every device, and names the setting to lower."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.out_of_memory import as_out_of_memory, naming_batch_size

# No machine has 2^60 bytes: PyTorch's own error.
MORE_THAN_THERE_IS = 2**60


def test_a_cpu_that_has_no_more_memory_raises_what_a_gpu_does() -> None:
    with (
        pytest.raises(torch.OutOfMemoryError, match="you tried to allocate 1152921504606846976 bytes"),
        as_out_of_memory(),
    ):
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="must match") as raised, naming_batch_size("batch_size", 64):
        _ = torch.zeros(2) + torch.zeros(3)
    assert not isinstance(raised.value, torch.OutOfMemoryError)


def test_the_setting_to_lower_is_named() -> None:
    message = r"^batch_size is 64, and memory ran out: lower it \(OutOfMemoryError: .*can't allocate memory"
    with pytest.raises(ConfigError, match=message), naming_batch_size("batch_size", 64):
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
