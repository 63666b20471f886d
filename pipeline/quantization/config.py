"""Settings of a calibration."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.checks import check_ranges
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig
from pipeline.quantization.settings import PLACEMENTS, BitWidths, Placement

# Which settings identify a calibration, see `pipeline.runs.identifying_settings`. The first list is frozen. Excluded
# are those that a fact stands for (weights, images), those of what follows after the ranges, and those that decide
# where and how fast they are calibrated.
RECORDED_SETTINGS = ("placement", "mode", "batch_size", "max_images", "seed")
EXCLUDED_SETTINGS = (
    *("teacher", "images", "output", "labelled", "labelled_split", "settings", "formats", "onnx_weights"),
    *("num_workers", "cpus_per_worker", "device", "start_timeout_s", "max_failures"),
    *("allow_incomplete", "allow_other_teacher", "score_batch_size", "latency_batch_size"),
)

ArtifactFormat = Literal["pt2", "onnx"]


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Calibrate a teacher on images, quantize it, and score what comes out.

    Args:
        teacher: the model to quantize.
        images: what to calibrate on: a synthetic dataset, Parquet with a column `image`, or a folder of images; real
            images and noise as well as synthetic ones. Or a list of such: all are read, one after another.
        images_split: which split of them, such as `train`, where there are several; of a list, that of each dataset
            that is not synthetic.
        output: where the artifacts, `ranges.json`, `config.json` and `report.json` go (any fsspec URI).
        labelled: URI of labelled images to score the artifacts on; without it they are timed only.
        labelled_split: which split of them, such as `test`, where there are several.
        settings: bit widths; one pass over the images serves them all. Widths below 8 make the artifact no faster.
        placement: what is quantized, see `MinMaxQuantizer`.
        mode: `sparse` reads the kept patches of each image alone, as a ViT can; `dense` whole images, with the mean
            color where patches are stopped.
        formats: kinds of artifacts to write.
        onnx_weights: how ONNX files store 8-bit weights that are multiplied with 8-bit activations. `uint8` computes
            the same on every CPU. `int8` is what TensorRT and OpenVINO expect, and is faster in ONNX Runtime on x86
            CPUs with VNNI; without VNNI its products saturate there, and the logits are wrong. Weights of 7 bits or
            fewer (`settings: [{weights: 7}]`) are int8 always, and right everywhere.
        batch_size: images a forward in calibration.
        max_images: calibrate on this many, drawn at random; on all by default.
        seed: of that draw.
        num_workers: Ray Train workers; 0 calibrates within this process.
        cpus_per_worker: CPU cores, and torch threads, of each worker.
        device: `auto` is one GPU for each worker where the cluster has any.
        start_timeout_s: to wait for all workers to start, nodes being started meanwhile; in whole minutes.
        max_failures: how often a worker may be lost before the job gives up.
        allow_incomplete: take what there is of a synthetic dataset that is not whole.
        allow_other_teacher: take synthetic images of another teacher than this model, as for quantizing a student.
        score_batch_size: images a forward in scoring.
        latency_batch_size: images a forward when latency is measured.
    """

    teacher: ModelConfig
    images: str | list[str]
    images_split: str | None = None
    output: str
    labelled: str | None = None
    labelled_split: str | None = None
    settings: list[BitWidths] = field(default_factory=lambda: [BitWidths()])
    placement: Placement = "linear"
    mode: Literal["sparse", "dense"] = "sparse"
    formats: list[ArtifactFormat] = field(default_factory=lambda: ["pt2", "onnx"])
    onnx_weights: Literal["uint8", "int8"] = "uint8"
    batch_size: int = 32
    max_images: int | None = None
    seed: int = 0
    num_workers: int = 1
    cpus_per_worker: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_s: int = 900
    max_failures: int = 3
    allow_incomplete: bool = False
    allow_other_teacher: bool = False
    score_batch_size: int = 64
    latency_batch_size: int = 8

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ConfigError(f"placement must be one of {list(PLACEMENTS)}, not {self.placement!r}")
        counts = ("batch_size", "cpus_per_worker", "start_timeout_s", "score_batch_size", "latency_batch_size")
        check_ranges(self, (*counts, "max_images"), 1)
        check_ranges(self, ("seed", "num_workers", "max_failures"), 0)
        if self.onnx_weights not in ("uint8", "int8"):
            raise ConfigError(f"onnx_weights must be uint8 or int8, not {self.onnx_weights!r}")
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise ConfigError(f"settings must be one or more different bit widths, not {self.settings}")
        if not self.formats or len(set(self.formats)) != len(self.formats):
            raise ConfigError(f"formats must be one or more of pt2 and onnx, each once, not {self.formats}")
