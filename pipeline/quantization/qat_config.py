"""Settings of quantization-aware distillation."""

from dataclasses import dataclass, field

from pipeline.checks import check_finite, check_range, check_ranges, check_types
from pipeline.distillation.augment_config import AugmentConfig
from pipeline.errors import ConfigError
from pipeline.quantization.bit_widths import BitWidths


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """Train each quantized model to answer as the float teacher does, on random views of the images.

    Training starts from the calibrated model, smoothed and rounded as set. It changes weights, biases, and the scales
    of weights and activations, and the artifact stays an ordinary quantized graph. Bit widths are trained one after
    another, by all workers together. Where training brings the answers to held-back images too little nearer to the
    teacher's, the calibrated model is kept.

    Args:
        settings: which of the calibration's bit widths are trained; by default all, and `mixed`.
        steps: optimizer steps for each of them.
        batch_size: largest number of images per step; an epoch is divided into steps of equal size.
        lr: peak learning rate of weights and biases; it falls to zero along a cosine.
        scale_lr: peak learning rate of the logarithms of the scales: about the relative change of a scale per step at
            first.
        temperature: divisor of the logits before they are compared.
        augment: random views for teacher and quantized model, a new one of each image in each epoch; with `null`,
            images are not changed.
        cache_gb: images that take up to this much memory, decoded, are read once and kept; more are read again at each
            epoch, in another order.
        shuffle_buffer: images that are shuffled together when they are read again at each epoch.
        held_back: images that are not trained on, drawn at random, to measure the divergence from the teacher before
            training and during it; at most a quarter of `images`. The step with the least is the best. With 0, the
            model of the last step is kept.
        min_gain: how much of that divergence training must remove by its best step, in [0, 1), for the trained model to
            be kept; otherwise the calibrated model is. Images like the training images improve more than real ones.
        score_every: steps between two measurements on the held-back images; the last step is always measured.
        checkpoint_minutes: minutes between checkpoints, from which an interrupted training resumes. One is also written
            when a bit width is done, and when a worker's node is about to be reclaimed.
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
    held_back: int = 64
    min_gain: float = 0.5
    score_every: int = 100
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        check_types(self, "qat.")
        if self.settings is not None and not self.settings:
            raise ConfigError("qat.settings is empty: name the bit widths to train, or leave it out for all")
        # Some names are also those of settings of the calibration.
        check_finite(self, "qat.")
        check_ranges(self, ("steps", "batch_size", "shuffle_buffer", "score_every"), 1, prefix="qat.")
        check_ranges(self, ("lr", "temperature", "checkpoint_minutes"), 0, open_low=True, prefix="qat.")
        check_ranges(self, ("scale_lr", "cache_gb", "held_back"), 0, prefix="qat.")
        check_range("qat.min_gain", self.min_gain, 0, 1, open_high=True)
