"""How a few images of one shard form, step by step, for people to look at.

The steps are those that `invert` takes; looking at the images in between changes nothing of them.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline import storage
from pipeline.errors import as_line
from pipeline.inversion import Inversion, InversionResult
from pipeline.outputs.names import SNAPSHOTS
from pipeline.report.sheet import png, shrunk

# The shard whose first images are shown.
WATCHED_SHARD = 0
# Shares of all steps after which the images are looked at.
_SHARES = (0.0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0)
# Small, so that all pictures of noise together take half a megabyte.
_SIDE = 64
_MOST_LOSSES = 200


@dataclass
class Snapshots:
    """Snapshots of the first images of a shard, taken while they form.

    Args:
        count: number of images to watch.

    Attributes:
        steps: steps after which the images were looked at.
        images: for each of these steps, the images as they would be stored, uint8 [count, H, W, C].
        kept: for each of these steps, the patches alive in each image.
    """

    count: int
    steps: list[int] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    kept: list[list[list[int]]] = field(default_factory=list)

    def run(self, inversion: Inversion, step: Callable[[], None]) -> InversionResult:
        """Run an inversion to its end, and look at its images at some steps.

        Args:
            inversion: the inversion to run. If it goes on from a state, that must have been loaded already.
            step: function that takes one step of the inversion.

        Raises:
            NonFiniteError, torch.OutOfMemoryError: as `invert`.
        """
        total = inversion.config.num_steps
        for stop in sorted({round(total * share) for share in _SHARES})[len(self.steps) :]:
            while inversion.num_steps < stop and not inversion.finished:
                step()
            self._look(inversion)
        return inversion.result()

    def _look(self, inversion: Inversion) -> None:
        result, teacher = inversion.result(), inversion.teacher
        images, kept = result.images[: self.count], result.keep_indices[: self.count]
        self.steps.append(inversion.num_steps)
        self.images.append(teacher.to_uint8(teacher.fill_stopped(images, kept)).cpu().numpy())
        self.kept.append(kept.tolist())

    def state(self) -> dict[str, Any]:
        """Return what was seen up to now, as `load_state` takes it."""
        images = [torch.from_numpy(seen) for seen in self.images]
        return {"steps": list(self.steps), "images": images, "kept": list(self.kept)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what an earlier worker saw of the same inversion, up to the step at which it goes on."""
        self.steps, self.kept = state["steps"], state["kept"]
        self.images = [seen.numpy() for seen in state["images"]]

    def document(self, labels: Sequence[int], result: InversionResult) -> dict[str, Any]:
        """Return plain data for `forming.json`.

        Args:
            labels: class of each start.
            result: result of the inversion.
        """
        # Without a step there are no losses.
        stride = max(1, math.ceil(max(len(values) for values in result.losses.values()) / _MOST_LOSSES))
        return {
            "steps": self.steps,
            "labels": list(labels[: self.count]),
            "pictures": [[_encoded(image) for image in images] for images in self.images],
            "kept": self.kept,
            "losses": {name: _points(values.tolist(), stride) for name, values in result.losses.items()},
        }


def _encoded(image: np.ndarray) -> str:
    return base64.b64encode(png(shrunk(image, _SIDE))).decode()


def _points(values: Sequence[float], stride: int) -> list[tuple[int, float]]:
    return [(step, values[step]) for step in range(0, len(values), stride) if math.isfinite(values[step])]


def write_snapshots(output: str, document: dict[str, Any]) -> str | None:
    """Write `<output>/forming.json`; return why it could not be written, if so. The shard does not depend on it."""
    uri = storage.join(output, SNAPSHOTS)
    try:
        storage.with_retries(lambda: storage.write_json(uri, document))
    except OSError as error:
        return f"{uri!r}, which shows how images form, was not written: {as_line(error)}"
    return None
