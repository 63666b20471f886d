"""Choose bit widths layer by layer: the layers that suffer most from few bits get more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.names import layer_of
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.sensitivity import Sensitivity


@dataclass(frozen=True)
class Mixture:
    """Bit widths by layer.

    Attributes:
        layers: bit widths of every layer, in the graph's order.
        weight_bits: average bits per weight.
        disagreement: percentage of the held-back images that get another class than from the float model.
        met: whether the disagreement is within `max_drop`; true if no `max_drop` was set.
    """

    layers: dict[str, BitWidths]
    weight_bits: float
    disagreement: float
    met: bool = True


def ranges_of_layers(ranges: Mapping[int, Ranges], layers: Mapping[str, BitWidths]) -> Ranges:
    """Return the range at each point for the bit width of its layer.

    Args:
        ranges: ranges by point, for each bit width of activations.
        layers: bit widths of all layers.
    """
    points = next(iter(ranges.values()))
    return {point: ranges[layers[layer_of(point)].activations][point] for point in points}


def average_bits(widths: Mapping[str, BitWidths], num_weights: Mapping[str, int]) -> float:
    """Return the average number of bits per weight."""
    return sum(widths[layer].weights * size for layer, size in num_weights.items()) / sum(num_weights.values())


def choose_widths(
    config: MixedConfig, sensitivities: Sequence[Sensitivity], disagrees: Callable[[Mapping[str, BitWidths]], float]
) -> Mixture:
    """Give layers the high widths, most sensitive first, as far as the budget goes or until the drop is small enough.

    A layer that does not fit into the budget any more is passed over, and smaller ones after it may still fit. Where
    `max_drop` cannot be met, all layers have the high widths, and `met` is False.

    Args:
        config: the two widths, and the budget of bits or the largest drop.
        sensitivities: sensitivities of all layers to the low widths.
        disagrees: function that returns the disagreement, in percent, of the model with the given bit widths.
    """
    sizes = {row.layer: row.num_weights for row in sensitivities}
    widths = dict.fromkeys(sizes, config.low)
    # Layers without weights, such as attention's matrix products, cost none of the budget, and come first.
    ahead = sorted(sensitivities, key=lambda row: -row.alone / max(row.num_weights, 1))
    if config.max_drop is None:
        for row in ahead:
            raised = widths | {row.layer: config.high}
            if average_bits(raised, sizes) <= (config.weight_bits or 0):
                widths = raised
        return Mixture(widths, average_bits(widths, sizes), disagrees(widths))
    found = disagrees(widths)
    for row in ahead:
        if found <= config.max_drop:
            break
        widths[row.layer] = config.high
        found = disagrees(widths)
    return Mixture(widths, average_bits(widths, sizes), found, met=found <= config.max_drop)
