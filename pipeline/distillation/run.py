"""Run a distillation: check, train, write the students and their curve."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import torch

from pipeline import storage
from pipeline.cluster import check_cluster, connect, own_errors
from pipeline.credentials import redacted
from pipeline.dataset.collection import ImageCollection
from pipeline.distillation.arriving import Arriving
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.images import image_bytes, read_into_memory
from pipeline.distillation.plan import DistillationPlan, plan_distillation
from pipeline.distillation.progress import report_epochs
from pipeline.distillation.report import distillation_page
from pipeline.distillation.state import TrainingState, last_place, load_state
from pipeline.distillation.students import student_or_teacher_reads_kept
from pipeline.distillation.workers import TrainingTask, prepare_training
from pipeline.errors import IncompleteError
from pipeline.file_kinds import MODEL_CONFIG
from pipeline.log import logger
from pipeline.models import save_model
from pipeline.outputs import hold
from pipeline.outputs.names import BEST, CURVE, LAST, RESULT
from pipeline.report.writing import write_page
from pipeline.synthesis.arrivals import PartArrivals, expected_parts
from pipeline.synthesis.background import Synthesis, background_synthesis, has_room
from pipeline.torch_modes import usual_modes
from pipeline.tracking.tracker import Tracker, check_tracking, tracking
from pipeline.workers.training import resources_of

# Timeout of collective operations, in seconds: longer than any worker may wait for a part.
_FOREVER_S = 30 * 86400.0


@usual_modes()
def distill(config: DistillationConfig) -> dict[str, Any]:
    """Train a student, from the last checkpoint if there is one; a finished run is not trained again.

    `config.output` will hold `student/best` and `student/last` as folders that `timm.create_model("local-dir:...")`
    loads, `metrics.jsonl` with a row per epoch, `curve.png`, `config.json`, `checkpoints/`, and finally `result.json`
    and `report.html`; during the run also a hidden folder of Ray Train's. If a run with equal settings is at work on
    the output, this one waits for it and returns its result.

    Returns:
        What `result.json` holds. `before_top1`, `top1` (last epoch), `best_top1` and `teacher_top1` are in percent on
        the labeled images, None without them.

    Raises:
        ConfigError, ModelError, CheckpointError: settings, models or checkpoints do not fit together.
        DatasetError: images or labels are missing or unreadable, or the output cannot be written or is another run's.
        NonFiniteError: the loss became NaN or infinite.
        IncompleteError: the workers could not start or kept dying.
        MissingImagesError: images that were to be made could not be.
    """
    check_cluster()
    check_tracking(config.tracking)
    plan = plan_distillation(config)
    output = plan.config.output
    if (result := _find_result(plan)) is not None:
        return result
    storage.check_writable(output)
    with hold(output, "distill", plan.document) as (_, waited):
        if waited and (result := _find_result(plan)) is not None:
            return result
        with tracking(config.tracking, "distill", plan.digest, plan.document["config"]) as tracker:
            connect()
            return _run(plan, tracker)


def epochs_left(config: DistillationConfig) -> str:
    """Say how far a stopped training came, and how to continue.

    Raises:
        DatasetError: the output cannot be read.
    """
    epochs, steps = last_place(config.output)
    return f"{epochs} of {config.epochs} epochs{f' and {steps} steps' if steps else ''} done, run it again for the rest"


def _find_result(plan: DistillationPlan) -> dict[str, Any] | None:
    """Return the result of a finished run, with the present locations of its students; None if it has to be run.

    Raises:
        DatasetError: the output cannot be read.
    """
    output = plan.config.output
    if not storage.exists(storage.join(output, RESULT)):
        return None
    students = _students(output)
    absent = [uri for uri in students.values() if not storage.exists(storage.join(uri, MODEL_CONFIG))]
    if absent and last_place(output)[0] >= plan.config.epochs:
        logger.warning(f"{absent[0]!r} of a finished training is missing, and is made again from the last checkpoint")
        return None
    if absent:
        logger.warning(
            f"{absent[0]!r} of a finished training is missing, and its last checkpoint too: to train again, delete "
            f"{storage.join(output, RESULT)!r}"
        )
    # The folder may have been moved since.
    return storage.read_json(storage.join(output, RESULT)) | students


def _students(output: str) -> dict[str, str]:
    """Return where the students of a run lie, by their names in its result."""
    return {"student": storage.join(output, BEST), "last": storage.join(output, LAST)}


def _run(plan: DistillationPlan, tracker: Tracker) -> dict[str, Any]:
    output, started = plan.config.output, time.monotonic()
    place = last_place(output)
    with own_errors(), expected_parts(plan.to_make) as arrivals:
        # Report problems of the training before hours are spent on images.
        task = _read(plan, _arriving(plan, arrivals))
        train = prepare_training(task)
        beside = _has_room(plan, task)
        with (
            background_synthesis(plan.to_make, arrivals) as synthesis,
            report_epochs(output, plan.config.epochs, plan.config.workers.size, place, tracker),
        ):
            digests = train() if synthesis is None else _train_with(synthesis, train, beside=beside)
    result = _finish(plan, digests, place[0], time.monotonic() - started)
    tracker.set_result(result)
    return result


def _arriving(plan: DistillationPlan, arrivals: PartArrivals | None) -> Arriving | None:
    """Return the training images as they will be made; None where they were given as a dataset."""
    if plan.to_make is None:
        return None
    (source,) = plan.images.sources
    planned = ImageCollection((replace(source, arrivals=arrivals),), plan.images.units)
    in_memory = image_bytes(planned, plan.teacher, with_tokens=False) <= plan.config.cache_gb * 2**30
    # A worker waits for its part until the synthesis ends, and the others wait for it.
    return Arriving(planned, in_memory, 0.0 if arrivals is None else _FOREVER_S)


def _has_room(plan: DistillationPlan, task: TrainingTask) -> bool:
    """Return whether images can be made beside the training."""
    if plan.to_make is None:
        return True
    others = resources_of(plan.config.workers)
    # Streamed images are read by tasks of Ray Data, which need a core.
    others["CPU"] += task.streams
    return has_room(plan.to_make, others)


def _train_with(synthesis: Synthesis, train: Callable[[], list[str]], *, beside: bool) -> list[str]:
    """Train beside a synthesis where there is room for both; otherwise, or if that fails, when it has ended.

    Raises:
        PipelineError: as training, or some images could not be made.
    """
    if beside:
        logger.info(f"distill: training on the images of {synthesis.arrivals.output!r} as they are made")
        try:
            return train()
        except IncompleteError as error:
            # The actors of the synthesis may hold what the workers need, on a cluster whose limits are not known.
            if not error.is_transient or not synthesis.runs:
                raise
            logger.warning(f"{error}; the training begins again when all images are made")
    synthesis.wait()
    return train()


def _read(plan: DistillationPlan, arriving: Arriving | None) -> TrainingTask:
    """Read the images into memory if they are there and fit; otherwise the workers read them."""
    config = plan.config
    left, kept = config.cache_gb * 2**30, student_or_teacher_reads_kept(plan.teacher, plan.student)
    # The teacher's answers are kept only without augmentation.
    with_tokens = config.token_weight > 0 and config.augment is None

    def read(source: ImageCollection, *, labels: bool) -> ImageCollection | list[ray.ObjectRef]:
        nonlocal left
        size = image_bytes(source, plan.teacher, with_tokens=with_tokens)
        if size > left:
            return source
        left -= size
        return [ray.put(read_into_memory(source, plan.teacher, labels=labels, reads_kept=kept))]

    if arriving is not None and arriving.in_memory:
        left -= image_bytes(arriving.planned, plan.teacher, with_tokens=False)
    images = read(plan.images, labels=config.label_weight > 0) if arriving is None else arriving
    labeled = None if plan.labeled is None else read(plan.labeled, labels=True)
    return TrainingTask(config, plan.digest, plan.teacher.digest, plan.document["identity"]["student"], images, labeled)


def _finish(plan: DistillationPlan, digests: list[str], done_before: int, seconds: float) -> dict[str, Any]:
    """Write the students and the curve from the last checkpoint, then `result.json`, which marks the run as done."""
    output = plan.config.output
    state = load_state(output, plan.digest)
    if state is None or state.epoch < plan.config.epochs:
        raise IncompleteError(f"{output!r} has no checkpoint of epoch {plan.config.epochs}")
    students = _students(output)
    for weights, uri in zip((state.best, state.student), students.values(), strict=True):
        _write_student(plan, weights, uri)
    curve = _curve(plan, state)
    with storage.writing_to(output):
        storage.write_bytes(storage.join(output, CURVE), curve)
    tops = [row["top1"] for row in state.history if "top1" in row]
    result = {
        **students,
        "before_top1": state.before_top1,
        "top1": tops[-1] if tops else None,
        "best_top1": state.best_score if tops else None,
        "teacher_top1": state.teacher_top1,
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "images": plan.images.num_rows,
        "loss": state.history[-1]["loss"],
        "continued_from_epoch": done_before,
        "weights_sha256": digests,
        "seconds": round(seconds, 2),
    }
    write_page(output, lambda: distillation_page(plan, result, state))
    with storage.writing_to(output):
        storage.write_json(storage.join(output, RESULT), redacted(result))
    return result


def _write_student(plan: DistillationPlan, weights: dict[str, torch.Tensor], uri: str) -> None:
    student = plan.student
    student.model.load_state_dict(weights)
    with storage.scratch_folder("student-") as folder:
        save_model(student.model, folder, class_names=plan.teacher.class_names, mean=student.mean, std=student.std)
        with storage.writing_to(uri):
            storage.upload_folder(folder, uri)


def _curve(plan: DistillationPlan, state: TrainingState) -> bytes:
    # Imported here, because workers import this package too, and do not need matplotlib, which takes a second.
    from pipeline.report.curve import curve

    top1 = [row["top1"] for row in state.history if "top1" in row]
    if not top1:
        return curve({"loss": [row["loss"] for row in state.history]}, title="Student", x_label="epoch", y_label="loss")
    every = plan.config.score_every
    x_label = "epoch" if every == 1 else f"scoring, one every {every} epochs"
    return curve({"held-out top-1": top1}, title="Student", x_label=x_label, y_label="%")
