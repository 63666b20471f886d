"""One inversion from its first step to its last."""

from collections.abc import Sequence

from torch import Tensor

from pipeline.inversion.config import InversionConfig
from pipeline.inversion.engine import Inversion
from pipeline.inversion.result import InversionResult
from pipeline.inversion.teacher import AnyTeacher
from pipeline.inversion.terms import Term


def invert(
    teacher: AnyTeacher,
    targets: Tensor,
    config: InversionConfig,
    *,
    seeds: Sequence[int],
    init: Tensor | None = None,
    jitter: Tensor | None = None,
    terms: Sequence[Term] | None = None,
) -> InversionResult:
    """Invert the teacher into one image for each target, or, with Patch Rebirth, into several.

    Args:
        teacher: a teacher on the device to run on.
        targets: int64 [B], the class to invert for each image.
        config: losses, schedule and optimizer.
        seeds: one seed per image. With scope `image`, it alone decides the image's start and jitter.
        init: starting images [B, C, H, W] in normalized space; by default they are drawn from the seeds.
        jitter: int64 [iterations, B, 3], rows of (dy, dx, flip); by default they are drawn from the seeds.
        terms: the loss terms to minimize; by default `build_terms(config)`, which has the terms that need no other
            network.

    Raises:
        NonFiniteError: a loss term or the pixels became NaN or infinite.
        ConfigError: the schedule leaves the teacher no patch, or targets, seeds, `init` or jitter do not fit it.
        ModelError: the teacher cannot rank patches, or show a loss what it needs, as the config says.
        torch.OutOfMemoryError: not even one image fits.
    """
    run = Inversion(teacher, targets, config, seeds=seeds, init=init, jitter=jitter, terms=terms)
    while not run.finished:
        run.step()
    return run.result()
