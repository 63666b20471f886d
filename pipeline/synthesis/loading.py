"""Load what a worker inverts and writes with, and wait for storage that does not answer meanwhile."""

import time
from collections.abc import Callable

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import DatasetError, one_line
from pipeline.outputs.owners import NOT_SHARED
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.devices import Device
from pipeline.synthesis.faults import check_gpu
from pipeline.synthesis.writer import PartWriter
from pipeline.transient import is_of_store

# Storage that does not answer is asked again after pauses that double, from the first to the longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Seconds after which the driver is told that storage does not answer, and between two further such lines.
_TELL_S, _TELL_AGAIN_S = 10.0, 600.0
# Delays before each look at the output, which a node may mount a moment after it has started.
_LOOK_AGAIN_S = (0.0, 1.0, 5.0)


class Loader:
    """Makes the `PartWriter` of a worker.

    Args:
        config: settings of the dataset.
        digest: the driver's digest of the config.
        schema_version: version of the dataset's schema.
        name: name of the worker.
        device: device that the worker computes on.
    """

    def __init__(self, config: SynthesisConfig, digest: str, schema_version: int, name: str, device: Device) -> None:
        self._config, self._digest, self._schema_version = config, digest, schema_version
        self._name, self._device = name, device
        self._pause_s, self._patience_s = _FIRST_PAUSE_S, _TELL_S

    def load(self, goes_on: Callable[[], bool]) -> PartWriter:
        """Return a writer. Where storage does not answer, try again for a while.

        Args:
            goes_on: function that returns whether the writer is still wanted.

        Raises:
            DatasetError: this worker does not see the output, or cannot write to it.
            Exception: anything that a library raises.
        """
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return self._load()
            except Exception as error:
                late = time.monotonic() + self._pause_s >= until
                if late or not is_of_store(error) or not goes_on():
                    raise
                time.sleep(self._pause_s)
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _load(self) -> PartWriter:
        check_output(self._config.output, self._name, self._device)
        check_gpu(self._config.pool.device)
        return PartWriter(self._config, self._digest, self._schema_version)

    def note(self, error: Exception) -> str:
        """Return a line about storage that does not answer, which the driver is told; `load` then tries for longer."""
        timeout_s = self._config.pool.no_progress_timeout_s
        self._patience_s = _TELL_AGAIN_S if timeout_s == -1 else min(_TELL_AGAIN_S, timeout_s / 4)
        return (
            f"worker {self._name} on {self._device} waits for storage, which does not answer, to load the teacher and "
            f"look at the output: {one_line(error)}"
        )


def check_output(output: str, worker: str, device: Device) -> None:
    """Check before the first shard that a worker sees the same output as the driver, and can write to it.

    Args:
        output: folder of the dataset.
        worker: name of the process.
        device: device that the worker computes on.

    Raises:
        DatasetError: the worker does not see the driver's output, or cannot write to it.
    """
    manifest = store.manifest_uri(output)
    if not storage.look_again(lambda: storage.exists(manifest), _LOOK_AGAIN_S):
        raise DatasetError(
            f"worker {worker} of node {device.host} does not find {manifest!r}, which this run wrote: {NOT_SHARED}"
        )
    storage.check_writable(output)
