"""Pictures of `benchmarks/hallucination.py`: what each kind of inversion keeps, and what it makes."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.hallucination_arms import GRID
from benchmarks.hallucination_report import BASE
from benchmarks.shapes import CLASS_NAMES, Scenes
from pipeline.distillation.batches import Images


def ranked_pictures(scenes: Scenes, kept: dict[str, Tensor]) -> dict[str, list[np.ndarray]]:
    """The first real image of each class: whole, with the background white, and with stopped patches white."""
    first = range(len(CLASS_NAMES))
    images, masks = scenes.images, scenes.masks
    pictures = {"real image": [images[row] for row in first]}
    pictures["its foreground"] = [np.where(masks[row][..., None], images[row], 255).astype(np.uint8) for row in first]
    for choice, keep in kept.items():
        if choice != BASE:
            pictures[f"kept by {choice}"] = [_whiten(images[row], keep[row]) for row in first]
    return pictures


def inverted_pictures(sets: dict[str, Images]) -> dict[str, list[np.ndarray]]:
    """The first inversion for each class of every kind, with stopped patches white."""
    pictures = {}
    for name, images in sets.items():
        if name != "real":
            pixels = np.round((images.pixels.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
            rows = [int(np.flatnonzero(images.labels == label)[0]) for label in range(len(CLASS_NAMES))]
            pictures[f"inverted, {name}"] = [
                _whiten(pixels[row], torch.from_numpy(images.keep_indices[row])) for row in rows
            ]
    return pictures


def _whiten(image: np.ndarray, keep_indices: Tensor) -> np.ndarray:
    """An image uint8 [H, W, C] with every patch outside `keep_indices` [K] white."""
    side = image.shape[0] // GRID
    kept = np.zeros(GRID**2, bool)
    kept[keep_indices.numpy()] = True
    mask = kept.reshape(GRID, GRID).repeat(side, axis=0).repeat(side, axis=1)
    return np.where(mask[..., None], image, 255).astype(np.uint8)
