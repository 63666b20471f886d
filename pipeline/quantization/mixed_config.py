"""Settings of bit widths by layer."""

from dataclasses import dataclass, field

from pipeline.checks import check_range, check_types
from pipeline.errors import ConfigError
from pipeline.quantization.bit_widths import BitWidths


@dataclass(frozen=True, kw_only=True)
class MixedConfig:
    """Bit widths layer by layer, in an artifact `mixed` beside those of `settings`.

    Give one of `weight_bits` and `max_drop`. Layers change from `low` to `high` in the order of their divergence per
    weight, see `sensitivity.json`.

    Args:
        low: widths that every layer starts with; 4 bits for weights and 8 for activations by default.
        high: widths of the layers that suffer most from `low`; 8 and 8 by default.
        weight_bits: upper limit of the average bits per weight.
        max_drop: largest share, in percent, of the held-back images that the quantized model may put into another class
            than the teacher does. There are no labels: it is disagreement, and not a loss of accuracy.
        held_back: images left out of the calibration, drawn at random, to measure divergence and disagreement; at most
            a quarter of `images`. `qat` does train on them, except for those in its own `held_back`.
    """

    low: BitWidths = field(default_factory=lambda: BitWidths(weights=4))
    high: BitWidths = field(default_factory=BitWidths)
    weight_bits: float | None = None
    max_drop: float | None = None
    held_back: int = 64

    def __post_init__(self) -> None:
        check_types(self, "mixed.")
        if (self.weight_bits is None) == (self.max_drop is None):
            raise ConfigError("mixed needs either weight_bits or max_drop")
        if self.low.weights >= self.high.weights or self.low.activations > self.high.activations:
            raise ConfigError(
                "mixed.low must have fewer bits per weight than mixed.high, and no more per activation: "
                f"{self.low.label}, {self.high.label}"
            )
        check_range("mixed.weight_bits", self.weight_bits, self.low.weights, self.high.weights)
        check_range("mixed.max_drop", self.max_drop, 0, 100)
        check_range("mixed.held_back", self.held_back, 1)
