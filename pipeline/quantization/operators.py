"""Operators of exported graphs."""

from typing import Any

import torch

_aten: Any = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d, _aten.conv2d, _aten.conv3d)
# Linear layers, and convolutions whose padding is numbers or a word.
WEIGHTED = {_aten.linear.default} | {getattr(each, name) for each in _CONVOLUTIONS for name in ("default", "padding")}
ADD = {_aten.add.Tensor, _aten.add_.Tensor}
