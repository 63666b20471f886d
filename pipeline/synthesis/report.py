"""The page of a synthesis: what was made, how sure the teacher is of it, and how much the images differ."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import to_dict
from pipeline.dataset.index import read_index
from pipeline.dataset.sample import evenly, read_parts
from pipeline.outputs.names import SHEET, SNAPSHOTS
from pipeline.report.charts import histogram
from pipeline.report.confusion import confusion_section
from pipeline.report.heat import grid
from pipeline.report.page import Section, Table, html_page
from pipeline.report.strips import boxes
from pipeline.report.text import short_name, shortened
from pipeline.report.tiles import Tile, tile, within
from pipeline.report.writing import settings_section, write_extra, write_page
from pipeline.synthesis.neighbors import nearest_within, pixel_vectors
from pipeline.synthesis.plan import SynthesisPlan
from pipeline.synthesis.preview import COLUMNS_SHOWN, PreviewImage, decode_preview, draw_contact_sheet, read_preview
from pipeline.synthesis.snapshots_report import snapshots_section

_FIGURES = ("label", "keep_indices", "class_loss", "teacher_confidence", "teacher_prediction")
# Parts whose figures are read, without images; and parts whose images are compared, and how many of these.
_MOST_PARTS, _MOST_PARTS_WITH_IMAGES, _MOST_COMPARED = 256, 32, 512
_MOST_CLASSES = 30
_NEAREST_PAIRS = 8
_MOST_FAILURES = 10
# Bytes of the gallery's pictures as PNG files; in a page they take a third more. The pairs, at most 38 kB a picture,
# take about as much.
_GALLERY_BYTES = 750_000


def write_pictures(plan: SynthesisPlan, summary: dict[str, Any], done: Sequence[int]) -> dict[str, str | None]:
    """Write `contact_sheet.png` and `report.html` beside the dataset.

    Returns:
        `contact_sheet` and `report`: their URIs; None for one that has no images to show or could not be written.
    """
    output, names = plan.config.output, plan.manifest["class_names"]
    shown = cache(lambda: read_preview(output, plan.digest, plan.shards, set(done)))
    sheet = storage.join(output, SHEET)
    return {
        "contact_sheet": write_extra(sheet, lambda: draw_contact_sheet(shown(), names)) if done else None,
        "report": write_page(output, lambda: synthesis_page(plan, summary, done, shown())),
    }


def synthesis_page(
    plan: SynthesisPlan, summary: dict[str, Any], done: Sequence[int], shown: Sequence[PreviewImage]
) -> str:
    """Return the HTML page of a synthesis.

    Args:
        plan: plan of the run.
        summary: summary of the run, as `summarize` returns it.
        done: ids of the shards that have a part.
        shown: images of the contact sheet.

    Raises:
        DatasetError: a part cannot be read.
    """
    output, names = plan.config.output, plan.manifest["class_names"]
    sections = [_summary(plan, summary)]
    if done:
        parts = evenly(done, _MOST_PARTS)
        figures = read_parts(output, plan.digest, dict.fromkeys(parts), _FIGURES)
        sample = f"{len(figures)} images, of {len(parts)} of {len(done)} parts"
        sections += [
            _gallery(shown, names, _grid_size(plan), len(figures) if len(parts) == len(done) else None),
            _figures(figures, names, sample),
            _confusion(figures, names, sample),
            _kept(figures, _grid_size(plan), sample),
            *_snapshots(plan, names),
            *_diversity(plan, done, names),
        ]
    sections.append(settings_section(to_dict(plan.config)))
    return html_page(f"Images inverted from {short_name(plan.manifest['teacher']['name'])}", sections)


def _grid_size(plan: SynthesisPlan) -> int:
    """Return the number of patches in a row and in a column."""
    return round(plan.num_patches**0.5)


def _summary(plan: SynthesisPlan, summary: dict[str, Any]) -> Section:
    manifest = plan.manifest
    rows: list[list[str | int | float | None]] = [
        ["complete", "yes" if summary["complete"] else "no: run it again for the rest"],
        ["shards done", f"{summary['num_done']} of {summary['num_shards']}"],
        *([["shards that took more than one attempt", summary["num_retried"]]] if summary["num_retried"] else []),
        ["images planned", summary["num_images"]],
        ["images made by this run", summary["num_images_made"]],
        *_means(plan.config.output, plan.digest),
        ["classes", len(plan.shards.classes)],
        ["image size", " × ".join(map(str, manifest["image_size"]))],
        ["teacher", manifest["teacher"]["name"]],
        ["its weights (SHA-256)", manifest["teacher"]["weights_sha256"][:16]],
        ["digest of the dataset", plan.digest[:16]],
        ["folder", plan.config.output],
    ]
    failed = [[row["shard_id"], row["reason"]] for row in summary["failed"][:_MOST_FAILURES]]
    header = ["failed shard", f"reason ({len(failed)} of {summary['num_failed']})"]
    tables = [Table(header=["", ""], rows=rows), *([Table(header=header, rows=failed)] if failed else [])]
    return Section(heading="What was made", tables=tables)


def _means(output: str, digest: str) -> list[list[str | int | float | None]]:
    """Return rows about all images that are there, whichever run made them; none while the index is empty."""
    index = read_index(output, digest, ("num_rows", "class_loss", "teacher_confidence"))
    if not len(index):
        return []
    images = _column(index, "num_rows")
    columns = {"class loss": "class_loss", "confidence of the teacher": "teacher_confidence"}
    return [[f"mean {what} of all images", _mean(_column(index, name), images)] for what, name in columns.items()]


def _mean(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the mean of the values that are known; None if none is."""
    known = np.isfinite(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _gallery(shown: Sequence[PreviewImage], names: Sequence[str], grid_size: int, num_images: int | None) -> Section:
    tiles = within([show(image, names, grid_size) for image in shown], _GALLERY_BYTES)
    of = "" if num_images is None else f" of {num_images}"
    note = (
        f"{len(tiles)}{of} images, evenly from the classes; below each, the teacher's confidence in its class. An "
        "orange line surrounds the patches that were kept to the end; the others show the teacher's mean color."
    )
    return Section(heading="Images", text=note, tiles=tiles)


def show(image: PreviewImage, names: Sequence[str], grid_size: int) -> Tile:
    """Return an image with its class, the teacher's confidence, and the outline of its kept patches."""
    caption = f"{shortened(names[image.label], 24)} · {100 * image.confidence:.0f}%"
    return tile(image.pixels, caption, kept=image.keep_indices, grid_size=grid_size)


def _figures(figures: pa.Table, names: Sequence[str], sample: str) -> Section:
    loss, confidence = _column(figures, "class_loss"), _column(figures, "teacher_confidence")
    labels = _column(figures, "label")
    by_class = {label: confidence[labels == label] for label in np.unique(labels).tolist()}
    lowest = sorted(by_class, key=lambda label: (float(np.median(by_class[label])), label))[:_MOST_CLASSES]
    chosen = sorted(by_class) if len(by_class) <= _MOST_CLASSES else lowest
    few = "each class" if chosen == sorted(by_class) else f"the {len(chosen)} lowest of {len(by_class)} classes"

    def rows(values: np.ndarray) -> dict[str, list[float]]:
        return {_row_name(names, label): values[labels == label].tolist() for label in chosen}

    return Section(
        heading="What the teacher says of them",
        text=f"Class loss and confidence of the stored 8-bit images on their kept patches: {sample}.",
        plots=[
            ("class loss (cross-entropy of the class)", histogram(loss.tolist(), x_label="class loss")),
            ("confidence", histogram(confidence.tolist(), x_label="confidence", x_range=(0, 1))),
            (f"confidence of {few}: all, middle half, median", boxes(rows(confidence), x_label="confidence")),
            (f"class loss of {few}", boxes(rows(loss), x_label="class loss")),
        ],
    )


def _row_name(names: Sequence[str], label: int) -> str:
    return names[label] if names[label] == str(label) else f"{label} {names[label]}"


def _confusion(figures: pa.Table, names: Sequence[str], sample: str) -> Section:
    pairs = zip(figures["label"].to_pylist(), figures["teacher_prediction"].to_pylist(), strict=True)
    return confusion_section(
        "What the teacher takes them for", Counter(pairs), names, text=f"Class against prediction: {sample}."
    )


def _snapshots(plan: SynthesisPlan, names: Sequence[str]) -> list[Section]:
    uri, heading = storage.join(plan.config.output, SNAPSHOTS), "How images form"
    if not storage.exists(uri):
        missing = "Nothing was recorded: that happens only while the first part is made, and it was there before."
        return [Section(heading=heading, text=missing)] if plan.config.snapshots else []
    return [snapshots_section(heading, storage.read_json(uri), names, _grid_size(plan))]


def _kept(figures: pa.Table, grid_size: int, sample: str) -> Section:
    kept = figures["keep_indices"].combine_chunks()
    counts = np.bincount(kept.flatten().to_numpy(), minlength=grid_size**2)[: grid_size**2]
    shares = (counts / len(figures)).reshape(grid_size, grid_size)
    mean = len(kept.flatten()) / len(figures)
    text = f"{mean:.1f} of {grid_size**2} patches are kept on average: {sample}."
    caption = "% of the images that keep the patch at this place"
    return Section(heading="Which patches are kept", text=text, plots=[(caption, grid(shares.tolist(), label=caption))])


def _diversity(plan: SynthesisPlan, done: Sequence[int], names: Sequence[str]) -> list[Section]:
    """Return a section on how near images of a class are to each other; none if no class has two."""
    parts = evenly(done, _MOST_PARTS_WITH_IMAGES)
    per_part = max(2, _MOST_COMPARED // len(parts))
    rows = {part: range(min(per_part, plan.shards.size_of(part))) for part in parts}
    images = [
        decode_preview(row) for row in read_parts(plan.config.output, plan.digest, rows, COLUMNS_SHOWN).to_pylist()
    ]
    distances, others = nearest_within(
        pixel_vectors([image.pixels for image in images]), np.array([image.label for image in images])
    )
    if not (others >= 0).any():
        return []
    tiles, num_pairs = _pairs(images, distances, others, names)
    note = (
        f"The distance of each image to the nearest other one of its class, among {len(images)} images of {len(parts)} "
        "of the parts: root mean square difference of pixels between 0 and 1, on whole stored images of at most "
        f"32 × 32 pixels. Equal images have distance 0. Below, the {num_pairs} closest pairs, side by side."
    )
    plots = [("each image's nearest of its class", histogram(distances.tolist(), x_label="distance"))]
    return [Section(heading="How much they differ", text=note, plots=plots, tiles=tiles, tile_columns=4)]


def _pairs(
    images: Sequence[PreviewImage], distances: np.ndarray, others: np.ndarray, names: Sequence[str]
) -> tuple[list[Tile], int]:
    """Return both images of each of the closest pairs in turn, and the number of pairs."""
    closest: dict[frozenset[int], int] = {}
    for row in np.argsort(distances, kind="stable").tolist():
        if others[row] >= 0 and len(closest) < _NEAREST_PAIRS:
            # Two images are often each other's nearest.
            closest.setdefault(frozenset((row, int(others[row]))), row)
    tiles = [
        tile(images[shown].pixels, f"{shortened(names[images[row].label], 24)} · {distances[row]:.3f}")
        for row in closest.values()
        for shown in (row, int(others[row]))
    ]
    return tiles, len(closest)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()
