"""Prepare a frozen teacher for speed: convert or pack its weights once instead of at every step."""

import copy
from typing import Any, TypeVar

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.inversion.arguments import check_values
from pipeline.inversion.teacher import AnyTeacher

# A frozen copy has the class of its teacher.
T = TypeVar("T", bound=AnyTeacher)


# A copy that is made in inference mode could not be saved for a backward pass.
@torch.inference_mode(mode=False)
def frozen_copy(teacher: T, dtype: str, *, compiled: bool = False) -> T:
    """Return the teacher with its weights prepared for thousands of forward and backward passes in `dtype`.

    In `bfloat16` the linear layers hold rounded weights, for use under autocast, which caches its casts only of weights
    that are trained. On a CPU attention is then computed without the fused kernel.

    In `float32` on a CPU the linear layers of plain blocks multiply through oneDNN. The fewer rows there are, the more
    that gains: 15% at 46 of 196 patches. It takes two more copies of those weights, and rounds rows alike whatever
    their number. `torch.compile` cannot take such layers, so `compiled` leaves them out.

    A teacher that is already such a copy is returned unchanged, so that a caller who inverts many batches can make it
    once. A CUDA graph holds the addresses of the weights it was recorded with; for another copy it would be recorded
    again.

    Raises:
        ModelError: the teacher has no weights, on the meta device, or is such a copy for another dtype, device or
            `compiled`.
    """
    packs = teacher.mean.device.type == "cpu" and not compiled and torch.backends.mkldnn.is_available()
    layout = "rounded" if dtype == "bfloat16" else "packed" if packs else "plain"
    if teacher.layout == layout and not _is_of_inference(teacher):
        return teacher
    check_values(teacher.model)
    if teacher.layout != "plain":
        raise ModelError(
            f"the weights of {type(teacher.model).__name__} are {teacher.layout} already, for another dtype, device or "
            f"compile, and cannot be {layout}: give the teacher that this copy was made of"
        )
    ready = copy.deepcopy(teacher)
    ready.layout = layout
    if layout != "plain":
        (_round if layout == "rounded" else _pack)(ready)
    return ready


def _is_of_inference(teacher: AnyTeacher) -> bool:
    """Return whether weights were made in inference mode; then no product with them has a gradient."""
    return any(weight.is_inference() for weight in (*teacher.parameters(), *teacher.buffers()))


def _round(teacher: AnyTeacher) -> None:
    for module in teacher.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    if teacher.mean.device.type == "cpu":
        # On a CPU the fused kernel's backward in bfloat16 is three times as slow as in float32, and unfused attention
        # is faster than either (torch 2.15 on AMD EPYC, 47 and 197 tokens).
        for module in teacher.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010


def _pack(teacher: AnyTeacher) -> None:
    blocks = [module for module in teacher.modules() if type(module) is Block]
    for block in blocks:
        if type(block.attn) is not Attention:
            continue
        for name, module in list(block.named_modules()):
            # `last_block` slices the weight of the last block's `qkv`, which must therefore stay a plain tensor.
            if type(module) is nn.Linear and not (block is blocks[-1] and name == "attn.qkv"):
                parent, _, child = name.rpartition(".")
                setattr(block.get_submodule(parent), child, _FrozenLinear(module))


class _FrozenLinear(nn.Module):
    """Linear layer of frozen weights in oneDNN's packed layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.weight, self.transposed = weight.to_mkldnn(), weight.t().contiguous().to_mkldnn()
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        return _Product.apply(rows, self.weight, self.transposed, self.bias)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return _multiply(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _multiply(gradients[0].contiguous(), ctx.transposed, None), None, None, None


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
