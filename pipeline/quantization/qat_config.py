"""Settings of quantization-aware distillation."""

from dataclasses import dataclass, field

from pipeline.checks import check_finite, check_ranges
from pipeline.distillation.augment_config import AugmentConfig
from pipeline.errors import ConfigError
from pipeline.quantization.bit_widths import BitWidths


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """Train each quantized model to answer as the float teacher does, on random views of the images.

    Training starts from the calibrated model, smoothed and rounded as set. It changes weights, biases, and the scales
    of weights and activations, and the artifact stays an ordinary quantized graph. Bit widths are trained one after
    another, by one worker however many there are, or in the job's own process without workers.

    Args:
        settings: which of the calibration's bit widths are trained; by default all, and `mixed`.
        steps: optimizer steps for each of them.
        batch_size: images per step at most; the steps of an epoch have equally many.
        lr: peak learning rate of weights and biases; it falls to zero along a cosine.
        scale_lr: peak learning rate of the logarithms of the scales: about the relative change of a scale per step at
            first.
        temperature: divisor of the logits before they are compared.
        augment: random views that teacher and quantized model read, another of each image at each epoch; with `null`,
            every image is read as it is.
        cache_gb: images that take up to this much memory, decoded, are read once and kept; more are read again at each
            epoch, in another order.
        shuffle_buffer: images that are shuffled together when they are read again at each epoch.
    """

    settings: list[BitWidths] | None = None
    steps: int = 500
    batch_size: int = 32
    lr: float = 3e-4
    scale_lr: float = 3e-3
    temperature: float = 4.0
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    cache_gb: float = 1.0
    shuffle_buffer: int = 1024

    def __post_init__(self) -> None:
        if self.settings is not None and not self.settings:
            raise ConfigError("qat.settings is empty: name the bit widths to train, or leave it out for all")
        check_finite(self)
        check_ranges(self, ("steps", "batch_size", "shuffle_buffer"), 1)
        check_ranges(self, ("lr", "temperature"), 0, open_low=True)
        check_ranges(self, ("scale_lr", "cache_gb"), 0)
