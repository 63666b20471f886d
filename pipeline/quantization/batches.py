"""Plan calibration batches that do not depend on the number of workers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.rows import SEVERAL_DATASETS
from pipeline.errors import DatasetError
from pipeline.hashing import hash_number
from pipeline.quantization.sampling import sampling_rank


@dataclass(frozen=True)
class CalibrationBatch:
    """Images that are read together, because they keep the same number of patches.

    Attributes:
        images: float32 [B, C, H, W] normalized.
        keep_indices: int64 [B, K], the patches to read.
        image_ids: name of each image.
    """

    images: Tensor
    keep_indices: Tensor
    image_ids: list[str]


@dataclass(frozen=True)
class Window:
    """Consecutive rows of a dataset, and the batches in which they are read.

    Attributes:
        rows: numbers of the rows in reading order, ascending.
        batches: image ids of each batch.
    """

    rows: list[int]
    batches: list[list[str]]


def plan_windows(
    rows: Sequence[tuple[str, int]],
    batch_size: int,
    max_images: int | None,
    seed: int,
    held_back: Window | None = None,
) -> list[Window]:
    """Cut a dataset into windows of `batch_size` images, and each window into batches of equal numbers of kept patches.

    Kernels may round the same image differently in another batch. So the batches, and with them every scale, depend
    only on the dataset, and not on the number of workers.

    Args:
        rows: image id and number of kept patches of each image, in the dataset's order.
        batch_size: number of images per window, and the largest size of a batch.
        max_images: number of images to draw at random; None for all.
        seed: seed of that draw.
        held_back: images to leave out; None for none.

    Raises:
        DatasetError: there are no images, or none is left, an id comes twice, or an image keeps no patch.
    """
    if not rows:
        raise DatasetError("there are no images to calibrate on")
    left_out = set() if held_back is None else set(held_back.rows)
    image_ids = [image_id for number, (image_id, _) in enumerate(rows) if number not in left_out]
    chosen = _choose(image_ids, max_images, seed)
    if not chosen:
        raise DatasetError(f"all {len(rows)} images are held back, and none is left to calibrate on")
    for image_id, num_kept in rows:
        if num_kept < 1:
            raise DatasetError(f"image {image_id!r} keeps no patch")
    numbers = [number for number, (image_id, _) in enumerate(rows) if image_id in chosen]
    return [_window(rows, numbers[start : start + batch_size]) for start in range(0, len(numbers), batch_size)]


def draw_window(rows: Sequence[tuple[str, int]], count: int, seed: int) -> Window:
    """Draw images at random, the last that `plan_windows` would draw with this seed, or all if there are no more.

    Args:
        rows: image id and number of kept patches of each image, in the dataset's order.
        count: number of images to draw.
        seed: seed of the draw.
    """
    by_rank = sorted(range(len(rows)), key=lambda number: sampling_rank(rows[number][0], seed), reverse=True)
    return _window(rows, sorted(by_rank[:count]))


def spread_window(rows: Sequence[tuple[str, int]], windows: Sequence[Window], count: int, seed: int) -> Window:
    """Draw images spread over the dataset: one at random from each of `count` equal parts, or all if there are fewer.

    If the dataset is sorted by class, each class gets its share of the images, because each part lies in it. If classes
    alternate, the random draw keeps the shares right on average; every k-th image could always be of the same class.

    Args:
        rows: image id and number of kept patches of each image, in the dataset's order.
        windows: windows of these rows, from whose images to draw.
        count: number of images to draw.
        seed: seed of the draw.
    """
    numbers = [number for window in windows for number in window.rows]
    count = min(count, len(numbers))
    bounds = pairwise(len(numbers) * part // count for part in range(count + 1))
    drawn = [start + hash_number(f"{seed}:{part}", 7) % (stop - start) for part, (start, stop) in enumerate(bounds)]
    return _window(rows, [numbers[place] for place in drawn])


def _window(rows: Sequence[tuple[str, int]], numbers: list[int]) -> Window:
    batches: dict[int, list[str]] = {}
    for number in numbers:
        image_id, num_kept = rows[number]
        batches.setdefault(num_kept, []).append(image_id)
    return Window(numbers, [batches[num_kept] for num_kept in sorted(batches)])


def _choose(image_ids: Sequence[str], max_images: int | None, seed: int) -> set[str]:
    chosen = set(image_ids)
    if len(chosen) != len(image_ids):
        repeated = next(image_id for image_id, times in Counter(image_ids).items() if times > 1)
        raise DatasetError(f"image id {repeated!r} comes more than once: {SEVERAL_DATASETS}")
    if max_images is None:
        return chosen
    return set(sorted(chosen, key=lambda image_id: sampling_rank(image_id, seed))[:max_images])


def share_windows(windows: Sequence[Window], num_workers: int) -> list[list[Window]]:
    """Divide windows among workers as equally as possible, neighbors together; with too few, some workers get none."""
    bounds = [round(len(windows) * worker / num_workers) for worker in range(num_workers + 1)]
    return [list(windows[start:stop]) for start, stop in pairwise(bounds)]


def gather_batches(
    rows: Iterable[Mapping[str, Any]], batches: Sequence[list[str]], *, dense_patches: int | None = None
) -> Iterator[CalibrationBatch]:
    """Yield the planned batches, each as soon as its images have arrived; rows may come in any order.

    Args:
        rows: rows with `pixels` [C, H, W], `keep_indices` [K] and `image_id`, as `pipeline.inputs.read_inputs` returns
            them.
        batches: image ids of each batch. All of them must arrive; other rows are skipped.
        dense_patches: number of patches of a whole image, to read all of them; None reads those in `keep_indices`.

    Raises:
        DatasetError: an image is missing.
    """
    positions = {image_id: (number, row) for number, ids in enumerate(batches) for row, image_id in enumerate(ids)}
    waiting: dict[int, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        where = positions.pop(str(row["image_id"]), None)
        if where is not None:
            number, position = where
            arrived = waiting.setdefault(number, {})
            arrived[position] = row
            if len(arrived) == len(batches[number]):
                yield _stack([member for _, member in sorted(waiting.pop(number).items())], dense_patches)
    if positions:
        raise DatasetError(f"{len(positions)} images are missing, such as {min(positions)!r}")


def _stack(rows: list[Mapping[str, Any]], dense_patches: int | None) -> CalibrationBatch:
    images = torch.from_numpy(np.stack([np.asarray(row["pixels"], np.float32) for row in rows]))
    if dense_patches is None:
        keep = torch.from_numpy(np.stack([np.asarray(row["keep_indices"], np.int64) for row in rows]))
    else:
        keep = torch.arange(dense_patches).repeat(len(rows), 1)
    return CalibrationBatch(images, keep, [str(row["image_id"]) for row in rows])
