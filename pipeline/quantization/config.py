"""Settings of a calibration."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipeline.artifacts.formats import FORMATS, FormatName
from pipeline.checks import check_labeled_split, check_located, check_range, check_ranges, check_seed, check_types
from pipeline.config.former_names import LABELED
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.quantization.bit_widths import (
    BitWidths,
    Placement,
    RoundingName,
    SmoothingName,
)
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.observers import ObserverName
from pipeline.quantization.qat_config import QatConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.workers import FLAT_NAMES, WorkersConfig

# Which settings identify a calibration, see `pipeline.outputs.identifying_settings`. The first list is frozen. Excluded
# are those that a fact stands for (weights, images, what is trained), those of what follows after the ranges, and those
# that decide where and how fast they are calibrated.
RECORDED_SETTINGS = ("placement", "mode", "batch_size", "max_images", "seed")
EXCLUDED_SETTINGS = (
    *("teacher", "images", "output", "labeled", "labeled_split", "reference", "settings", "formats", "onnx_weights"),
    *("onnx_int4", "workers", "allow_incomplete", "allow_other_teacher", "score_batch_size", "latency_batch_size"),
    *("sensitivity", "tracking", "qat.checkpoint_minutes", "qat.cache_gb", "qat.settings"),
)
# Tensors of more images than this have sizes that torch cannot count.
_MOST_IMAGES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Calibrate a teacher on images, quantize it, and score the artifacts.

    Args:
        teacher: the model to quantize.
        images: URI of a synthetic dataset, Parquet files with a column `image`, or an image folder, or a list of URIs.
            Real images and noise can be used as well. Or the file of a synthesis config: its images are made first.
        images_split: split to read, such as `train`, if there are several; with a list, it applies to every dataset
            that is not synthetic.
        output: folder for the artifacts, `ranges.json` (smallest and largest activations), `config.json`,
            `report.json` and `report.html`, at any fsspec URI. An observer that clips adds `ranges_a8.json` for each
            bit width; `qat` adds `ranges_w4a4.json` for each trained model.
        labeled: URI of labeled images to score the artifacts on; without it they are only timed.
        labeled_split: split to read, such as `test`, if there are several.
        reference: output of another calibration of this teacher, with the same placement, on real images: `report.html`
            then compares the ranges layer by layer, and `report.json` has their `range_error`.
        settings: bit widths, all from one pass over the images. Widths below 8 do not make the artifact faster.
        placement: what is quantized. `linear`: inputs and weights of linear layers and convolutions. `matmul`: also the
            operands of attention's matrix products. `published`: as in the SMI paper, also layer outputs, attention
            logits and the residual stream.
        observer: how the range of each activation is chosen; values outside it are clipped. `min_max`: the whole range
            that was observed. `percentile`: all but the outermost values, see the setting `percentile`. `mse`: the
            range with the least squared error, chosen for each bit width; the same as `min_max` above 10 bits.
        percentile: for `observer: percentile`, the share of values in percent that lies below the upper end of the
            range, and above its lower end; default 99.99.
        smoothing: how outlier channels after LayerNorm are handled: their scales move into the weights that read them.
            It costs a second pass over the images, and nothing at inference.
            `smooth_quant`: as in SmoothQuant. `repq`: every channel gets the same range, as in RepQ-ViT.
        smoothing_alpha: for `smoothing: smooth_quant`, the share of the difficulty that goes into the weights; default
            0.5.
        equalization: balance the largest weights of two consecutive layers, channel by channel: an attention's values
            and its projection, and two layers with a ReLU between them.
        rounding: how weights are rounded. `nearest`: each to the nearest value. `gptq`: those of an output channel
            together, so that the layer's output on the images changes less, as in GPTQ; costs another pass over the
            images, and for each layer 8 bytes for each pair of its input channels.
        bias_correction: take the mean error of each layer's output on the images, with quantized weights and inputs,
            out of its bias; costs another pass, the same as that of `gptq`.
        mode: `sparse` reads only the kept patches of each image, which needs a ViT; `dense` reads whole images, with
            the mean color in stopped patches.
        formats: artifact formats to write. `aoti` is compiled by AOTInductor for the processor of the machine that
            runs the job's driver, which takes minutes for each setting and needs a C++ compiler there.
        sensitivity: number of random images on which to measure how much each layer suffers from the bit widths of
            `settings`: with only that layer quantized, and with all others quantized. Written to `sensitivity.json`,
            `.md` and `.png`; 0 to skip it.
        mixed: an artifact with bit widths chosen layer by layer.
        qat: train each quantized model against the teacher on `images`, after it was calibrated; off by default.
        onnx_weights: how ONNX files store 8-bit weights that are multiplied with 8-bit activations. `uint8` computes
            the same on every CPU. `int8` is faster in ONNX Runtime on x86 CPUs with VNNI; without VNNI its products
            saturate there and in OpenVINO, and the logits are wrong. Weights of 7 bits or fewer (`settings: [{weights:
            7}]`) are always stored as int8, and correct everywhere.
        onnx_int4: pack weights two to a byte in ONNX files of models whose layers all have 4 bits or fewer per weight,
            and 8 or fewer per activation; such files are half the size of int8. `mixed` is packed only if its `high` is
            that narrow. On a CPU, ONNX Runtime unpacks them in every forward pass, which is slower than fp32.
        batch_size: images per forward pass in calibration.
        max_images: number of images to calibrate on, drawn at random; all by default.
        seed: seed of the random choice of images.
        workers: number and resources of the Ray Train workers.
        allow_incomplete: accept a synthetic dataset with missing shards.
        allow_other_teacher: accept synthetic images made from another teacher, for example to quantize a student.
        score_batch_size: images per forward pass in scoring.
        latency_batch_size: images per forward pass when latency is measured; with a list, it is measured for each that
            fits into memory.
        tracking: where to report the run: TensorBoard, MLflow, both or neither.
    """

    FORMER_NAMES: ClassVar[dict[str, str]] = LABELED | FLAT_NAMES

    teacher: ModelConfig
    images: str | list[str]
    images_split: str | None = None
    output: str
    labeled: str | None = None
    labeled_split: str | None = None
    reference: str | None = None
    settings: list[BitWidths] = field(default_factory=lambda: [BitWidths()])
    placement: Placement = "linear"
    observer: ObserverName = "min_max"
    percentile: float | None = None
    smoothing: SmoothingName = "none"
    smoothing_alpha: float | None = None
    equalization: bool = False
    rounding: RoundingName = "nearest"
    bias_correction: bool = False
    mode: Literal["sparse", "dense"] = "sparse"
    sensitivity: int = 0
    mixed: MixedConfig | None = None
    qat: QatConfig | None = None
    formats: list[FormatName] = field(default_factory=lambda: ["pt2", "onnx"])
    onnx_weights: Literal["uint8", "int8"] = "uint8"
    onnx_int4: bool = False
    batch_size: int = 32
    max_images: int | None = None
    seed: int = 0
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    allow_incomplete: bool = False
    allow_other_teacher: bool = False
    score_batch_size: int = 64
    latency_batch_size: int | list[int] = field(default_factory=lambda: [1, 32])
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def latency_batch_sizes(self) -> list[int]:
        """Images per forward pass for each latency that is measured."""
        sizes = self.latency_batch_size
        return [sizes] if isinstance(sizes, int) else sizes

    @property
    def activation_bits(self) -> list[int]:
        """All bit widths of activations, ascending."""
        mixed = [] if self.mixed is None else [self.mixed.low, self.mixed.high]
        return sorted({bits.activations for bits in (*self.settings, *mixed)})

    @property
    def trained(self) -> list[str]:
        """Labels of the models that `qat` trains, sorted; empty without it."""
        if self.qat is None:
            return []
        if self.qat.settings is not None:
            return sorted(bits.label for bits in self.qat.settings)
        return sorted([*(bits.label for bits in self.settings), *([] if self.mixed is None else ["mixed"])])

    @property
    def num_passes(self) -> int:
        """Number of times that all images are read."""
        return 1 + (self.smoothing != "none") + self.refines

    @property
    def refines(self) -> bool:
        """Whether weights or biases are computed from what the layers read."""
        return self.rounding != "nearest" or self.bias_correction

    def __post_init__(self) -> None:
        check_types(self)
        if self.percentile is not None and self.observer != "percentile":
            raise ConfigError(f"percentile is {self.percentile:g}, and observer {self.observer} has no use for it")
        if self.smoothing_alpha is not None and self.smoothing != "smooth_quant":
            raise ConfigError(
                f"smoothing_alpha is {self.smoothing_alpha:g}, and smoothing {self.smoothing} has no use for it"
            )
        if self.reference is not None and self.smoothing != "none":
            raise ConfigError(
                f"reference: smoothing {self.smoothing} changes the activations of this model, so they cannot be "
                "compared with a reference's: leave out reference or smoothing"
            )
        if self.reference is not None and self.equalization:
            raise ConfigError(
                "reference: equalization changes the activations of this model, so they cannot be compared with a "
                "reference's: leave out reference or equalization"
            )
        check_range("smoothing_alpha", self.smoothing_alpha, 0, 1)
        check_range("percentile", self.percentile, 50, 100, open_low=True)
        check_ranges(self, ("batch_size", "score_batch_size", "max_images"), 1)
        sizes = self.latency_batch_sizes
        if not sizes or len(set(sizes)) != len(sizes):
            raise ConfigError(f"latency_batch_size must be one or more different numbers, not {sizes}")
        for size in sizes:
            check_range("latency_batch_size", size, 1, _MOST_IMAGES)
        check_seed(self.seed)
        check_range("sensitivity", self.sensitivity, 0)
        check_located("images", self.images)
        check_located("labeled", self.labeled)
        if self.mixed is not None and self.sensitivity:
            raise ConfigError("mixed measures the sensitivity on its held_back images: leave sensitivity out")
        check_labeled_split(self.labeled, self.labeled_split)
        _check_trained(self)
        _check_onnx(self)
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise ConfigError(f"settings must be one or more different bit widths, not {self.settings}")
        if not self.formats or len(set(self.formats)) != len(self.formats):
            raise ConfigError(f"formats must be one or more of {' and '.join(FORMATS)}, each once, not {self.formats}")


def _check_onnx(config: CalibrationConfig) -> None:
    """Check that settings of ONNX files apply to at least one file."""
    given = {"onnx_int4: true": config.onnx_int4, "onnx_weights: int8": config.onnx_weights == "int8"}
    for setting in (name for name, is_given in given.items() if is_given and "onnx" not in config.formats):
        raise ConfigError(f"{setting} is for ONNX files, and formats is {config.formats}: add onnx, or leave it out")
    largest = [*config.settings, *(() if config.mixed is None else (config.mixed.high,))]
    if config.onnx_int4 and not any(bits.fits_int4 for bits in largest):
        labels = ", ".join(bits.label for bits in config.settings)
        mixed = "" if config.mixed is None else f", and mixed.high {config.mixed.high.label}"
        raise ConfigError(
            f"onnx_int4 packs models of 4 bits or fewer per weight and 8 or fewer per activation, and settings has "
            f"{labels}{mixed}: add one such as w4a8, or leave onnx_int4 out"
        )


def _check_trained(config: CalibrationConfig) -> None:
    """Check that the bit widths to train are among those that are made."""
    if config.qat is not None:
        config.workers.check_batch_size("qat.batch_size", config.qat.batch_size)
    wanted = [] if config.qat is None else config.qat.settings or []
    if unknown := [bits.label for bits in wanted if bits not in config.settings]:
        raise ConfigError(f"qat.settings has {', '.join(unknown)}, which settings does not have")
