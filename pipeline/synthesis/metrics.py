"""Report a run to Ray's metrics, which Prometheus reads and `examples/grafana/synthesis.json` draws."""

from collections.abc import Iterator

from ray.util.metrics import Counter, Gauge

from pipeline.synthesis.outcome import Outcome

# Ray puts `ray_` before each name, and `_total` after those of counters.
_PREFIX = "sparse_inversion_"


class RunMetrics:
    """Counters and gauges of a run, labeled by the first 8 digits of the dataset's digest.

    Args:
        digest: digest of the dataset.
        num_shards: number of shards to do in this run.
    """

    def __init__(self, digest: str, num_shards: int) -> None:
        self._run = {"run": digest[:8]}
        self._left = num_shards
        self._shards = _counter("shards", "Shards that ended, by outcome: made, failed, by_another.", "outcome")
        self._images = _counter("images", "Images made and written.")
        self._seconds = _counter("inverting_seconds", "Seconds that workers spent inverting.")
        self._store_seconds = _counter("storing_seconds", "Seconds that workers spent encoding and writing.")
        self._bytes = _counter("written_bytes", "Bytes of parts.")
        self._loss = Gauge(f"{_PREFIX}class_loss", "Mean class loss of the last shard.", tag_keys=("run",))
        self._shards_left = Gauge(f"{_PREFIX}shards_left", "Shards that this run has still to do.", tag_keys=("run",))
        self._last_loss: float | None = None
        self._set_gauges()

    def add(self, outcome: Outcome) -> None:
        """Report a shard that is done or failed."""
        kind = "made" if outcome.is_made else "failed" if outcome.error else "by_another"
        self._shards.inc(1, {**self._run, "outcome": kind})
        self._left -= 1
        if outcome.is_made:
            self._images.inc(outcome.num_images, self._run)
            self._bytes.inc(outcome.bytes, self._run)
            self._last_loss = outcome.class_loss
            # Ray refuses to add 0 to a counter.
            for counter, seconds in ((self._seconds, outcome.seconds), (self._store_seconds, outcome.store_s)):
                if seconds > 0:
                    counter.inc(seconds, self._run)
        self._set_gauges()

    def repeat_gauges(self, ticks: Iterator[None]) -> None:
        """Set the gauges at every tick; a shard may take an hour.

        Ray exports a gauge once each time it is set, and drops it two exports (20 s) later.

        Args:
            ticks: iterator that yields when it is time, from `pipeline.workers.progress.reporting`.
        """
        for _ in ticks:
            self._set_gauges()

    def _set_gauges(self) -> None:
        self._shards_left.set(self._left, self._run)
        if self._last_loss is not None:
            self._loss.set(self._last_loss, self._run)


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(f"{_PREFIX}{name}", description, tag_keys=("run", *tags))
