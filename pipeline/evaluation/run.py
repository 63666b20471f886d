"""Run an evaluation: score artifacts on labeled images."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline import storage
from pipeline.artifacts.formats import format_of, load_quantized
from pipeline.artifacts.opened import Predictor, fit_to_teacher
from pipeline.artifacts.weights import model_predictor, open_weights
from pipeline.cluster import check_cluster, connect, own_errors
from pipeline.config import to_dict
from pipeline.credentials import redacted
from pipeline.dataset.source import Source
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.measures import measure_accuracy
from pipeline.evaluation.report import evaluation_page
from pipeline.inputs import find_labeled, read_inputs
from pipeline.log import announce
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.out_of_memory import naming_batch_size
from pipeline.outputs.names import EVALUATION
from pipeline.outputs.owners import check_apart, check_no_output, check_place
from pipeline.report.writing import write_page
from pipeline.torch_modes import usual_modes
from pipeline.vetting import check_teacher
from pipeline.workers.progress import Count, progress


@usual_modes()
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
            storage.write_json(storage.join(config.output, EVALUATION), redacted(result))
        write_page(config.output, lambda: evaluation_page(to_dict(config), scores, loaded.class_names))
    return result


def _counted(batches: Iterable[tuple[Tensor, Tensor]], done: Count) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, and count their images once they are scored."""
    for pixels, labels in batches:
        yield pixels, labels
        done(len(labels))


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
        uri: location of a `.pt2`, `.onnx` or `.aoti.pt2` file, of weights of the teacher's architecture, or of a folder
            as timm saves one.
        config: settings of the teacher.
        teacher: the teacher loaded from them, whose normalization and class names apply.
        allow_compiled: whether to open compiled packages, which run code.

    Raises:
        DatasetError: there is no such file.
        CheckpointError: the file is corrupt, of another kind than its name says, reads images of another size, or has
            other classes than the teacher.
    """
    opened = load_quantized(uri, allow_compiled=allow_compiled) if format_of(uri) else open_weights(uri, config)
    return fit_to_teacher(opened, uri, teacher)
