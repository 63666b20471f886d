"""Read event files with TensorBoard's own reader."""

import shutil
from pathlib import Path

from pipeline import storage


def read_scalars(run: str, scratch: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of each point, by the name of the curve."""
    events = _load(run, scratch)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_texts(run: str, scratch: Path) -> list[str]:
    events = _load(run, scratch)
    tensors = [event for tag in events.Tags()["tensors"] for event in events.Tensors(tag)]
    return [tensor.tensor_proto.string_val[0].decode() for tensor in tensors]


def _load(run: str, scratch: Path):  # noqa: ANN202 (TensorBoard is optional)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # As a browser of a bucket would have it: the reader knows few stores.
    copy = scratch / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    storage.download_folder(run, str(copy))
    events = EventAccumulator(str(copy), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events
