"""Score artifacts on labeled images."""

from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.measures import check_logits, count_correct, measure_accuracy, measure_latency, rank_labels
from pipeline.evaluation.run import evaluate, labeled_batches, open_artifact
from pipeline.evaluation.scores import Score

__all__ = [
    "EvaluationConfig",
    "Score",
    "check_logits",
    "count_correct",
    "evaluate",
    "labeled_batches",
    "measure_accuracy",
    "measure_latency",
    "open_artifact",
    "rank_labels",
]
