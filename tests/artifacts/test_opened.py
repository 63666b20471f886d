"""Artifacts fitted to a teacher: its images in, its classes out, in its order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor
from torch.export import ExportedProgram

from pipeline.artifacts.facts import Facts
from pipeline.artifacts.onnx import save_onnx
from pipeline.artifacts.pt2 import save_pt2
from pipeline.errors import CheckpointError
from pipeline.evaluation import open_artifact
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model
from pipeline.quantization import BitWidths
from pipeline.quantization.settings import Placement
from tests.conftest import HALF, make_tiny_model

NAMES = [f"class {letter}" for letter in "abcdefghij"]
REVERSED = NAMES[::-1]
KINDS = ["pt2", "onnx", "folder"]
Write = Callable[[str, Facts], str]


@pytest.fixture(scope="module")
def teacher(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


@pytest.fixture
def write(tmp_path: Path, programs: Callable[[Placement], ExportedProgram]) -> Write:
    """Write the tiny model as an artifact of a kind that states these facts."""

    def write_kind(kind: str, facts: Facts) -> str:
        path = tmp_path / f"artifact.{kind}"
        if kind == "folder":
            names, mean, std = facts.class_names or NAMES, facts.mean or HALF, facts.std or HALF
            save_model(make_tiny_model(), path, class_names=names, mean=mean, std=std)
        else:
            (save_onnx if kind == "onnx" else save_pt2)(programs("linear"), path, facts)
        return str(path)

    return write_kind


def fit(uri: str, teacher: LoadedModel) -> Callable[[Tensor], Tensor]:
    return open_artifact(uri, ModelConfig(name=teacher.name), teacher)


def some_images() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def plain_logits(images: Tensor) -> Tensor:
    with torch.no_grad():
        return make_tiny_model()(images)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_in_another_order_are_put_in_the_teachers(
    kind: str, write: Write, teacher: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, images = write(kind, Facts(REVERSED, HALF, HALF)), some_images()
    logits = fit(uri, teacher)(images)
    torch.testing.assert_close(logits, plain_logits(images).flip(1), atol=1e-4, rtol=1e-4)
    assert capsys.readouterr().err == f"{uri}: its classes are put in the teacher's order, by their names\n"


@pytest.mark.parametrize("kind", KINDS)
def test_other_names_are_refused(kind: str, write: Write, teacher: LoadedModel) -> None:
    uri = write(kind, Facts([*NAMES[:9], "zebra"], HALF, HALF))
    with pytest.raises(CheckpointError, match=r"does not have: 'zebra'; of the teacher's it lacks: 'class j'"):
        fit(uri, teacher)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_artifact_is_given_images_in_its_own_normalization(kind: str, write: Write, teacher: LoadedModel) -> None:
    mean, std, images = (0.2, 0.3, 0.4), (0.1, 0.2, 0.3), some_images()
    own = (images * 0.5 + 0.5 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    logits = fit(write(kind, Facts(NAMES, mean, std)), teacher)(images)
    torch.testing.assert_close(logits, plain_logits(own), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_artifact_without_names_is_taken_as_the_teachers(
    kind: str, write: Write, teacher: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    images = some_images()
    logits = fit(write(kind, Facts()), teacher)(images)
    torch.testing.assert_close(logits, plain_logits(images), atol=1e-4, rtol=1e-4)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_another_number_of_classes_is_refused(
    kind: str, write: Write, programs: Callable[[Placement], ExportedProgram], tmp_path: Path
) -> None:
    folder = tmp_path / "twelve"
    save_model(make_tiny_model(num_classes=12), folder, class_names=list("abcdefghijkl"), mean=HALF, std=HALF)
    twelve = load_model(ModelConfig(name=f"local-dir:{folder}"))
    with pytest.raises(CheckpointError, match="has 10 classes, the teacher has 12"):
        fit(write(kind, Facts()), twelve)


def test_weights_of_another_number_of_classes_are_refused(teacher: LoadedModel, tmp_path: Path) -> None:
    weights = tmp_path / "twelve.safetensors"
    save_file(make_tiny_model(num_classes=12).state_dict(), weights)
    with pytest.raises(CheckpointError, match=r"twelve\.safetensors"):
        fit(str(weights), teacher)


def write_foreign(path: Path, *, batch: int | str, dtype: int, outputs: list[int | str]) -> str:
    """Write the mean of each channel as three logits, as another program might."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph(
        [node],
        "foreign",
        [helper.make_tensor_value_info("x", dtype, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("y", dtype, outputs)],
        [onnx.numpy_helper.from_array(np.array([2, 3] if len(outputs) == 2 else [3]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return str(path)


@pytest.fixture
def three(tmp_path: Path) -> LoadedModel:
    save_model(make_tiny_model(num_classes=3), tmp_path / "three", class_names=["a", "b", "c"], mean=HALF, std=HALF)
    return load_model(ModelConfig(name=f"local-dir:{tmp_path / 'three'}"))


@pytest.mark.parametrize("batch", [1, 2, "n"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_foreign_file_of_a_fixed_batch_or_half_precision_is_run(
    batch: int | str, dtype: int, tmp_path: Path, three: LoadedModel
) -> None:
    images = some_images()
    uri = write_foreign(tmp_path / "foreign.onnx", batch=batch, dtype=dtype, outputs=[batch, 3])
    logits = fit(uri, three)(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, images.mean(dim=(2, 3)), atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("dtype", "outputs", "message"),
    [
        (TensorProto.INT32, [1, 3], "must take one float"),
        (TensorProto.FLOAT, [1, 3, 32], "for one image, not one row of logits"),
    ],
)
def test_a_foreign_file_that_is_no_classifier_of_images_is_refused(
    dtype: int, outputs: list[int | str], message: str, tmp_path: Path, three: LoadedModel
) -> None:
    uri = write_foreign(tmp_path / "foreign.onnx", batch=1, dtype=dtype, outputs=outputs)
    with pytest.raises(CheckpointError, match=message):
        fit(uri, three)


def test_calibration_writes_the_names_of_the_teacher(files: Callable[[BitWidths, str], Path]) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(files(BitWidths(), "onnx")).metadata_props}
    assert Facts.from_strings(metadata, "x") == Facts(NAMES, HALF, HALF)
