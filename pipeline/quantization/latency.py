"""How long an artifact takes for an image, at each batch size that it can read."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import torch

from pipeline.errors import PipelineError, one_line
from pipeline.evaluation import measure_latency
from pipeline.log import logger
from pipeline.out_of_memory import naming_batch_size
from pipeline.quantization.artifact_files import Artifact
from pipeline.quantization.report import latency_columns

# Runtimes say in many ways that memory ran out, or that a tensor has more elements than they count.
_NOT_READ = (PipelineError, MemoryError, RuntimeError)


def measure_latencies(
    artifact: Artifact, input_size: tuple[int, int, int], batch_sizes: Sequence[int]
) -> dict[str, float]:
    """Return milliseconds per image for each batch size, by the name of its column in `report.json`.

    A batch that the artifact cannot read has no column, and a line says so: what was calibrated is worth more than a
    figure. That an artifact can be run at all was found when it was compared with the calibrated model.

    Args:
        artifact: the artifact to run, which has read other images before.
        input_size: channels, height and width of an image.
        batch_sizes: numbers of images per forward pass.
    """
    measured: dict[str, float] = {}
    for size, column in latency_columns(batch_sizes).items():
        try:
            with naming_batch_size("latency_batch_size", size):
                latency = measure_latency(artifact.predict, torch.zeros(size, *input_size))
        except _NOT_READ as error:
            name = f"fp32 as {artifact.format}" if artifact.uri is None else PurePosixPath(artifact.uri).name
            reason = str(error) if isinstance(error, PipelineError) else f"latency_batch_size: {one_line(error)}"
            logger.warning(f"{name}: latency at batch {size} is not measured: {reason}")
        else:
            measured[column] = round(latency, 4)
    return measured
