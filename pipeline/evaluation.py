"""Score artifacts on labeled images: top-1, top-5, agreement, confusion and latency."""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline import storage
from pipeline.artifacts.formats import format_of, load_quantized
from pipeline.artifacts.opened import Predictor, fit_to_teacher
from pipeline.artifacts.weights import model_predictor, open_weights
from pipeline.checks import check_located, check_range
from pipeline.cluster import check_cluster, connect, own_errors
from pipeline.config import to_dict
from pipeline.credentials import redacted
from pipeline.dataset.source import Source
from pipeline.errors import CheckpointError, ConfigError, DatasetError
from pipeline.evaluation_report import evaluation_page
from pipeline.former_names import LABELED
from pipeline.inputs import find_labeled, read_inputs
from pipeline.log import announce
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.out_of_memory import naming_batch_size
from pipeline.outputs import check_apart, check_no_output, check_place
from pipeline.progress import Count, progress
from pipeline.report.writing import write_page
from pipeline.scores import Score, ScoreCounts
from pipeline.vetting import check_teacher


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Score artifacts, or the teacher itself, on labeled images.

    Args:
        teacher: the model that defines normalization, image size and class names; it is scored itself if no artifact is
            given.
        labeled: URI of labeled images: Parquet with `image` and `label`, or a folder with a subfolder for each class.
        labeled_split: which split of them to score on, such as `test`, where there are several.
        artifacts: URI of an artifact of the teacher, or of several: `.pt2`, `.onnx` (weights in further files are read
            from beside it), weights for its architecture (`.safetensors`, `.pth`, `.npz`, `.index.json`; a
            `config.json` beside them is read for their class names and normalization), or folders as timm loads with
            `local-dir:`, which bring their own model. Classes that an artifact names in another order than the teacher
            are put in the teacher's; other classes, or another number of them, are refused.
        allow_compiled: open compiled packages (`.aoti.pt2`) among the artifacts. They are machine code, which runs with
            all rights of the job: allow it only for files whose origin you trust.
        output: where `evaluation.json` and `report.html` go; nowhere by default.
        batch_size: images per forward pass.
    """

    FORMER_NAMES: ClassVar[dict[str, str]] = LABELED

    teacher: ModelConfig
    labeled: str
    labeled_split: str | None = None
    artifacts: str | list[str] | None = None
    allow_compiled: bool = False
    output: str | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_located("labeled", self.labeled)
        if len(set(self.uris)) != len(self.uris):
            raise ConfigError(f"artifacts must differ: {self.uris}")

    @property
    def uris(self) -> list[str]:
        """URIs of the artifacts; empty if the teacher is scored itself."""
        return [self.artifacts] if isinstance(self.artifacts, str) else self.artifacts or []


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """Score every artifact in one pass over the labeled images.

    Returns:
        What the job prints: `labelled`, `labelled_split` if there is one, and `artifacts`: of each, `artifact` (its
        URI, or the teacher's name), `top1` and `top5` in percent, to four decimals, and `images`, the number that was
        scored.

    Raises:
        PipelineError: the model, an artifact or the labeled images cannot be read, or do not go together.
    """
    check_cluster()
    if config.output is not None:
        check_place(config.output, shared=False)
        check_no_output(config.output)
    loaded = load_model(config.teacher)
    announce(loaded.notices)
    check_teacher(loaded)
    labeled = find_labeled(config.labeled, loaded, config.labeled_split)
    predictors = {
        uri: open_artifact(uri, config.teacher, loaded, allow_compiled=config.allow_compiled) for uri in config.uris
    }
    predictors = predictors or {loaded.name: model_predictor(loaded.model)}
    if config.output is not None:
        check_apart(config.output, [labeled])
        storage.check_writable(config.output)
    connect()
    batches = labeled_batches(labeled, loaded, config.batch_size)
    with (
        naming_batch_size("batch_size", config.batch_size),
        progress("evaluate", labeled.num_rows, on_workers=False) as done,
    ):
        scores = measure_accuracy(predictors, _counted(batches, done))
    rows = [
        {"artifact": name, "top1": round(score.top1, 4), "top5": round(score.top5, 4), "images": score.images}
        for name, score in scores.items()
    ]
    # Programs read the result, so its keys keep the spelling that settings once had.
    split = {} if config.labeled_split is None else {"labelled_split": config.labeled_split}
    result = {"labelled": config.labeled, **split, "artifacts": rows}
    if config.output is not None:
        with storage.writing_to(config.output):
            storage.write_json(storage.join(config.output, "evaluation.json"), redacted(result))
        write_page(config.output, lambda: evaluation_page(to_dict(config), scores, loaded.class_names))
    return result


def _counted(batches: Iterable[tuple[Tensor, Tensor]], done: Count) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, and count their images once they are scored."""
    for pixels, labels in batches:
        yield pixels, labels
        done(len(labels))


def measure_accuracy(predictors: Mapping[str, Predictor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Score]:
    """Score several predictors in one pass over (images [B, C, H, W], labels [B]).

    Raises:
        DatasetError: there are no images.
        CheckpointError: a predictor has fewer classes than there are labels.
    """
    images, tallies = 0, {name: ScoreCounts() for name in predictors}
    for pixels, labels in batches:
        images += len(labels)
        first: Tensor | None = None
        for name, predict in predictors.items():
            logits = predict(pixels)
            tallies[name].correct += count_correct(logits, labels, name)
            predicted = logits.argmax(dim=1)
            first = predicted if first is None else first
            tallies[name].agreed += int((predicted == first).sum())
            tallies[name].confusion.update(zip(labels.tolist(), predicted.tolist(), strict=True))
    if not images:
        raise DatasetError("there are no labeled images to score on")
    return {name: tally.score(images) for name, tally in tallies.items()}


def count_correct(logits: Tensor, labels: Tensor, name: str = "the model") -> Tensor:
    """Count the labels [B] that are the first, and among the first five, of logits [B, classes]: int64 [2].

    Raises:
        CheckpointError: a label is beyond the classes, or a logit is not finite: NaN would count as the largest.
    """
    if int(labels.max()) >= logits.shape[1]:
        raise CheckpointError(f"{name!r} has {logits.shape[1]} classes, a label is {int(labels.max())}")
    finite = logits.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise CheckpointError(f"{name!r} answers {int((~finite).sum())} of {len(labels)} images with NaN or infinity")
    ranks = rank_labels(logits, labels)
    return torch.stack([(ranks == 0).sum(), (ranks < 5).sum()])


def rank_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of each label [B] among its logits [B, classes]: int64 [B], 0 where it is `argmax`.

    Equal logits, which are ordinary at few bits, are ranked by the number of their class, as `argmax` does; the order
    that `topk` puts them in is not defined.
    """
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(dim=1)


def labeled_batches(source: Source, loaded: LoadedModel, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Normalized images and their labels, from any source that has labels.

    Raises:
        DatasetError: at once, when there are no labels; while reading, when an image cannot be decoded.
    """
    images = read_inputs(source, loaded, labels=True, reads_kept=False).select_columns(["pixels", "label"])

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        with own_errors():
            for batch in images.iter_torch_batches(
                batch_size=batch_size, dtypes={"pixels": torch.float32, "label": torch.int64}, device="cpu"
            ):
                yield batch["pixels"], batch["label"]

    return batches()


def open_artifact(uri: str, config: ModelConfig, teacher: LoadedModel, *, allow_compiled: bool = False) -> Predictor:
    """Return a predictor of the teacher's images and classes from an artifact's name.

    Args:
        uri: `.pt2`, `.onnx`, `.aoti.pt2`, weights of the teacher's architecture, or a folder as timm saves one.
        config: the teacher's.
        teacher: as loaded from it; its normalization and class names hold.
        allow_compiled: open compiled packages, which run code.

    Raises:
        DatasetError: there is no such file.
        CheckpointError: it is corrupt, of another kind than its name says, reads images of another size, or has other
            classes than the teacher.
    """
    opened = load_quantized(uri, allow_compiled=allow_compiled) if format_of(uri) else open_weights(uri, config)
    return fit_to_teacher(opened, uri, teacher)


def measure_latency(predict: Predictor, images: Tensor, repeats: int = 9, most_seconds: float = 10.0) -> float:
    """Return milliseconds per image: the median over several forwards of the batch, after two that warm up.

    A large model is run fewer times, but at least three: no other forward begins once they have taken `most_seconds`.
    """
    seconds: list[float] = []
    while len(seconds) < repeats + 2 and (len(seconds) < 5 or sum(seconds) < most_seconds):
        start = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[2:]) / len(images)
