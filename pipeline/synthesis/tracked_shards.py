"""Report a synthesis to TensorBoard and MLflow, by the number of its shards that ended: are done, or failed."""

import time

from pipeline.dataset.work import actor_hours
from pipeline.synthesis.plan import SynthesisPlan
from pipeline.synthesis.tally import Tally
from pipeline.tracking.tracker import Tracker

# A week of one-second shards would draw a curve of 600,000 points.
_INTERVAL_S = 10.0


class TrackedShards:
    """The figures of a run, a point every ten seconds at most.

    Args:
        tracker: where to report the run; None for nowhere.
        plan: plan of the run, which knows what was done before.
    """

    def __init__(self, tracker: Tracker | None, plan: SynthesisPlan) -> None:
        self._tracker, self._num_before = tracker, len(plan.progress.parts)
        # Shards that failed before count as steps too, so that the steps of a run that tries them again come after.
        self._failed_before = len(plan.progress.failed)
        self._images_before = plan.shards.count_images(sorted(plan.progress.parts)) if tracker is not None else 0
        self._started, self._last = time.monotonic(), 0.0

    def add(self, tally: Tally) -> None:
        """Report the present figures, unless some were reported within the last ten seconds."""
        if time.monotonic() - self._last >= _INTERVAL_S:
            self.report(tally)

    def report(self, tally: Tally) -> None:
        """Report the present figures."""
        if self._tracker is None:
            return
        self._last = time.monotonic()
        done = self._num_before + tally.num_done
        figures = {
            "shards_done": done,
            "shards_failed": len(tally.failures),
            "images": self._images_before + tally.num_images + tally.num_images_by_another,
            "images_per_s": tally.num_images / (self._last - self._started),
            "actor_hours": actor_hours(tally.seconds),
            "class_loss": tally.class_loss,
            "teacher_confidence": tally.teacher_confidence,
        }
        self._tracker.add(self._num_before + self._failed_before + tally.num_ended, figures)
