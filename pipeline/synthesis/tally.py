"""Count what the workers of a run report, in memory that does not grow with what they make."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pipeline.errors import IncompleteError
from pipeline.synthesis.outcome import Outcome

# The run stops after this many shards in a row that failed because of storage.
_MAX_STORAGE_FAILED = 5


@dataclass
class Tally:
    """Counts of what became of a run's shards.

    Attributes:
        num_ended: number of shards that are done or failed.
        failures: shard id → why it failed.
        made_by: worker → number of shards that it made and wrote.
        num_by_another: number of shards that another run made in the meantime.
        num_retried: number of shards that this run made, but not in their first attempt; an unfinished attempt of an
            earlier run counts.
        num_images: number of images that this run made.
        num_images_by_another: number of images that another run made in the meantime.
        num_images_failed: number of images in the shards that failed.
        loss_sum, confidence_sum: sums of class loss and of the teacher's confidence over the images that this run made.
        steps: number of steps taken → number of starts that took so many.
        seconds: kind of device, as in the index → seconds of inverting, summed over all workers on such devices.
        compile_s: seconds of compiling, summed over all workers.
        peak_bytes: largest peak memory of a worker, as in `InvertedShard`.
        num_storage_failed: number of shards in a row, up to the last one, that failed because of storage.
    """

    num_ended: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    made_by: Counter[str] = field(default_factory=Counter)
    num_by_another: int = 0
    num_retried: int = 0
    num_images: int = 0
    num_images_by_another: int = 0
    num_images_failed: int = 0
    loss_sum: float = 0.0
    confidence_sum: float = 0.0
    steps: Counter[int] = field(default_factory=Counter)
    seconds: defaultdict[str | None, float] = field(default_factory=lambda: defaultdict(float))
    compile_s: float = 0.0
    peak_bytes: int = 0
    num_storage_failed: int = 0

    @property
    def num_done(self) -> int:
        """Shards that are done, made by this run or another."""
        return self.num_ended - len(self.failures)

    @property
    def class_loss(self) -> float | None:
        """Mean class loss of the images made by this run; None without any."""
        return self.loss_sum / self.num_images if self.num_images else None

    @property
    def teacher_confidence(self) -> float | None:
        """Mean confidence of the teacher in the images made by this run; None without any."""
        return self.confidence_sum / self.num_images if self.num_images else None

    def add(self, outcome: Outcome) -> None:
        """Count a shard that is done or failed."""
        self.num_ended += 1
        self.num_storage_failed = self.num_storage_failed + 1 if outcome.storage_failed else 0
        if outcome.error:
            assert outcome.shard_id is not None
            self.failures[outcome.shard_id] = outcome.reason
            self.num_images_failed += outcome.num_images
        elif outcome.by_another:
            self.num_by_another += 1
            self.num_images_by_another += outcome.num_images
        else:
            self._add_made(outcome)

    def _add_made(self, outcome: Outcome) -> None:
        self.made_by[outcome.worker] += 1
        self.num_retried += (outcome.attempts or 1) > 1
        self.num_images += outcome.num_images
        self.loss_sum += outcome.class_loss * outcome.num_images
        self.confidence_sum += outcome.teacher_confidence * outcome.num_images
        self.steps.update(outcome.num_steps)
        self.seconds[outcome.device] += outcome.seconds
        self.compile_s += outcome.compile_s
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)

    def check_storage(self, last: Outcome) -> None:
        """Stop a run whose images would all be lost.

        Args:
            last: the outcome that was added last.

        Raises:
            IncompleteError: shard after shard failed because of storage.
        """
        if self.num_storage_failed >= _MAX_STORAGE_FAILED:
            number = self.num_storage_failed
            raise IncompleteError(f"{number} shards in a row failed because of storage: {last.reason}")
