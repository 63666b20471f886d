"""Top-1 and top-5 of every kind of artifact, on labeled images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artifacts.weights import model_predictor
from pipeline.dataset import write_images
from pipeline.errors import CheckpointError, ConfigError, DatasetError
from pipeline.evaluation import (
    EvaluationConfig,
    count_correct,
    evaluate,
    measure_accuracy,
    measure_latency,
    open_artifact,
    rank_labels,
)
from pipeline.models import ModelConfig, RealImageTransform, load_model, save_model
from tests.conftest import TINY, make_tiny_model
from tests.report.page_check import check_page

NAMES = [f"class {letter}" for letter in "abcdefghij"]


def logits_of(classes: list[int], num_classes: int = 10) -> Tensor:
    """Logits whose order is: the class, then the others by number."""
    order = torch.linspace(0, -1, num_classes).repeat(len(classes), 1)
    order[torch.arange(len(classes)), classes] = 1
    return order


def test_top1_and_top5_are_counted() -> None:
    logits = logits_of([3, 3, 9])
    assert count_correct(logits, torch.tensor([3, 0, 8])).tolist() == [1, 2]


def test_fewer_than_five_classes_have_a_top5_of_all() -> None:
    assert count_correct(logits_of([1, 1], 3), torch.tensor([0, 1])).tolist() == [1, 2]


def test_equal_logits_are_ranked_by_the_number_of_their_class() -> None:
    """So that top-1, top-5, agreement and confusion are about the same answers."""
    logits = torch.zeros(2, 40)
    logits[1, 30:] = 1
    for label, expected in ((0, [1, 1]), (4, [0, 1]), (5, [0, 0]), (30, [1, 1]), (34, [0, 1]), (35, [0, 0])):
        correct = count_correct(logits[int(label > 29)][None], torch.tensor([label]))
        assert correct.tolist() == expected
    for classes in (3, 40, 1000):
        tied = torch.randint(0, 3, (64, classes), generator=torch.Generator().manual_seed(0)).float()
        assert torch.equal(rank_labels(tied, tied.argmax(dim=1)), torch.zeros(64, dtype=torch.int64))
        order = tied.sort(dim=1, descending=True, stable=True).indices
        assert torch.equal(rank_labels(tied, order[:, 2]), torch.full((64,), 2))


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'x' has 3 classes, a label is 7"):
        count_correct(logits_of([1], 3), torch.tensor([7]), "x")


def test_several_predictors_are_scored_in_one_pass() -> None:
    passes = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal passes
        passes += 1
        yield torch.zeros(3, 1), torch.tensor([0, 1, 2])
        yield torch.zeros(1, 1), torch.tensor([9])

    scores = measure_accuracy(
        {"first": lambda x: logits_of([0] * len(x)), "last": lambda x: logits_of([9] * len(x))}, batches()
    )
    assert passes == 1
    assert (scores["first"].images, scores["first"].top1, scores["first"].top5) == (4, 25.0, 75.0)
    assert (scores["last"].top1, scores["last"].top5) == (25.0, 100.0)
    assert (scores["first"].agreement, scores["last"].agreement) == (100.0, 0.0)
    assert scores["first"].confusion == {(0, 0): 1, (1, 0): 1, (2, 0): 1, (9, 0): 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_not_scored(value: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    with pytest.raises(CheckpointError, match=r"'half.onnx' answers 1 of 3 images with NaN or infinity"):
        measure_accuracy({"half.onnx": lambda _images: logits}, [(torch.zeros(3, 1), torch.tensor([0, 1, 2]))])


def test_no_labeled_images_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no labeled images"):
        measure_accuracy({}, [])


def test_latency_is_the_median_an_image() -> None:
    calls = []
    latency = measure_latency(lambda x: calls.append(len(x)) or x, torch.zeros(4, 1), repeats=3)
    assert calls == [4] * 5
    assert 0 <= latency < 100
    # What takes long is not run as often.
    measure_latency(lambda x: calls.append(len(x)) or x, torch.zeros(4, 1), repeats=9, most_seconds=0.0)
    assert calls == [4] * 10


def test_predictors_run_models_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Flatten()).train()
    images = torch.ones(2, 1, 4, 4)
    assert torch.equal(model_predictor(model)(images), images.flatten(1))


def test_unreadable_artifacts_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    tiny = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"cannot read '.*x.onnx' as an ONNX model"):
        open_artifact(str(tmp_path / "x.onnx"), ModelConfig(name="x"), tiny)
    with pytest.raises(CheckpointError, match="nor a folder that timm saved"):
        open_artifact(str(tmp_path / "model.xyz"), ModelConfig(name="x"), tiny)
    with pytest.raises(DatasetError, match="cannot read"):
        open_artifact(str(tmp_path / "none.onnx"), ModelConfig(name="x"), tiny)


def test_a_folder_is_given_images_in_its_own_normalization(tmp_path: Path, tiny_folder: Path) -> None:
    teacher = ModelConfig(name=f"local-dir:{tiny_folder}")
    mean, std = (0.2, 0.3, 0.4), (0.1, 0.2, 0.3)
    save_model(make_tiny_model(), tmp_path / "other", class_names=NAMES, mean=mean, std=std)
    predict = open_artifact(str(tmp_path / "other"), teacher, load_model(teacher))
    pixels = torch.rand(4, 3, 32, 32)
    own = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    with torch.no_grad():
        expected = make_tiny_model()(own)
    assert torch.allclose(predict((pixels - 0.5) / 0.5), expected, atol=1e-4)


def test_a_folder_that_reads_other_sizes_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    teacher = ModelConfig(name=f"local-dir:{tiny_folder}")
    other = make_tiny_model(img_size=64)
    save_model(other, tmp_path / "other", class_names=NAMES, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(CheckpointError, match=r"\[3, 64, 64\], the teacher's are \[3, 32, 32\]"):
        open_artifact(str(tmp_path / "other"), teacher, load_model(teacher))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        EvaluationConfig(teacher=ModelConfig(name="x"), labeled="l", batch_size=0)
    with pytest.raises(ConfigError, match="artifacts must differ"):
        EvaluationConfig(teacher=ModelConfig(name="x"), labeled="l", artifacts=["a.pt2", "a.pt2"])


@pytest.fixture
def labeled(tmp_path: Path, tiny_folder: Path) -> str:
    """Images labeled with what the tiny model says of them, but for the last one."""
    pixels = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), np.uint8)
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    transform = RealImageTransform(loaded)
    with torch.no_grad():
        labels = loaded.model(torch.stack([transform(Image.fromarray(image)) for image in pixels])).argmax(1).tolist()
    labels[-1] = (labels[-1] + 1) % 10
    uri = str(tmp_path / "labeled.parquet")
    write_images(uri, pixels, labels, loaded.class_names)
    return uri


@pytest.mark.usefixtures("ray_session")
def test_every_kind_of_weights_scores_the_same(labeled: str, tiny_folder: Path, tmp_path: Path) -> None:
    teacher = ModelConfig(name=f"local-dir:{tiny_folder}")
    weights = tmp_path / "weights.safetensors"
    save_file(make_tiny_model().state_dict(), weights)
    named = ModelConfig(name="vit_tiny_patch16_224", checkpoint=str(weights), model_args=TINY)
    output = tmp_path / "scores"

    folder = evaluate(
        EvaluationConfig(teacher=teacher, labeled=labeled, artifacts=[str(tiny_folder)], output=str(output))
    )
    itself = evaluate(EvaluationConfig(teacher=teacher, labeled=labeled, batch_size=5))
    checkpoint = evaluate(EvaluationConfig(teacher=named, labeled=labeled, artifacts=[str(weights)]))

    assert (output / "evaluation.json").is_file()
    page = check_page((output / "report.html").read_text())
    assert f"{tiny_folder}: 20 of 21 images (95.2%) are taken for their class." in page.texts
    for result in (folder, itself, checkpoint):
        (row,) = result["artifacts"]
        assert row["top1"] == round(100 * 20 / 21, 4)
        assert row["images"] == 21


@pytest.mark.usefixtures("ray_session")
def test_images_without_labels_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    teacher = ModelConfig(name=f"local-dir:{tiny_folder}")
    with pytest.raises(DatasetError, match="has no labels"):
        evaluate(EvaluationConfig(teacher=teacher, labeled=str(tmp_path), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
