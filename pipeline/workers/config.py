"""Settings of the Ray Train workers of a job."""

from dataclasses import dataclass
from typing import Literal

from pipeline.checks import check_range, check_types
from pipeline.errors import ConfigError

DeviceChoice = Literal["auto", "cpu", "cuda"]

# Names that calibrate and distill once had at the top of their configs; `pipeline.config.former_names` reads them.
FLAT_NAMES = {
    "num_workers": "workers.size",
    "cpus_per_worker": "workers.cpus_per_worker",
    "device": "workers.device",
    "start_timeout_s": "workers.start_timeout_s",
    "max_failures": "workers.max_failures",
}


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The Ray Train workers of a job, and how long to wait for them.

    Args:
        size: number of workers; 0 does the work in the job's own process.
        min_size: the fewest workers to run with when the cluster cannot provide `size`, or loses nodes; by default
            `size`. A training adds workers when there is room again. Ray waits for these without a time limit, whatever
            `start_timeout_s` is.
        cpus_per_worker: CPU cores, and torch threads, of each worker.
        device: `auto` takes a GPU per worker if the cluster has any.
        start_timeout_s: seconds to wait for all workers, while nodes start; rounded up to minutes.
        max_failures: how often workers may be lost before the job gives up; a training resumes from its last checkpoint
            each time. Errors that would repeat end the job at once.
    """

    size: int = 1
    min_size: int | None = None
    cpus_per_worker: int = 1
    device: DeviceChoice = "auto"
    start_timeout_s: int = 900
    max_failures: int = 3

    def __post_init__(self) -> None:
        check_types(self, "workers.")
        for name, least in (("size", 0), ("cpus_per_worker", 1), ("start_timeout_s", 1), ("max_failures", 0)):
            check_range(f"workers.{name}", getattr(self, name), least)
        if self.min_size is not None and not self.size:
            raise ConfigError(f"workers.min_size is {self.min_size}, and workers.size is 0: leave workers.min_size out")
        check_range("workers.min_size", self.min_size, 1, self.size)

    def check_batch_size(self, setting: str, size: int) -> None:
        """Check that each worker gets an image of a batch.

        Raises:
            ConfigError: the batch is smaller; it names the setting.
        """
        if size < self.size:
            raise ConfigError(f"{setting} is {size}, which is less than one image for each of {self.size} workers")

    @property
    def fewest(self) -> int:
        """Smallest number of workers to run with."""
        return self.size if self.min_size is None else self.min_size
