"""Measure the sensitivity of each layer in a calibration, choose bit widths by it, and write what was found."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from pipeline.log import logger
from pipeline.outputs.names import SENSITIVITY
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.mixed import Mixture, choose_widths
from pipeline.quantization.plan import CalibrationPlan
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.refinement import Refinement
from pipeline.quantization.sensitivity import Sensitivity, disagreement, measure_sensitivity
from pipeline.quantization.simulation import Simulation
from pipeline.report.curve import plot_bars
from pipeline.report.page import Table, markdown_table, text_table


@dataclass(frozen=True)
class Layerwise:
    """Sensitivities of the layers, and the bit widths that were chosen by them.

    Attributes:
        tables: sensitivities of the layers, by the label of the bit widths that they were measured at.
        num_images: number of images that they were measured on.
        mixture: the bit widths that were chosen; None if that was not asked for.
    """

    tables: dict[str, list[Sensitivity]]
    num_images: int
    mixture: Mixture | None = None


def examine_layers(
    plan: CalibrationPlan, ranges: Mapping[int, Ranges], images: Tensor, refinement: Refinement | None = None
) -> Layerwise:
    """Measure what quantizing each layer does to the answers, and choose widths if the config asks for that.

    Args:
        plan: plan of the calibration.
        ranges: ranges of activations, for each of their bit widths.
        images: float32 [B, C, H, W], normalized.
        refinement: refined weights and biases; None if they are not refined.
    """
    config = plan.config
    simulation = Simulation(plan.program, config.placement, ranges, refinement)
    measured = config.settings if config.mixed is None else [config.mixed.low]
    logger.info(f"sensitivity: {len(simulation.num_weights)} layers, on {len(images)} images")
    tables = {bits.label: measure_sensitivity(simulation, images, bits, config.batch_size) for bits in measured}
    if config.mixed is None:
        return Layerwise(tables, len(images))
    reference = simulation.predict(images, {}, config.batch_size)

    def disagrees(widths: Mapping[str, BitWidths]) -> float:
        return disagreement(simulation.predict(images, widths, config.batch_size), reference)

    mixture = choose_widths(config.mixed, tables[config.mixed.low.label], disagrees)
    if not mixture.met:
        logger.warning(
            f"mixed: with all layers at {config.mixed.high.label} the model disagrees with the teacher on "
            f"{mixture.disagreement:.3g}% of the held-back images, more than max_drop {config.mixed.max_drop:g}"
        )
    return Layerwise(tables, len(images), mixture)


def write_layerwise(found: Layerwise, folder: Path) -> None:
    """Write `sensitivity.json`, `sensitivity.md` and `sensitivity.png`, and log the table."""
    rows = {label: [asdict(row) for row in table] for label, table in found.tables.items()}
    (folder / SENSITIVITY).write_text(json.dumps({"images": found.num_images, "layers": rows}, indent=2))
    pages = []
    for label, table in found.tables.items():
        shown = sensitivity_table(table)
        logger.info(f"divergence from float, {label}:")
        for line in text_table(shown).splitlines():
            logger.info(line)
        pages.append(f"## {label.upper()}\n\n{markdown_table(shown)}\n")
    (folder / "sensitivity.md").write_text("\n".join([_explanation(found.num_images), *pages]))
    names = [row.layer for row in next(iter(found.tables.values()))]
    series = {label: [row.alone for row in table] for label, table in found.tables.items()}
    picture = plot_bars(names, series, title="Each layer quantized alone", label="divergence from float, nats")
    (folder / "sensitivity.png").write_bytes(picture)


def sensitivity_table(table: list[Sensitivity]) -> Table:
    """Return the layers as a table, the one that hurts most first."""
    ordered = sorted(table, key=lambda row: row.alone, reverse=True)
    rows = [[row.layer, row.num_weights, f"{row.alone:.3g}", f"{row.without:.3g}"] for row in ordered]
    return Table(header=["layer", "weights", "alone", "all but it"], rows=rows)


def _explanation(num_images: int) -> str:
    return (
        "# Sensitivity of the layers\n\n"
        f"Mean Kullback-Leibler divergence of the answers from those in float, in nats, on {num_images} images: with\n"
        "only the layer quantized (alone), and with all layers quantized but it (all but it).\n"
    )
