"""Find out which layers suffer from quantization, by the answers to synthetic images alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.simulation import Simulation


@dataclass(frozen=True)
class Sensitivity:
    """How much quantizing a layer changes the answers.

    Attributes:
        layer: path of the layer in the model.
        num_weights: number of the layer's quantized weights.
        alone: mean divergence of the answers from those in float, in nats, with only this layer quantized.
        without: the same with all layers but this one quantized. It is low if this layer is the one that hurts.
    """

    layer: str
    num_weights: int
    alone: float
    without: float


def divergence(logits: Tensor, reference: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of answers from those of a reference, in nats.

    Args:
        logits, reference: logits [B, classes] for the same images.
    """
    log_answers, log_reference = logits.double().log_softmax(1), reference.double().log_softmax(1)
    return F.kl_div(log_answers, log_reference, reduction="batchmean", log_target=True).item()


def disagreement(logits: Tensor, reference: Tensor) -> float:
    """Return the percentage of images, [B, classes] each, that are put into another class than by the reference."""
    return 100 * (logits.argmax(1) != reference.argmax(1)).double().mean().item()


def measure_sensitivity(
    simulation: Simulation, images: Tensor, bits: BitWidths, batch_size: int = 256
) -> list[Sensitivity]:
    """Quantize each layer alone, and all others, and compare the answers with those in float.

    Args:
        simulation: the model, with ranges for these bit widths.
        images: float32 [B, C, H, W], normalized.
        bits: bit widths of the quantized layers.
        batch_size: number of images per forward pass.
    """
    reference = simulation.predict(images, {}, batch_size)

    def diverges(layers: Mapping[str, BitWidths]) -> float:
        return divergence(simulation.predict(images, layers, batch_size), reference)

    sizes = simulation.num_weights
    everything = dict.fromkeys(sizes, bits)
    return [
        Sensitivity(
            layer,
            size,
            diverges({layer: bits}),
            diverges({other: bits for other in everything if other != layer}),
        )
        for layer, size in sizes.items()
    ]
