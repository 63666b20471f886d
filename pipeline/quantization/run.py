"""Calibrate on Ray, convert, export, score: from a teacher and images to artifacts and one row of figures for each."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray.data
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.artifacts.onnx import check_onnx
from pipeline.cluster import check_cluster, connect
from pipeline.config import to_dict
from pipeline.dataset.collection import ImageCollection, find_images, image_facts
from pipeline.errors import DatasetError, ModelError
from pipeline.evaluation import Score, labelled_batches, measure_latency, score
from pipeline.inputs import check_inputs, find_labelled, read_inputs
from pipeline.models import LoadedModel, load_model
from pipeline.outputs import CONFIG, check_output, check_place
from pipeline.quantization.config import EXCLUDED_SETTINGS, RECORDED_SETTINGS, CalibrationConfig
from pipeline.quantization.distributed import Calibration, calibrate_ranges
from pipeline.quantization.graphs import export_images
from pipeline.quantization.making import Artifact, make_artifacts, make_baselines
from pipeline.quantization.quantizer import find_float_layers, tell_float_layers
from pipeline.quantization.ranges import check_ranges
from pipeline.runs import check_same, hold, identifying_settings, make_document
from pipeline.vetting import announce, check_teacher
from pipeline.vit.families import refusal

REPORT = "report.json"
_MEGABYTE = 1e6
_NARROW_NOTE = "below 8 bits, kept in int8: neither smaller nor faster than 8 bits on a CPU runtime"
_WIDE_NOTE = "above 8 bits, kept in 16: CPU runtimes compute it in float"
_REFERENCE_NOTE = "reference: dequantizes before every operator, so it is slower than fp32"


def calibrate(config: CalibrationConfig) -> dict[str, Any]:
    """Run the whole calibration; returns what the job prints, which `report.json` under the output holds too.

    Each artifact is opened from its file and compared with what was calibrated, on calibration images. One that
    computes other logits is not written; `failed` in the report names it, with its error, and `complete` is false.

    Raises:
        PipelineError: a model, dataset or setting is wrong, the output cannot be written or is of another config, or
            the workers were lost too often. Nothing is under the output then, unless the artifacts were made already
            and only measuring them failed, or writing itself: whole files only. A run of equal settings that is at
            work there is waited for.
    """
    # What can be wrong is found out before a cluster is joined or anything is written.
    check_cluster()
    check_place(config.output, shared=config.num_workers > 0)
    if "onnx" in config.formats:
        check_onnx()
    loaded = load_model(config.teacher)
    announce(loaded.notices)
    # Ranges are calibrated on whatever a model answers with; only scores read it as classes.
    check_teacher(loaded, classes=config.labelled is not None)
    _check_mode(config, loaded)
    images = find_images(config.images, split=config.images_split)
    _check_images(config, images, loaded)
    check_inputs(images, loaded)
    labelled = None if config.labelled is None else find_labelled(config.labelled, loaded, config.labelled_split)
    program = export_images(loaded.model, config.placement)
    tell_float_layers(loaded.name, find_float_layers(loaded.model, program))
    document = _document(config, images, loaded)
    _check_claim(config.output, document)

    with hold(config.output, "calibrate", document) as (claimed, waited):
        report_uri = storage.join(config.output, REPORT)
        if waited and claimed.document["config"] == document["config"] and storage.exists(report_uri):
            return storage.read_json(report_uri)  # the run that was waited for was asked for the same
        fixed = connect()
        rows = read_inputs(images, loaded)
        batches = None if labelled is None else labelled_batches(labelled, loaded, config.score_batch_size)
        with storage.writing_to(config.output):
            return _calibrate(config, loaded, program, document, rows, batches, fixed=fixed)


def _calibrate(
    config: CalibrationConfig,
    loaded: LoadedModel,
    program: ExportedProgram,
    document: dict[str, Any],
    images: ray.data.Dataset,
    labelled: Iterable[tuple[Tensor, Tensor]] | None,
    *,
    fixed: bool,
) -> dict[str, Any]:
    calibration = calibrate_ranges(config, images, loaded, document["digest"], fixed=fixed)
    check_ranges(calibration.ranges)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        files = Path(folder, "made")
        files.mkdir()
        made = make_artifacts(config, loaded, program, calibration.ranges, calibration.samples, files)
        baselines, missing = make_baselines(config, loaded, program, Path(folder))
        rows = _measure(config, loaded, baselines + made.artifacts, labelled)
        # Only now: data that turns out bad while it is scored leaves nothing behind. A baseline that fails is a note.
        storage.write_json(storage.join(config.output, CONFIG), document)
        storage.write_json(storage.join(config.output, "ranges.json"), calibration.ranges)
        storage.upload_folder(files, config.output)
        _remove_refused(config.output, made.refused)
    fp32 = rows[: len(baselines)] + missing
    report = _report(config, calibration, fp32, rows[len(baselines) :], made.refused)
    storage.write_json(storage.join(config.output, REPORT), report)
    return report


def _document(config: CalibrationConfig, images: ImageCollection, loaded: LoadedModel) -> dict[str, Any]:
    """Return what `config.json` says: what decides the ranges and with them every artifact, and its digest.

    Bit widths and workers decide neither, so an output takes further bit widths.
    """
    facts = {
        "teacher": loaded.digest,
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        **image_facts(images),
        **identifying_settings(config, recorded=RECORDED_SETTINGS, excluded=EXCLUDED_SETTINGS),
    }
    preprocessing = config.teacher.preprocessing()
    if preprocessing and not all(source.synthetic for source in images.sources):
        facts["preprocessing"] = preprocessing
    return make_document("calibrate", facts, to_dict(config))


def _check_claim(output: str, document: dict[str, Any]) -> None:
    """Refuse an output of another run, or one that cannot be written, while nothing is written yet.

    Raises:
        DatasetError: it is.
    """
    check_output(output, "calibrate")
    uri = storage.join(output, CONFIG)
    if storage.exists(uri):
        check_same(output, "calibrate", storage.read_json(uri), document)
    storage.check_writable(output)


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


def _check_images(config: CalibrationConfig, images: ImageCollection, loaded: LoadedModel) -> None:
    """Synthetic images know how many they should be, and which teacher they are of.

    Raises:
        DatasetError: some are missing, or they are of another, and the config does not say that this is meant.
    """
    if not config.allow_incomplete:
        images.check_complete()
    for source in images.sources:
        if source.manifest is None or config.allow_other_teacher:
            continue
        name, weights = source.manifest["teacher"]["name"], source.manifest["teacher"]["weights_sha256"]
        if weights != loaded.digest:
            raise DatasetError(
                f"{source.uri!r} holds images of the teacher {name!r} with weights {weights[:8]}, "
                f"not of {loaded.name!r} with weights {loaded.digest[:8]}; allow_other_teacher takes them all the same"
            )


def _remove_refused(output: str, refused: list[dict[str, Any]]) -> None:
    """Delete what an earlier run wrote under the name of an artifact that turned out wrong."""
    for row in refused:
        for name in (row["artifact"], f"{row['artifact']}.data"):
            storage.remove(storage.join(output, name))


def _measure(
    config: CalibrationConfig,
    loaded: LoadedModel,
    artifacts: list[Artifact],
    labelled: Iterable[tuple[Tensor, Tensor]] | None,
) -> list[dict[str, Any]]:
    """Return a row of figures for each, scored in one pass where there are labelled images."""
    scores = {}
    if labelled is not None:
        scores = score({str(number): artifact.predict for number, artifact in enumerate(artifacts)}, labelled)
    return [
        _row(artifact, scores.get(str(number)), _latency(artifact, loaded, config.latency_batch_size))
        for number, artifact in enumerate(artifacts)
    ]


def _latency(artifact: Artifact, loaded: LoadedModel, batch_size: int) -> float:
    return measure_latency(artifact.predict, torch.zeros(batch_size, *loaded.input_size))


def _row(artifact: Artifact, scored: Score | None, latency: float) -> dict[str, Any]:
    row: dict[str, Any] = {"artifact": artifact.format}
    if artifact.bits is not None:
        row = {"weights": artifact.bits.weights, "activations": artifact.bits.activations, **row, "uri": artifact.uri}
    row |= {"size_mb": round(artifact.size / _MEGABYTE, 4), "latency_ms": round(latency, 4)}
    row |= {name: float(f"{error:.3g}") for name, error in (artifact.errors or {}).items()}
    if scored is not None:
        row |= {"top1": scored.top1, "top5": scored.top5, "images": scored.images}
    note = _note(artifact)
    return row if note is None else row | {"note": note}


def _note(artifact: Artifact) -> str | None:
    """Return what a user would otherwise wonder about in a row's figures."""
    if artifact.bits is None or artifact.note is not None:
        return artifact.note
    if artifact.format == "pt2":
        return _REFERENCE_NOTE
    widths = (artifact.bits.weights, artifact.bits.activations)
    return _WIDE_NOTE if max(widths) > 8 else _NARROW_NOTE if min(widths) < 8 else None


def _report(
    config: CalibrationConfig,
    calibration: Calibration,
    baselines: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    refused: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "complete": not refused,
        "images": calibration.num_images,
        "images_per_worker": [len(part) for part in calibration.image_ids],
        "placement": config.placement,
        "mode": config.mode,
        "ranges": storage.join(config.output, "ranges.json"),
        "latency": f"ms an image at batch {config.latency_batch_size}, median, {torch.get_num_threads()} threads",
        "fp32": baselines,
        "artifacts": rows,
        **({"failed": refused} if refused else {}),
    }
