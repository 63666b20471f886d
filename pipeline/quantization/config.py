"""Settings of a calibration."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipeline.artifacts.formats import FORMATS, FormatName
from pipeline.checks import check_ranges
from pipeline.errors import ConfigError
from pipeline.former_names import LABELED
from pipeline.models import ModelConfig
from pipeline.quantization.bit_widths import PLACEMENTS, BitWidths, Placement
from pipeline.workers import FLAT_NAMES, WorkersConfig

# Which settings identify a calibration, see `pipeline.runs.identifying_settings`. The first list is frozen. Excluded
# are those that a fact stands for (weights, images), those of what follows after the ranges, and those that decide
# where and how fast they are calibrated.
RECORDED_SETTINGS = ("placement", "mode", "batch_size", "max_images", "seed")
EXCLUDED_SETTINGS = (
    *("teacher", "images", "output", "labeled", "labeled_split", "reference", "settings", "formats", "onnx_weights"),
    *("workers", "allow_incomplete", "allow_other_teacher", "score_batch_size", "latency_batch_size"),
)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Calibrate a teacher on images, quantize it, and score the artifacts.

    Args:
        teacher: the model to quantize.
        images: URI of a synthetic dataset, Parquet files with a column `image`, or an image folder, or a list of URIs.
            Real images and noise can be used as well.
        images_split: split to read, such as `train`, if there are several; for a list, of each dataset that is not
            synthetic.
        output: folder for the artifacts, `ranges.json`, `config.json`, `report.json` and `report.html`, at any fsspec
            URI.
        labeled: URI of labeled images to score the artifacts on; without it they are only timed.
        labeled_split: split to read, such as `test`, if there are several.
        reference: output of another calibration of this teacher, with the same placement, on real images: `report.html`
            then compares the ranges layer by layer, and `report.json` has their `range_error`.
        settings: bit widths, all from one pass over the images. Widths below 8 do not make the artifact faster.
        placement: what is quantized, see `MinMaxQuantizer`.
        mode: `sparse` reads only the kept patches of each image, which needs a ViT; `dense` reads whole images, with
            the mean color in stopped patches.
        formats: artifact formats to write.
        onnx_weights: how ONNX files store 8-bit weights that are multiplied with 8-bit activations. `uint8` computes
            the same on every CPU. `int8` is what TensorRT and OpenVINO expect, and is faster in ONNX Runtime on x86
            CPUs with VNNI; without VNNI its products saturate there, and the logits are wrong. Weights of 7 bits or
            fewer (`settings: [{weights: 7}]`) are int8 always, and right everywhere.
        batch_size: images per forward pass in calibration.
        max_images: number of images to calibrate on, drawn at random; all by default.
        seed: seed of that draw.
        workers: number and resources of the Ray Train workers.
        allow_incomplete: accept a synthetic dataset with missing shards.
        allow_other_teacher: accept synthetic images made from another teacher, for example to quantize a student.
        score_batch_size: images per forward pass in scoring.
        latency_batch_size: images per forward pass when latency is measured.
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
    mode: Literal["sparse", "dense"] = "sparse"
    formats: list[FormatName] = field(default_factory=lambda: ["pt2", "onnx"])
    onnx_weights: Literal["uint8", "int8"] = "uint8"
    batch_size: int = 32
    max_images: int | None = None
    seed: int = 0
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    allow_incomplete: bool = False
    allow_other_teacher: bool = False
    score_batch_size: int = 64
    latency_batch_size: int = 8

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ConfigError(f"placement must be one of {list(PLACEMENTS)}, not {self.placement!r}")
        check_ranges(self, ("batch_size", "score_batch_size", "latency_batch_size", "max_images"), 1)
        check_ranges(self, ("seed",), 0)
        if self.onnx_weights not in ("uint8", "int8"):
            raise ConfigError(f"onnx_weights must be uint8 or int8, not {self.onnx_weights!r}")
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise ConfigError(f"settings must be one or more different bit widths, not {self.settings}")
        if not self.formats or len(set(self.formats)) != len(self.formats):
            raise ConfigError(f"formats must be one or more of {' and '.join(FORMATS)}, each once, not {self.formats}")
