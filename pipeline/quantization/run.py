"""Run a calibration: observe ranges, convert, export and score."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram

from pipeline import storage
from pipeline.cluster import check_cluster, connect
from pipeline.credentials import redacted
from pipeline.errors import first_few
from pipeline.evaluation import Score, labeled_batches, measure_accuracy
from pipeline.log import logger
from pipeline.out_of_memory import naming_batch_size
from pipeline.outputs import hold
from pipeline.outputs.names import CONFIG, RANGES, REPORT, SENSITIVITY
from pipeline.quantization.artifact_files import Artifact, make_artifacts, make_baselines
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.distributed import Calibration, calibrate_ranges, read_window
from pipeline.quantization.graphs import export_images
from pipeline.quantization.latency import measure_latencies
from pipeline.quantization.layerwise import examine_layers, write_layerwise
from pipeline.quantization.mixed import Mixture
from pipeline.quantization.plan import CalibrationPlan, check_before_making, check_settings, plan_calibration
from pipeline.quantization.previous_run import find_left, finished_report, is_final, settle_refused
from pipeline.quantization.qat import check_training, train_variants
from pipeline.quantization.qat_checkpoints import remove_checkpoints, remove_others, tell_others
from pipeline.quantization.qat_loop import FIGURES, Trained
from pipeline.quantization.ranges import Ranges, check_observed_ranges, range_error
from pipeline.quantization.refinement import Refinement
from pipeline.quantization.report import calibration_page, figures, latency_columns
from pipeline.quantization.transforms import model_to_quantize
from pipeline.quantization.variants import Values, Variant, calibrated_values, list_variants
from pipeline.report.writing import write_page
from pipeline.synthesis.input_synthesis import make_first, names_config
from pipeline.torch_modes import usual_modes
from pipeline.tracking.tracker import Tracker, check_tracking, tracking

_MEGABYTE = 1e6
_NARROW_NOTE = "below 8 bits, kept in int8: neither smaller nor faster than 8 bits on a CPU runtime"
_WIDE_NOTE = "above 8 bits, kept in 16: CPU runtimes compute it in float"


@usual_modes()
def calibrate(config: CalibrationConfig) -> dict[str, Any]:
    """Run the whole calibration; return what the job prints, which is also stored as `report.json` in the output.

    Each artifact is opened from its file and compared with the calibrated graph, on calibration images. An artifact
    that computes other logits is not written; `failed` in the report names it with its error, and `complete` is false.
    If a run with equal settings is at work on the output, this one waits for it. With `qat`, a finished run is not done
    again, and one that was stopped goes on from the last checkpoint of its training.

    Raises:
        PipelineError: a model, dataset or setting is wrong, the output cannot be written or is of another config, or
            workers were lost too often. The output is then empty, unless training had begun, or measuring or writing
            the artifacts failed; it never holds incomplete files.
    """
    check_cluster()
    check_tracking(config.tracking)
    checked = check_settings(config)
    if names_config(config.images):
        to_make = check_before_making(checked, config.images)
        # All images are made first, because those to calibrate on are drawn at random and read several times.
        made = make_first(to_make, allow_incomplete=config.allow_incomplete)
        config = replace(config, images=made)
    # Errors should come out before a cluster is joined or anything is written.
    plan = plan_calibration(config, checked)
    with hold(config.output, "calibrate", plan.document) as (claimed, waited):
        done = finished_report(plan, claimed, waited=waited)
        if done is not None:
            if is_final(done):
                _remove_all_checkpoints(plan)
            return done
        tell_others(config.output, plan.digest)
        with tracking(config.tracking, "calibrate", plan.digest, plan.document["config"]) as tracker:
            connect()
            check_training(plan)
            report = _calibrate(plan, tracker)
            tracker.set_result(figures(report))
            return report


def _calibrate(plan: CalibrationPlan, tracker: Tracker) -> dict[str, Any]:
    config, loaded = plan.config, plan.loaded
    calibration = calibrate_ranges(plan)
    check_observed_ranges(calibration.ranges)
    error = None if plan.reference is None else range_error(calibration.ranges, plan.reference)
    ranges = {bits: calibration.ranges_for(bits) for bits in config.activation_bits}
    program, layerwise = _quantized_program(plan, calibration), None
    refinement = _refinement(config, program, calibration)
    if plan.probe is not None:
        images = read_window(plan, plan.probe)
        layerwise = examine_layers(replace(plan, program=program), ranges, images, refinement)
    mixture = None if layerwise is None else layerwise.mixture
    variants = [(each, calibrated_values(each, ranges, refinement)) for each in list_variants(config, mixture)]
    trained = _train(plan, calibration, variants)
    _track(tracker, trained)
    variants = [(each, trained[each.label].values if each.label in trained else found) for each, found in variants]
    with storage.scratch_folder("calibrate-") as folder:
        files = folder / "made"
        files.mkdir()
        made = make_artifacts(config, loaded, program, variants, calibration.samples, files)
        if layerwise is not None:
            write_layerwise(layerwise, files)
        baselines, missing = make_baselines(config, loaded, plan.program, folder)
        rows = _measure(plan, baselines, made.artifacts)
        # Written only now, so that bad data found while scoring leaves nothing behind. A failed baseline is only noted.
        with storage.writing_to(config.output):
            # An earlier run's report describes other artifacts. If this run is killed from here on, there is none.
            storage.remove(storage.join(config.output, REPORT))
            storage.write_json(storage.join(config.output, CONFIG), plan.document)
            _write_ranges(config, calibration, ranges, trained)
            storage.upload_folder(files, config.output)
            refused = settle_refused(config.output, made.refused)
    fp32 = rows[: len(baselines)] + missing
    measured = layerwise is not None
    report = _report(config, calibration, fp32, rows[len(baselines) :], refused, sensitivity=measured)
    if config.qat is not None:
        report["qat"] = {label: _training(plan, label, found) for label, found in trained.items()}
    if error is not None:
        report["range_error"] = error
    with storage.writing_to(config.output):
        left = find_left(config.output, report)
        if left:
            report["left"] = left
        storage.write_json(storage.join(config.output, REPORT), redacted(report))
    losses = {label: found.losses for label, found in trained.items()}
    write_page(config.output, lambda: calibration_page(plan, report, calibration.ranges, layerwise, losses))
    _settle_checkpoints(plan, refused)
    return report


def _settle_checkpoints(plan: CalibrationPlan, refused: list[dict[str, Any]]) -> None:
    """Remove the checkpoints of trainings, except those from which a missing artifact may still be made."""
    to_come = [row["artifact"] for row in refused if row["may_come"]]
    if plan.config.qat is None or not to_come:
        _remove_all_checkpoints(plan)
        return
    remove_others(plan.config.output, plan.digest)
    logger.info(f"qat: checkpoints are kept, so that {first_few(to_come)} can be made without training again")


def _remove_all_checkpoints(plan: CalibrationPlan) -> None:
    """Remove the checkpoints of trainings; a line names those of other settings, which may have been wanted."""
    remove_others(plan.config.output, plan.digest)
    remove_checkpoints(plan.config.output)


def _quantized_program(plan: CalibrationPlan, calibration: Calibration) -> ExportedProgram:
    """Return the graph to quantize: of the model as loaded, or equalized, or smoothed by what the workers saw."""
    config, loaded = plan.config, plan.loaded.model
    model = model_to_quantize(config, loaded, calibration.channels, plan.program)
    return plan.program if model is loaded else export_images(model, config.placement)


def _refinement(config: CalibrationConfig, program: ExportedProgram, calibration: Calibration) -> Refinement | None:
    if calibration.moments is None:
        return None
    settings = {"rounding": config.rounding, "bias_correction": config.bias_correction}
    return Refinement(program, config.placement, calibration.moments, **settings)


def _train(
    plan: CalibrationPlan, calibration: Calibration, variants: list[tuple[Variant, Values]]
) -> dict[str, Trained]:
    """Return what training makes of each variant, by its label, if that was asked for."""
    if plan.config.qat is None:
        return {}
    work = [(variant, values) for variant, values in variants if variant.label in plan.config.trained]
    return train_variants(plan, calibration.channels, work)


def _write_ranges(
    config: CalibrationConfig, calibration: Calibration, used: dict[int, Ranges], trained: dict[str, Trained]
) -> None:
    """Write the observed ranges and, where artifacts use other ranges, those as well."""
    storage.write_json(storage.join(config.output, RANGES), calibration.ranges)
    if config.observer != "min_max":
        for bits, ranges in used.items():
            storage.write_json(storage.join(config.output, f"ranges_a{bits}.json"), ranges)
    for label, found in trained.items():
        storage.write_json(storage.join(config.output, f"ranges_{label}.json"), found.values.ranges)


def _track(tracker: Tracker, trained: dict[str, Trained]) -> None:
    # All figures of a step are given at once, because MLflow takes none for a step that it has passed.
    for rows in zip(*(found.history for found in trained.values()), strict=True):
        named = zip(trained, rows, strict=True)
        figures = {f"qat/{label}/{name}": row[name] for label, row in named for name in row if name != "step"}
        tracker.add(round(rows[0]["step"]), figures)


def _training(plan: CalibrationPlan, label: str, found: Trained) -> dict[str, Any]:
    """Return what the report says of the training of a variant."""
    row: dict[str, Any] = {
        "steps": len(found.losses),
        "first_loss": _short(found.first_loss),
        "last_loss": _short(found.last_loss),
        "ranges": storage.join(plan.config.output, f"ranges_{label}.json"),
    }
    if plan.held_back is None or found.before is None:
        return row
    best = found.best
    return row | {
        "held_back": len(plan.held_back.rows),
        **{f"{name}_before": _short(found.before[name]) for name in FIGURES},
        **{name: _short(best[name]) for name in FIGURES},
        "best_step": round(best["step"]),
        "kept": "trained" if found.kept_step else "calibrated",
    }


def _short(figure: float) -> float:
    return float(f"{figure:.4g}")


def _measure(plan: CalibrationPlan, baselines: list[Artifact], made: list[Artifact]) -> list[dict[str, Any]]:
    """Return a row of figures for each artifact; if there are labeled images, all are scored in one pass."""
    config, scores, artifacts = plan.config, {}, baselines + made
    if plan.labeled is not None:
        predict = {str(number): artifact.predict for number, artifact in enumerate(artifacts)}
        batches = labeled_batches(plan.labeled, plan.loaded, config.score_batch_size)
        with naming_batch_size("score_batch_size", config.score_batch_size):
            scores = measure_accuracy(predict, batches)
    timed = partial(measure_latencies, input_size=plan.loaded.input_size, batch_sizes=config.latency_batch_sizes)
    rows = [_row(artifact, scores.get(str(number)), timed(artifact)) for number, artifact in enumerate(artifacts)]
    # `agreement` compares with the first row, which is the float model only if there are baselines.
    return rows if baselines else [{name: row[name] for name in row if name != "agreement"} for row in rows]


def _row(artifact: Artifact, scored: Score | None, latencies: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"artifact": artifact.format}
    if artifact.bits is not None:
        row = {"weights": artifact.bits.weights, "activations": artifact.bits.activations, **row, "uri": artifact.uri}
    if artifact.mixture is not None:
        row |= _mixture_row(artifact.mixture)
    row |= {"size_mb": round(artifact.size / _MEGABYTE, 4), **latencies}
    row |= {name: float(f"{error:.3g}") for name, error in (artifact.errors or {}).items()}
    if scored is not None:
        row |= {"top1": scored.top1, "top5": scored.top5, "images": scored.images, "agreement": scored.agreement}
    note = _note(artifact)
    return row if note is None else row | {"note": note}


def _mixture_row(mixture: Mixture) -> dict[str, Any]:
    """Return the chosen widths for a row of the report: the average bits per weight, and the widths of each layer."""
    activations = sorted({bits.activations for bits in mixture.layers.values()})
    return {
        "weights": round(mixture.weight_bits, 3),
        "activations": activations[0] if len(activations) == 1 else activations,
        "disagreement": round(mixture.disagreement, 3),
        **({} if mixture.met else {"max_drop_met": False}),
        "layers": {layer: bits.label for layer, bits in mixture.layers.items()},
    }


def _note(artifact: Artifact) -> str | None:
    """Return a note that explains surprising figures in a row."""
    if artifact.bits is None or artifact.note is not None:
        return artifact.note
    layers = [artifact.bits] if artifact.mixture is None else artifact.mixture.layers.values()
    widths = [width for bits in layers for width in (bits.weights, bits.activations)]
    return _WIDE_NOTE if max(widths) > 8 else _NARROW_NOTE if min(widths) < 8 else None


def _report(
    config: CalibrationConfig,
    calibration: Calibration,
    baselines: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    refused: list[dict[str, Any]],
    *,
    sensitivity: bool,
) -> dict[str, Any]:
    return {
        "complete": not refused,
        "images": calibration.num_images,
        "compared_images": len(calibration.samples),
        "images_per_worker": [len(part) for part in calibration.image_ids],
        "placement": config.placement,
        "mode": config.mode,
        "observer": config.observer,
        "ranges": storage.join(config.output, RANGES),
        "latency": f"ms per image, median, {torch.get_num_threads()} threads",
        "latency_columns": {str(size): name for size, name in latency_columns(config.latency_batch_sizes).items()},
        "fp32": baselines,
        "artifacts": rows,
        **({"sensitivity": storage.join(config.output, SENSITIVITY)} if sensitivity else {}),
        **({"failed": refused} if refused else {}),
    }
