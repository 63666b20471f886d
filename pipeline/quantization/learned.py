"""A model that rounds where its quantized counterpart does, with weights and scales that can be trained.

The scales are learned as in LSQ (Learned Step Size Quantization, Esser et al., ICLR 2020). What is trained is the
logarithm of each (TQT, Jain et al., MLSys 2020): with Adam, a step changes scales of any size by the same share, and
the factor that LSQ has for their gradients would have no effect. Zero points stay as they were calibrated.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.distillation.batches import DistillationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import observer_nodes, prepare
from pipeline.quantization.names import layer_of, layer_path
from pipeline.quantization.observe import export_graph
from pipeline.quantization.prepared import tensor_of
from pipeline.quantization.quantizer import activation_spec, scales_of, weight_spec
from pipeline.quantization.rounding import weight_limits
from pipeline.quantization.variants import Values, Variant
from pipeline.vit.families import refusal


class LearnedGraph(nn.Module):
    """The graph that reads calibration images (see `observe.export_graph`), with trainable parameters and scales.

    Args:
        model: the model to quantize, smoothed if that was asked for, but not rounded. It is not changed.
        placement: what is quantized.
        variant: name and bit widths of the quantized model.
        values: ranges and parameters that training starts from, without scales.

    Raises:
        ModelError: the model cannot be exported.
    """

    def __init__(self, model: nn.Module, placement: Placement, variant: Variant, values: Values) -> None:
        super().__init__()
        self._reads_subsets = refusal(model) is None
        graph = prepare(export_graph(model, placement), variant.bits, placement, variant.layers)
        self._names = [name for name, _ in graph.named_parameters()]
        self._weights, self._activations = _learn_scales(graph, variant, values)
        with torch.no_grad():
            # Only now, because the scales must come from the weights before they were rounded.
            for name, value in (values.parameters or {}).items():
                tensor_of(graph, name).copy_(value)
        self.graph = graph.requires_grad_()

    def forward(self, batch: DistillationBatch) -> Tensor:
        """Return logits [B, classes] of images at their kept patches, or whole if the family cannot do that."""
        if not self._reads_subsets:
            return self.graph(batch.pixels)
        groups = list(batch.groups())
        logits = [self.graph(batch.pixels[rows], keep_indices) for rows, keep_indices in groups]
        return torch.cat(logits)[torch.cat([rows for rows, _ in groups]).argsort()]

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the model's own parameters, and those of its scales."""
        own = {name: parameter for name, parameter in self.graph.named_parameters() if name in set(self._names)}
        learned = [parameter for name, parameter in self.graph.named_parameters() if name not in own]
        return list(own.values()), learned

    @torch.no_grad()
    def values(self) -> Values:
        """Return what the model is quantized with now, on the CPU: weights lie on the grid of their scales."""
        parameters = {name: tensor_of(self.graph, name).detach() for name in self._names}
        parameters |= {name: learned(tensor_of(self.graph, name)) for name, learned in self._weights.items()}
        return Values(
            {point: learned.range() for point, learned in self._activations.items()},
            {name: value.cpu().clone() for name, value in parameters.items()},
            {name: learned.scales().cpu() for name, learned in self._weights.items()},
        )


class LearnedWeights(nn.Module):
    """Rounds a weight to a grid with a learned scale for each output channel.

    Args:
        weight: float32 [out, ...], the weight whose scales training starts from.
        bits: number of bits of the quantized weight.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self._limits = weight_limits(bits)
        self._start: Tensor
        self.register_buffer("_start", scales_of(weight_spec(bits), weight.detach())[0])
        self.log_factor = nn.Parameter(torch.zeros(len(weight)))

    def scales(self) -> Tensor:
        """Return the scales [out]."""
        return self._start * self.log_factor.exp()

    def forward(self, weight: Tensor) -> Tensor:
        scales = self.scales().view(-1, *(1 for _ in weight.shape[1:]))
        return round_learned(weight, scales, torch.zeros_like(scales), self._limits)


class LearnedActivations(nn.Module):
    """Rounds activations to a grid with a learned scale; its zero point stays.

    Args:
        bounds: smallest and largest value that training starts from.
        bits: number of bits of the quantized activations.
    """

    def __init__(self, bounds: tuple[float, float], bits: int) -> None:
        super().__init__()
        self._limits = (0, 2**bits - 1)
        scale, zero_point = scales_of(activation_spec(bits), torch.tensor(bounds))
        self._start: Tensor
        self._zero_point: Tensor
        self.register_buffer("_start", scale)
        self.register_buffer("_zero_point", zero_point.float())
        self.log_factor = nn.Parameter(torch.zeros(1))

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value on the grid."""
        scale = self._scale().detach().double()
        low, high = ((limit - self._zero_point) * scale for limit in self._limits)
        return low.item(), high.item()

    def forward(self, values: Tensor) -> Tensor:
        return round_learned(values, self._scale(), self._zero_point, self._limits)

    def _scale(self) -> Tensor:
        return self._start * self.log_factor.exp()


def round_learned(values: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> Tensor:
    """Round values to the grid `scale * (level - zero_point)` of whole levels within the limits, and clip the others.

    Gradients are those of LSQ, section 2.1: of the values, 1 inside the limits and 0 where they are clipped; of the
    scale, the error of rounding in steps, or where a value is clipped its limit. The zero point has none.

    Args:
        values: float32 [...].
        scale: positive scales, of a shape that broadcasts with that of the values.
        zero_point: zero points, which are whole numbers, of the same shape as the scales.
        limits: smallest and largest level.
    """
    return _RoundLearned.apply(values, scale, zero_point, limits)  # type: ignore[return-value]


class _RoundLearned(torch.autograd.Function):
    # Written out, because autograd would keep twice as many tensors of the activations' size.
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> Tensor:
        # Multiplied by the reciprocal as torchao's operators do, because the largest weight of a channel lies in the
        # middle of two levels.
        steps = values * scale.reciprocal()
        levels = steps.round().add_(zero_point)
        clipped = levels.clamp(*limits)
        inside = levels == clipped
        clipped -= zero_point
        ctx.save_for_backward(steps, clipped, inside, scale)
        return clipped * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        steps, clipped, inside, scale = ctx.saved_tensors
        (gradient,) = gradients
        of_values = gradient * inside
        of_scale = (gradient * clipped).sub_(of_values * steps).sum_to_size(scale.shape)
        return of_values, of_scale, None, None


def _learn_scales(
    graph: fx.GraphModule, variant: Variant, values: Values
) -> tuple[dict[str, LearnedWeights], dict[str, LearnedActivations]]:
    """Replace a graph's observers by modules that round; return them by weight, and by point.

    All calls of a layer have one for its weight, and all edges at a point share one.
    """
    weights: dict[str, LearnedWeights] = {}
    activations: dict[str, LearnedActivations] = {}
    for node, source, observer in observer_nodes(graph):
        if source.op == "get_attr":
            name, bits = str(source.target), _bits(variant, layer_path(source)).weights
            learned: nn.Module = weights.setdefault(name, LearnedWeights(tensor_of(graph, name), bits))
        else:
            bits = _bits(variant, layer_of(observer.point)).activations
            new = LearnedActivations(values.ranges[observer.point], bits)
            learned = activations.setdefault(observer.point, new)
        graph.set_submodule(str(node.target), learned)
    return weights, activations


def _bits(variant: Variant, layer: str) -> BitWidths:
    return (variant.layers or {}).get(layer, variant.bits)
