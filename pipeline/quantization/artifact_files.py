"""Convert a calibrated program to files, open each, and compare it with what was calibrated."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import FormatName, ending_of, format_named, load_quantized, save
from pipeline.artifacts.onnx import WeightType
from pipeline.artifacts.opened import Predictor
from pipeline.artifacts.weights import model_predictor
from pipeline.errors import FormError, PipelineError
from pipeline.log import logger
from pipeline.models import LoadedModel
from pipeline.quantization.agreement import largest_deviation, relative_error
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.graphs import convert, reexport
from pipeline.quantization.mixed import Mixture
from pipeline.quantization.variants import Values, Variant

# Errors with which a single file may fail, above all of a large model. The other files are kept.
_NOT_MADE = (PipelineError, MemoryError, OSError)
_INT4_NOTE = (
    "weights packed in 4 bits: half the size of int8, but ONNX Runtime unpacks them in every forward on a CPU, and is "
    "slower than fp32"
)


@dataclass(frozen=True)
class Artifact:
    """A model in one format, and how to run it.

    Attributes:
        format: format of the file; `torch` is the float model as it was loaded.
        size: size in bytes, of all files together.
        predict: function of images in the teacher's normalization [B, C, H, W] that returns logits [B, classes].
        bits: bit widths; None for the float model.
        uri: location that the file will have; None where the artifact is only measured.
        errors: relative errors of its logits on calibration images: `fp32_error` against the float model, and
            `deviation` from the quantized graph that was calibrated.
        note: text that explains figures which would surprise a user.
        mixture: widths of each layer where layers differ; `bits` then holds the largest ones.
    """

    format: str
    size: int
    predict: Predictor
    bits: BitWidths | None = None
    uri: str | None = None
    errors: dict[str, float] | None = None
    note: str | None = None
    mixture: Mixture | None = None


@dataclass(frozen=True)
class MadeArtifacts:
    """Artifacts that agree with the calibrated graph, and for each one that does not a row that says why."""

    artifacts: list[Artifact]
    refused: list[dict[str, Any]]


@dataclass(frozen=True)
class _Calibrated:
    """A quantized program, which files are made of and compared with.

    Attributes:
        variant: name and bit widths of the model.
        images: images to compare logits on, float32 [B, C, H, W], normalized.
        floating, quantized: logits [B, classes] of the float model and of the program for these images.
    """

    variant: Variant
    program: ExportedProgram
    images: Tensor
    floating: Tensor
    quantized: Tensor

    @property
    def bound(self) -> float:
        """Largest relative error that a file of this program may have."""
        return largest_deviation(self.quantized, self.floating)

    def errors(self, logits: Tensor) -> dict[str, float]:
        return {
            "fp32_error": relative_error(logits, self.floating),
            "deviation": relative_error(logits, self.quantized),
        }


def make_artifacts(
    config: CalibrationConfig,
    loaded: LoadedModel,
    program: ExportedProgram,
    variants: Iterable[tuple[Variant, Values]],
    images: Tensor,
    folder: Path,
) -> MadeArtifacts:
    """Convert each variant, write it in each format, open it, and compare its logits with the graph's.

    A file that differs by more than `largest_deviation`, or cannot be written or opened, is deleted again and reported;
    the others are kept.

    Args:
        config: settings of the calibration, of which formats and placement count here.
        loaded: the float model.
        program: the graph to quantize, exported from the model as it was loaded or transformed.
        variants: models to make, each with the values that it is quantized with.
        images: float32 [B, C, H, W], normalized: images to compare logits on.
        folder: path on this machine, for the files.
    """
    made, floating = MadeArtifacts([], []), model_predictor(loaded.model)(images)
    for variant, values in variants:
        quantized = _quantize(config, program, variant, values)
        with torch.inference_mode():
            logits = quantized.module()(images)
        calibrated = _Calibrated(variant, quantized, images, floating, logits)
        for kind in config.formats:
            result = _make(config, loaded, calibrated, kind, folder / f"{variant.label}{ending_of(kind)}")
            if isinstance(result, Artifact):
                made.artifacts.append(result)
            else:
                made.refused.append(result)
    return made


def _quantize(config: CalibrationConfig, program: ExportedProgram, variant: Variant, values: Values) -> ExportedProgram:
    own = values.ranges, variant.layers, values.parameters, values.scales
    return reexport(convert(program, variant.bits, config.placement, *own), program)


def _make(
    config: CalibrationConfig, loaded: LoadedModel, calibrated: _Calibrated, kind: FormatName, path: Path
) -> Artifact | dict[str, Any]:
    """Write a file and open it; return the artifact, or the row of the report that says why it is refused."""
    variant, bound, options = calibrated.variant, calibrated.bound, _save_options(config, kind, calibrated.variant)
    try:
        files = save(calibrated.program, path, Facts.of(loaded), **options)
        # Safe: this process compiled the file from its own program a moment ago.
        predict = load_quantized(path, allow_compiled=True).predict
        errors = calibrated.errors(predict(calibrated.images))
    except _NOT_MADE as error:
        reason = f"could not be made: {type(error).__name__}: {error}"
        return _refuse(path, reason, may_come=not isinstance(error, FormError))
    note = _int4_note(config, variant, path.name, options.get("weights")) or format_named(kind).note(calibrated.program)
    if errors["deviation"] > bound and _saturates(config, calibrated, kind, path):
        note = _saturation_note(path.name, errors["deviation"])
    elif not errors["deviation"] <= bound:
        return _refuse_deviation(path, errors["deviation"], bound)
    uri = storage.join(config.output, path.name)
    return Artifact(kind, _total_size(files), predict, variant.bits, uri, errors, note, variant.mixture)


def make_baselines(
    config: CalibrationConfig, loaded: LoadedModel, program: ExportedProgram, folder: Path
) -> tuple[list[Artifact], list[dict[str, Any]]]:
    """Return the float model in the runtimes of the artifacts, to compare with, and a row for each that has none.

    Baselines are only for comparison: one that cannot be made becomes a note in the report.
    """
    in_files: list[FormatName] = [kind for kind in config.formats if not format_named(kind).in_torch]
    baselines = [_float_model(loaded)] if len(in_files) < len(config.formats) else []
    missing: list[dict[str, Any]] = []
    for kind in in_files:
        try:
            baselines.append(_float_file(kind, loaded, program, folder))
        except _NOT_MADE as error:
            note = f"not measured: {type(error).__name__}: {error}"
            logger.warning(f"the fp32 baseline as {kind.upper()} was {note}")
            missing.append({"artifact": kind, "note": note})
    return baselines, missing


def _float_model(loaded: LoadedModel) -> Artifact:
    size = sum(value.numel() * value.element_size() for value in loaded.model.state_dict().values())
    return Artifact("torch", size, model_predictor(loaded.model))


def _float_file(kind: FormatName, loaded: LoadedModel, program: ExportedProgram, folder: Path) -> Artifact:
    path = folder / f"fp32{ending_of(kind)}"
    files = save(program, path, Facts.of(loaded))
    predict = load_quantized(path, allow_compiled=True).predict
    predict(torch.zeros(1, *loaded.input_size))
    return Artifact(kind, _total_size(files), predict)


def _total_size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _save_options(config: CalibrationConfig, kind: FormatName, variant: Variant) -> dict[str, WeightType]:
    """Return how weights are stored, for a format that offers a choice."""
    if not format_named(kind).takes_weights:
        return {}
    if variant.bits.activations > 8:
        return {"weights": "int16"}
    if config.onnx_int4 and variant.bits.fits_int4:
        return {"weights": "int4"}
    return {"weights": config.onnx_weights if variant.can_saturate else "int8"}


def _int4_note(config: CalibrationConfig, variant: Variant, name: str, stored: WeightType | None) -> str | None:
    """Say what `onnx_int4` does to a file, or why it leaves the file alone although some layers have so few bits."""
    if stored == "int4":
        return _INT4_NOTE
    if stored is None or not config.onnx_int4 or all(bits.weights > 4 for bits in variant.widths):
        return None
    kept = "neither smaller nor faster than 8 bits on a CPU runtime" if stored != "int16" else "computed in float"
    note = f"not packed, as some layers have more than 4 bits per weight or 8 per activation: kept in {stored}, {kept}"
    logger.warning(f"{name}: onnx_int4: {note}")
    return note


def _saturates(config: CalibrationConfig, calibrated: _Calibrated, kind: FormatName, path: Path) -> bool:
    """Return whether a file is right, and only products of its int8 weights saturate on this processor."""
    open_exact = format_named(kind).open_exact
    if open_exact is None or config.onnx_weights != "int8" or not calibrated.variant.can_saturate:
        return False
    exact = open_exact(str(path)).predict(calibrated.images)
    return relative_error(exact, calibrated.quantized) <= calibrated.bound


def _saturation_note(name: str, deviation: float) -> str:
    note = (
        f"int8 weights: ONNX Runtime's products saturate on this processor, which has no VNNI; relative error of the "
        f"logits {deviation:.3g} here, none where they do not saturate (onnx_weights: uint8 is right everywhere)"
    )
    logger.warning(f"{name}: {note}")
    return note


def _refuse_deviation(path: Path, deviation: float, bound: float) -> dict[str, Any]:
    message = f"its logits have a relative error of {deviation:.3g}, {bound:.3g} is allowed"
    reason = f"differs from the calibrated model: {message}"
    return _refuse(path, reason, may_come=False, deviation=deviation, bound=bound)


def _refuse(path: Path, reason: str, *, may_come: bool, **figures: float) -> dict[str, Any]:
    """Delete a refused file, as far as it was written, and return its row of the report.

    Args:
        path: path of the file.
        reason: why there is no such artifact, in one line.
        may_come: whether the same job may succeed another time, with more disk space for example. Checkpoints of hours
            of training are kept until then.
        figures: further figures of the row.
    """
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    logger.error(f"{path.name} {reason}; it is not written")
    return {"artifact": path.name, **figures, "may_come": may_come, "reason": reason}
