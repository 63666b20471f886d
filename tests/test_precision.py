"""Slow types are announced where the work is done."""

import pytest
import torch

from pipeline.precision import announce_dtype, has_bfloat16


def test_bfloat16_is_fast_only_where_torch_has_kernels_for_it() -> None:
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        assert not has_bfloat16()
    assert not has_bfloat16() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("on_nodes", [False, True])
def test_a_slow_type_is_announced_in_one_line(on_nodes: bool, capsys: pytest.CaptureFixture[str]) -> None:
    announce_dtype("bfloat16", on_gpu=False, on_nodes=on_nodes)
    said = capsys.readouterr().err
    assert said.count("\n") == (0 if has_bfloat16() else 1)
    assert ("is many times slower than float32: 1 of 1 machines" in said) != has_bfloat16()


@pytest.mark.parametrize(("dtype", "on_gpu"), [("float32", False), ("bfloat16", True)])
def test_what_is_fast_everywhere_is_not_announced(dtype: str, on_gpu: bool, capsys: pytest.CaptureFixture[str]) -> None:
    announce_dtype(dtype, on_gpu=on_gpu)
    assert capsys.readouterr().err == ""
