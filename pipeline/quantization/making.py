"""Convert a calibrated program to files, open each, and compare it with what was calibrated."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.onnx import WeightType, open_onnx, save_onnx
from pipeline.artifacts.opened import Opened, Predictor
from pipeline.artifacts.pt2 import open_pt2, save_pt2
from pipeline.errors import CheckpointError, ModelError, PipelineError
from pipeline.evaluation import model_predictor
from pipeline.log import logger
from pipeline.models import LoadedModel
from pipeline.quantization.agreement import largest_deviation, relative_error
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.config import ArtifactFormat, CalibrationConfig
from pipeline.quantization.graphs import convert, reexport
from pipeline.quantization.ranges import Ranges

_OPEN: dict[ArtifactFormat, Callable[[str], Opened]] = {"pt2": open_pt2, "onnx": open_onnx}


@dataclass(frozen=True)
class Artifact:
    """A model in one format, and how to run it.

    Attributes:
        format: of the file; `torch` is the float model as it was loaded.
        size: in bytes, all files together.
        predict: images in the teacher's normalization → logits.
        bits: None for the float model.
        uri: where it will lie; None where it is only measured.
        errors: relative errors of its logits on calibration images: `fp32_error` against the float model, `deviation`
            from the quantized graph that was calibrated.
        note: anything that a user would otherwise wonder about.
    """

    format: str
    size: int
    predict: Predictor
    bits: BitWidths | None = None
    uri: str | None = None
    errors: dict[str, float] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Made:
    """Artifacts that compute what was calibrated, and a row of reasons for each that does not."""

    artifacts: list[Artifact]
    refused: list[dict[str, Any]]


@dataclass(frozen=True)
class _Expected:
    """Logits [B, classes] that a file is compared with, and the largest relative error that it may have."""

    images: Tensor
    floating: Tensor
    quantized: Tensor

    @property
    def bound(self) -> float:
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
    ranges: Ranges,
    images: Tensor,
    folder: Path,
) -> Made:
    """Convert for every bit width, write each format, open it from disk, and compare its logits with the graph's.

    A file that differs by more than `largest_deviation`, or cannot be written or opened, is deleted again and reported;
    the others are kept.

    Args:
        images: float32 [B, C, H, W], normalized, to compare on.
        folder: on this machine, for the files.
    """
    made, floating = Made([], []), model_predictor(loaded.model)(images)
    for bits in config.settings:
        quantized = reexport(convert(program, bits, config.placement, ranges), program)
        with torch.inference_mode():
            expected = _Expected(images, floating, quantized.module()(images))
        for kind in config.formats:
            path = folder / f"{bits.label}.{kind}"
            try:
                files = _save(quantized, kind, path, loaded, weights=_stored_as(config, bits))
                predict = _OPEN[kind](str(path)).predict
                errors, note = expected.errors(predict(images)), None
            except (ModelError, CheckpointError) as error:
                # The files that are finished are kept.
                made.refused.append(_refuse(path, f"could not be made: {error}"))
                continue
            if errors["deviation"] > expected.bound and _saturates(config, kind, bits, path, expected):
                note = _saturation_note(path.name, errors["deviation"])
            elif not errors["deviation"] <= expected.bound:
                made.refused.append(_refuse_deviation(path, errors["deviation"], expected.bound))
                continue
            uri, size = storage.join(config.output, path.name), sum(file.stat().st_size for file in files)
            made.artifacts.append(Artifact(kind, size, predict, bits, uri, errors, note))
    return made


def make_baselines(
    config: CalibrationConfig, loaded: LoadedModel, program: ExportedProgram, folder: Path
) -> tuple[list[Artifact], list[dict[str, Any]]]:
    """Return the float model in the runtimes of the artifacts, to compare with, and a row for each that has none.

    Nobody ships a baseline: one that cannot be made is a note in the report.
    """
    size = sum(value.numel() * value.element_size() for value in loaded.model.state_dict().values())
    baselines = [Artifact("torch", size, model_predictor(loaded.model))] if "pt2" in config.formats else []
    if "onnx" not in config.formats:
        return baselines, []
    path = folder / "fp32.onnx"
    try:
        files = _save(program, "onnx", path, loaded)
        predict = open_onnx(str(path)).predict
        predict(torch.zeros(1, *loaded.input_size))
    except (PipelineError, MemoryError, OSError) as error:
        note = f"not measured: {type(error).__name__}: {error}"
        logger.warning(f"fp32 as ONNX, to compare with, was {note}")
        return baselines, [{"artifact": "onnx", "note": note}]
    return [*baselines, Artifact("onnx", sum(file.stat().st_size for file in files), predict)], []


def _stored_as(config: CalibrationConfig, bits: BitWidths) -> WeightType:
    if bits.activations > 8:
        return "int16"
    return config.onnx_weights if bits.can_saturate else "int8"


def _save(program: ExportedProgram, kind: ArtifactFormat, path: Path, loaded: LoadedModel, **how: Any) -> list[Path]:
    facts = Facts.of(loaded)
    if kind == "onnx":
        return save_onnx(program, path, facts, **how)
    save_pt2(program, path, facts)
    return [path]


def _saturates(
    config: CalibrationConfig, kind: ArtifactFormat, bits: BitWidths, path: Path, expected: _Expected
) -> bool:
    """Whether a file is right and only this processor's products are not, as int8 weights were asked for."""
    if kind != "onnx" or config.onnx_weights != "int8" or not bits.can_saturate:
        return False
    exact = open_onnx(str(path), exact=True).predict(expected.images)
    return relative_error(exact, expected.quantized) <= expected.bound


def _saturation_note(name: str, deviation: float) -> str:
    note = (
        f"int8 weights: ONNX Runtime's products saturate on this processor, which has no VNNI; relative error of the "
        f"logits {deviation:.3g} here, none where they do not saturate (onnx_weights: uint8 is right everywhere)"
    )
    logger.warning(f"{name}: {note}")
    return note


def _refuse_deviation(path: Path, deviation: float, bound: float) -> dict[str, Any]:
    message = f"relative error {deviation:.3g}, at most {bound:.3g} is expected"
    return _refuse(path, f"computes other logits than were calibrated: {message}", deviation=deviation, bound=bound)


def _refuse(path: Path, reason: str, **figures: float) -> dict[str, Any]:
    """Delete what was written of a file, and return its row of the report."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    logger.error(f"{path.name} {reason}; it is not written")
    return {"artifact": path.name, **figures, "reason": reason}
