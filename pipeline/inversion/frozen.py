"""A frozen teacher as fast as the device runs it: weights laid out once, where training would do it at every step."""

import copy
from typing import Any, TypeVar

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pipeline.inversion.teacher import AnyTeacher

# Of either kind.
T = TypeVar("T", bound=AnyTeacher)


def frozen_copy(teacher: T, dtype: str, *, compiled: bool = False) -> T:
    """The teacher with weights made ready for thousands of forwards and backwards in `dtype`.

    In `bfloat16` the linear layers hold rounded weights, for use under autocast, which keeps what it has rounded only
    where weights are trained; on a CPU attention is formed. In `float32` on a CPU the layers of plain blocks multiply
    through oneDNN, which is faster than the default the fewer the rows are: by 15% at 46 of 196 patches. It takes two
    more copies of those weights, and rounds rows alike whatever their number. What is to be `compiled` cannot hold such
    layers.
    """
    if dtype == "bfloat16":
        return _rounded(teacher)
    if teacher.mean.device.type == "cpu" and not compiled:
        return _packed(teacher)
    return teacher


def _rounded(teacher: T) -> T:
    rounded = copy.deepcopy(teacher)
    for module in rounded.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    if teacher.mean.device.type == "cpu":
        # There the fused kernel's backward is three times as slow as in float32, and formed attention is faster than
        # either (torch 2.15 on AMD EPYC, 47 and 197 tokens).
        for module in rounded.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010
    return rounded


def _packed(teacher: T) -> T:
    packed = copy.deepcopy(teacher)
    if not torch.backends.mkldnn.is_available():
        return packed
    blocks = [module for module in packed.modules() if type(module) is Block]
    for block in blocks:
        if type(block.attn) is not Attention:
            continue
        for name, module in list(block.named_modules()):
            # `last_block` reads rows of the last block's weights.
            if type(module) is nn.Linear and not (block is blocks[-1] and name == "attn.qkv"):
                parent, _, child = name.rpartition(".")
                setattr(block.get_submodule(parent), child, _FrozenLinear(module))
    return packed


class _FrozenLinear(nn.Module):
    """A linear layer whose weights take no gradient, as oneDNN multiplies."""

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
