"""Transform the float model before it is quantized, as the settings of a calibration say."""

from collections.abc import Sequence

from torch import nn
from torch.export import ExportedProgram

from pipeline.quantization.channels import ChannelRanges, NormReaders, find_norm_readers
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.equalization import equalize, find_pairs
from pipeline.quantization.graphs import export_images
from pipeline.quantization.smoothing import ALPHA, smooth


def equalized(config: CalibrationConfig, model: nn.Module) -> nn.Module:
    """Return the loaded model, or an equalized copy if the config asks for that; smoothing observes its channels."""
    return equalize(model, find_pairs(export_images(model, config.placement))) if config.equalization else model


def smoothed(
    config: CalibrationConfig, model: nn.Module, readers: Sequence[NormReaders], channels: ChannelRanges
) -> nn.Module:
    """Return a copy of a model, smoothed by the observed ranges of its channels."""
    alpha = ALPHA if config.smoothing_alpha is None else config.smoothing_alpha
    return smooth(model, readers, channels, config.smoothing, alpha)


def model_to_quantize(
    config: CalibrationConfig, model: nn.Module, channels: ChannelRanges | None, program: ExportedProgram
) -> nn.Module:
    """Return the model that is quantized: as it was loaded, or equalized, or smoothed by what the workers saw.

    Args:
        config: settings of the calibration.
        model: the model as it was loaded.
        channels: ranges of the model's channels before it was smoothed; None if it is not smoothed.
        program: graph of the loaded model, from `graphs.export_images`.
    """
    own = equalized(config, model)
    if channels is None:
        return own
    # Names of parameters, which equalization leaves as they are.
    return smoothed(config, own, find_norm_readers(program.module().graph), channels)
