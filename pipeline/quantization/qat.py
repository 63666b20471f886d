"""Quantization-aware distillation: train each quantized model to answer as the float teacher does."""

from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice

import ray

from pipeline.cluster import own_errors
from pipeline.distillation.images import image_bytes, read_into_memory
from pipeline.distillation.order import even_sizes
from pipeline.distillation.state import last_place
from pipeline.log import logger
from pipeline.quantization.channels import ChannelRanges
from pipeline.quantization.distributed import read_batches
from pipeline.quantization.plan import CalibrationPlan
from pipeline.quantization.qat_checkpoints import checkpoint_folder
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.qat_loop import CRITERION, Trained
from pipeline.quantization.qat_workers import QatTask, train_here, train_on_worker
from pipeline.quantization.reading import calibration_reads_kept
from pipeline.quantization.variants import Values, Variant
from pipeline.workers import pick_device, with_absolute_paths
from pipeline.workers.progress import Count, progress
from pipeline.workers.training import check_readers, run_workers, worker_configs


def check_training(plan: CalibrationPlan) -> None:
    """Check that the training can run on the cluster that was joined, before the calibration that it follows.

    Raises:
        ConfigError: this process has no GPU and one is demanded; or the workers would hold every core, and wait for
            ever for the tasks that read their images.
    """
    config = plan.config
    if config.qat is None:
        return
    if not config.workers.size:
        pick_device(config.workers.device, "workers.device")
    elif not _fits(plan, config.qat):
        check_readers(config.workers, "qat.cache_gb", config.qat.cache_gb)


def _fits(plan: CalibrationPlan, qat: QatConfig) -> bool:
    """Whether all images are kept in memory, decoded."""
    return image_bytes(plan.images, plan.loaded, with_tokens=False) <= qat.cache_gb * 2**30


def train_variants(
    plan: CalibrationPlan, channels: ChannelRanges | None, work: Sequence[tuple[Variant, Values]]
) -> dict[str, Trained]:
    """Train variants one after another, from their last checkpoints, and return each by its label.

    Args:
        plan: plan of the calibration, whose config has the settings of the training.
        channels: ranges of the model's channels before it was smoothed; None if it was not.
        work: variants, each with the values that calibration found for it.

    Raises:
        NonFiniteError: a loss became NaN or infinite. Checkpoints of variants that were trained before are kept.
        ConfigError: a step does not fit into the memory of the GPU. All checkpoints are kept.
        PipelineError: an image cannot be read, or the workers were lost too often.
    """
    config, qat = plan.config, plan.config.qat
    assert qat is not None
    left = _images_left(plan, qat, [variant for variant, _ in work])
    with own_errors(), progress("qat", left, on_workers=config.workers.size > 0) as done:
        task = _task(plan, qat, channels, work, done)
        trained = _train_on_workers(task) if config.workers.size else train_here(task)
    for label, found in trained.items():
        logger.info(f"qat {label}: {_outcome(found, qat, len(task.left_out))}")
    return trained


def _task(
    plan: CalibrationPlan,
    qat: QatConfig,
    channels: ChannelRanges | None,
    work: Sequence[tuple[Variant, Values]],
    done: Count,
) -> QatTask:
    """Read the images that are kept in memory, and return what workers need to know."""
    where = plan.images
    if _fits(plan, qat):
        kept = calibration_reads_kept(plan.config, plan.loaded)
        where = [ray.put(read_into_memory(plan.images, plan.loaded, labels=False, reads_kept=kept))]
    held_back = [] if plan.held_back is None else read_batches(plan, plan.held_back)
    left_out = frozenset(image_id for batch in held_back for image_id in batch.image_ids)
    config, each = with_absolute_paths(plan.config), [ray.put((held_back, list(work)))]
    return QatTask(config, plan.digest, plan.loaded.digest, channels, where, left_out, each, done)


def _images_left(plan: CalibrationPlan, qat: QatConfig, variants: Sequence[Variant]) -> int:
    """Return how many images are still to be read for all variants, and say how many earlier runs have read."""
    held_back = 0 if plan.held_back is None else len(plan.held_back.rows)
    sizes = even_sizes(plan.images.num_rows - held_back, qat.batch_size)
    each = sum(islice(cycle(sizes), qat.steps))
    total, done = len(variants) * each, 0
    for variant in variants:
        epoch, step = last_place(checkpoint_folder(plan.config.output, variant, plan.digest))
        # The last epoch counts as done where the steps end within it.
        done += min(epoch * sum(sizes) + sum(sizes[:step]), each)
    if done:
        logger.info(f"qat: there are checkpoints, {done} of {total} images were read")
    return total - done


def _train_on_workers(task: QatTask) -> dict[str, Trained]:
    workers, output = task.config.workers, task.config.output
    resources = worker_configs(workers)
    # Checkpoints lie elsewhere, see `checkpoint_folder`.
    return run_workers(partial(train_on_worker, task), workers, resources, output=output, name=f"qat-{task.digest[:8]}")


def _outcome(found: Trained, qat: QatConfig, held_back: int) -> str:
    """Say in a line how the loss fell, and what is kept."""
    losses = f"loss {found.first_loss:.4g} at first, {found.last_loss:.4g} at the end"
    if found.before is None:
        return losses
    before, best, step = found.before[CRITERION], found.best[CRITERION], found.best["step"]
    kept = "the trained model" if found.kept_step else f"the calibrated model (qat.min_gain {qat.min_gain:g})"
    return (
        f"{losses}; divergence from the teacher on {held_back} held-back images {before:.4g} before and {best:.4g} "
        f"after step {step:.0f}: keeping {kept}"
    )
