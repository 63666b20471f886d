"""Calibrate on Ray, convert, export, score: from a teacher and images to artifacts and one row of figures for each."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.cluster import connect
from pipeline.config import digest, to_dict
from pipeline.dataset.sources import Source, find_source
from pipeline.errors import DatasetError, ModelError
from pipeline.evaluation import (
    Predictor,
    Score,
    labelled_batches,
    measure_latency,
    model_predictor,
    onnx_predictor,
    pt2_predictor,
    score,
)
from pipeline.inputs import check_inputs, find_labelled, read_inputs
from pipeline.models import LoadedModel, load_model
from pipeline.outputs import CONFIG, check_output, check_shared
from pipeline.quantization.artifacts import check_onnx, save_onnx, save_pt2
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.distributed import Calibration, calibrate_ranges
from pipeline.quantization.graphs import convert, export_images, reexport
from pipeline.quantization.ranges import Ranges, check_ranges
from pipeline.quantization.settings import BitWidths
from pipeline.vit.families import refusal

_MEGABYTE = 1e6
_NARROW_NOTE = "below 8 bits, kept in int8: neither smaller nor faster than 8 bits on a CPU runtime"
_WIDE_NOTE = "above 8 bits, kept in int16: CPU runtimes compute it in float"
_REFERENCE_NOTE = "reference: dequantizes before every operator, so it is slower than fp32"


@dataclass(frozen=True)
class _Artifact:
    """A file that was made, where it will lie, and how to run it."""

    bits: BitWidths | None
    format: str
    uri: str | None
    size: int
    predict: Predictor


def calibrate(config: CalibrationConfig) -> dict[str, Any]:
    """Run the whole calibration; returns what the job prints, which `report.json` under the output holds too.

    Raises:
        PipelineError: a model, dataset or setting is wrong, the output cannot be written or is of another config, or
            the workers were lost too often. Nothing is under the output then, unless writing itself failed half-way:
            whole files only.
    """
    # What can be wrong is found out before a cluster is joined or anything is written.
    if config.num_workers:
        check_shared(config.output)
    if "onnx" in config.formats:
        check_onnx()
    loaded = load_model(config.teacher)
    _check_mode(config, loaded)
    source = find_source(config.images, split=config.images_split)
    _check_source(config, source, loaded)
    check_inputs(source, loaded)
    labelled = None if config.labelled is None else find_labelled(config.labelled, loaded, config.labelled_split)
    program = export_images(loaded.model, config.placement)
    identity = _identity(config, source, loaded)
    _claim(config.output, identity)

    fixed = connect()
    images = read_inputs(source, loaded)
    batches = None if labelled is None else labelled_batches(labelled, loaded, config.score_batch_size)
    with storage.writing_to(config.output):
        return _calibrate(config, loaded, program, identity, images, batches, fixed=fixed)


def _calibrate(
    config: CalibrationConfig,
    loaded: LoadedModel,
    program: ExportedProgram,
    identity: dict[str, Any],
    images: ray.data.Dataset,
    labelled: Iterable[tuple[Tensor, Tensor]] | None,
    *,
    fixed: bool,
) -> dict[str, Any]:
    calibration = calibrate_ranges(config, images, loaded, identity["digest"], fixed=fixed)
    check_ranges(calibration.ranges)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        made = Path(folder, "made")
        made.mkdir()
        artifacts = _make_artifacts(config, program, calibration.ranges, made)
        baselines = _baselines(config, loaded, program, Path(folder))
        rows = _measure(config, loaded, baselines + artifacts, labelled)
        # Only now: what turns out bad while it is scored leaves nothing behind.
        storage.write_json(
            storage.join(config.output, CONFIG), {**identity, "job": "calibrate", "config": to_dict(config)}
        )
        storage.write_json(storage.join(config.output, "ranges.json"), calibration.ranges)
        storage.upload_folder(made, config.output)
    report = _report(config, calibration, rows[: len(baselines)], rows[len(baselines) :])
    storage.write_json(storage.join(config.output, "report.json"), report)
    return report


def _identity(config: CalibrationConfig, source: Source, loaded: LoadedModel) -> dict[str, Any]:
    """What decides the ranges and with them every artifact, and its digest; bit widths and workers do not."""
    deciding = {
        "teacher": loaded.digest,
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "images": storage.absolute(config.images),
        "dataset": (source.manifest or {}).get("digest"),
        "num_images": source.num_rows,
        "placement": config.placement,
        "mode": config.mode,
        "batch_size": config.batch_size,
        "max_images": config.max_images,
        "seed": config.seed,
        # A calibration of before there were splits keeps its digest.
        **({} if config.images_split is None else {"images_split": config.images_split}),
    }
    return {**deciding, "digest": digest(deciding)}


def _check_mode(config: CalibrationConfig, loaded: LoadedModel) -> None:
    """Only a family that can be run on a token subset is calibrated on kept patches.

    Raises:
        ModelError: it is another, and the mode is `sparse`.
    """
    reason = refusal(loaded.model)
    if config.mode == "sparse" and reason is not None:
        family = type(loaded.model).__name__
        raise ModelError(
            f"{family} cannot be calibrated on kept patches alone: {reason}; mode dense reads the filled images"
        )


def _check_source(config: CalibrationConfig, source: Source, loaded: LoadedModel) -> None:
    """Synthetic images know how many they should be, and which teacher they are of.

    Raises:
        DatasetError: some are missing, or they are of another, and the config does not say that this is meant.
    """
    if not config.allow_incomplete:
        source.check_complete()
    manifest = source.manifest
    if manifest is None or config.allow_other_teacher:
        return
    name, weights = manifest["teacher"]["name"], manifest["teacher"]["weights_sha256"]
    if weights != loaded.digest:
        raise DatasetError(
            f"{config.images!r} holds images of the teacher {name!r} with weights {weights[:8]}, "
            f"not of {loaded.name!r} with weights {loaded.digest[:8]}; allow_other_teacher takes them all the same"
        )


def _claim(output: str, identity: dict[str, Any]) -> None:
    """Make sure that the output can be written and holds nothing of another calibration.

    Raises:
        DatasetError: it cannot, or it does.
    """
    check_output(output, "calibrate")
    uri = storage.join(output, CONFIG)
    there = storage.read_json(uri) if storage.exists(uri) else identity
    differing = [name for name in identity if there.get(name) != identity[name] and name != "digest"]
    if differing:
        name = differing[0]
        raise DatasetError(
            f"{output!r} holds artifacts of another calibration: "
            f"{name} was {there.get(name)!r}, now it is {identity[name]!r}"
        )
    storage.check_writable(output)


def _make_artifacts(
    config: CalibrationConfig, program: ExportedProgram, ranges: Ranges, folder: Path
) -> list[_Artifact]:
    """Convert for every bit width, write each format to a local folder, and read it back from what was written."""
    artifacts = []
    for bits in config.settings:
        quantized = reexport(convert(program, bits, config.placement, ranges), program)
        for kind in config.formats:
            path = folder / f"{bits.label}.{kind}"
            content = _save(quantized, kind, path)
            uri = storage.join(config.output, path.name)
            artifacts.append(_Artifact(bits, kind, uri, len(content), _open(kind, content, uri)))
    return artifacts


def _baselines(
    config: CalibrationConfig, loaded: LoadedModel, program: ExportedProgram, folder: Path
) -> list[_Artifact]:
    """The float model in the runtimes of the artifacts, to compare with."""
    size = sum(value.numel() * value.element_size() for value in loaded.model.state_dict().values())
    baselines = []
    if "pt2" in config.formats:
        baselines.append(_Artifact(None, "torch", None, size, model_predictor(loaded.model)))
    if "onnx" in config.formats:
        content = _save(program, "onnx", folder / "fp32.onnx")
        baselines.append(_Artifact(None, "onnx", None, len(content), _open("onnx", content, "fp32.onnx")))
    return baselines


def _measure(
    config: CalibrationConfig,
    loaded: LoadedModel,
    artifacts: list[_Artifact],
    labelled: Iterable[tuple[Tensor, Tensor]] | None,
) -> list[dict[str, Any]]:
    """A row of figures for each, scored in one pass where there are labelled images."""
    scores = {}
    if labelled is not None:
        scores = score({str(number): artifact.predict for number, artifact in enumerate(artifacts)}, labelled)
    return [
        _row(artifact, scores.get(str(number)), _latency(artifact, loaded, config.latency_batch_size))
        for number, artifact in enumerate(artifacts)
    ]


def _save(program: ExportedProgram, kind: str, path: Path) -> bytes:
    (save_onnx if kind == "onnx" else save_pt2)(program, path)
    return path.read_bytes()


def _open(kind: str, content: bytes, uri: str) -> Predictor:
    return (onnx_predictor if kind == "onnx" else pt2_predictor)(content, uri)


def _latency(artifact: _Artifact, loaded: LoadedModel, batch_size: int) -> float:
    return measure_latency(artifact.predict, torch.zeros(batch_size, *loaded.input_size))


def _row(artifact: _Artifact, scored: Score | None, latency: float) -> dict[str, Any]:
    row: dict[str, Any] = {"artifact": artifact.format}
    if artifact.bits is not None:
        row = {"weights": artifact.bits.weights, "activations": artifact.bits.activations, **row, "uri": artifact.uri}
    row |= {"size_mb": round(artifact.size / _MEGABYTE, 4), "latency_ms": round(latency, 4)}
    if scored is not None:
        row |= {"top1": scored.top1, "top5": scored.top5, "images": scored.images}
    note = _note(artifact)
    return row if note is None else row | {"note": note}


def _note(artifact: _Artifact) -> str | None:
    """What a user would otherwise wonder about in a row's figures."""
    if artifact.bits is None:
        return None
    if artifact.format == "pt2":
        return _REFERENCE_NOTE
    widths = (artifact.bits.weights, artifact.bits.activations)
    return _WIDE_NOTE if max(widths) > 8 else _NARROW_NOTE if min(widths) < 8 else None


def _report(
    config: CalibrationConfig, calibration: Calibration, baselines: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "complete": True,
        "images": calibration.num_images,
        "images_per_worker": [len(part) for part in calibration.image_ids],
        "placement": config.placement,
        "mode": config.mode,
        "ranges": storage.join(config.output, "ranges.json"),
        "latency": f"ms an image at batch {config.latency_batch_size}, median, {torch.get_num_threads()} threads",
        "fp32": baselines,
        "artifacts": rows,
    }
