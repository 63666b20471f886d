"""Warn if a processor emulates bfloat16."""

import platform
import socket
from typing import Any

import torch

from pipeline.errors import first_few
from pipeline.log import logger

# Seconds to wait for the nodes of a cluster to report what they support.
_PATIENCE_S = 60.0


def has_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16 products, and torch uses them."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # With only AVX-512, oneDNN accepts bfloat16, but converts every operand and computes in float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def announce_dtype(dtype: str, *, on_gpu: bool, on_nodes: bool = False) -> None:
    """Report in one line on standard error on which machines a type will be slow, if it will be.

    Args:
        dtype: `float32` or `bfloat16`.
        on_gpu: whether the work is done on GPUs, where it is never slow.
        on_nodes: whether the work is done on the nodes of the joined Ray cluster. If not, it is done in this process.
    """
    if dtype != "bfloat16" or on_gpu:
        return
    has = _ask_nodes() if on_nodes else {socket.gethostname(): has_bfloat16()}
    slow = sorted(name for name, fast in has.items() if not fast)
    if slow:
        logger.warning(
            f"plan: bfloat16 is emulated on processors without instructions for it, and is many times slower than "
            f"float32: {len(slow)} of {len(has)} machines ({first_few(slow)})"
        )


def _ask_nodes() -> dict[str, bool]:
    """Return host name → whether its processor has bfloat16; nodes that do not answer are left out."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
            # Ray's type hints lack this strategy.
            there: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(has_bfloat16)
            asked[task.remote()] = node["NodeManagerHostname"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE_S) if asked else ([], [])
    has = {}
    for answer in answered:
        try:
            has[asked[answer]] = ray.get(answer)
        except RayError:
            continue  # the work itself will say what is wrong with the node
    return has
