"""Artifacts fitted to a teacher: its images in, its classes out, in its order."""

import json
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
from pipeline.artifacts.formats import FormatName, save
from pipeline.artifacts.opened import Opened, fit_to_teacher
from pipeline.errors import CheckpointError
from pipeline.evaluation import open_artifact
from pipeline.models import LoadedModel, ModelConfig, load_model, save_model
from pipeline.quantization import BitWidths
from pipeline.quantization.bit_widths import Placement
from tests.conftest import HALF, make_tiny_model
from tests.quantized import DATA_FORMATS

NAMES = [f"class {letter}" for letter in "abcdefghij"]
REVERSED = NAMES[::-1]
KINDS = [*DATA_FORMATS, "folder"]
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
            save(programs("linear"), path, facts)
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
    assert capsys.readouterr().err == f"{uri}: its classes were reordered by name to match the teacher's\n"


@pytest.mark.parametrize("kind", KINDS)
def test_other_names_are_refused(kind: str, write: Write, teacher: LoadedModel) -> None:
    uri = write(kind, Facts([*NAMES[:9], "zebra"], HALF, HALF))
    with pytest.raises(CheckpointError, match=r"does not have: 'zebra'; of the teacher's it lacks: 'class j'"):
        fit(uri, teacher)


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_an_artifact_is_given_images_in_its_own_normalization(kind: str, write: Write, teacher: LoadedModel) -> None:
    mean, std, images = (0.2, 0.3, 0.4), (0.1, 0.2, 0.3), some_images()
    own = (images * 0.5 + 0.5 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    logits = fit(write(kind, Facts(NAMES, mean, std)), teacher)(images)
    torch.testing.assert_close(logits, plain_logits(own), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_an_artifact_without_names_is_taken_as_the_teachers(
    kind: str, write: Write, teacher: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    images = some_images()
    uri = write(kind, Facts())
    logits = fit(uri, teacher)(images)
    torch.testing.assert_close(logits, plain_logits(images), atol=1e-4, rtol=1e-4)
    reported = f"warning: {uri}: it has no class names; its classes are assumed to be in the teacher's order\n"
    assert capsys.readouterr().err == reported


@pytest.mark.parametrize("kind", DATA_FORMATS)
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


@pytest.mark.parametrize("key", ["label_names", "id2label"])
def test_what_lies_beside_weights_is_read(
    key: str, teacher: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean, std, images = (0.2, 0.3, 0.4), (0.1, 0.2, 0.3), some_images()
    save_model(make_tiny_model(), tmp_path / "m", class_names=NAMES, mean=mean, std=std)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["label_names"]
    config[key] = REVERSED if key == "label_names" else dict(enumerate(REVERSED))
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    uri = str(tmp_path / "m" / "model.safetensors")
    own = (images * 0.5 + 0.5 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(fit(uri, teacher)(images), plain_logits(own).flip(1), atol=1e-4, rtol=1e-4)
    assert capsys.readouterr().err == f"{uri}: its classes were reordered by name to match the teacher's\n"
    # As a folder it is the same.
    torch.testing.assert_close(fit(str(tmp_path / "m"), teacher)(images), plain_logits(own).flip(1), atol=1e-4, rtol=0)


def test_a_config_beside_weights_that_says_nothing_of_them_is_left_alone(teacher: LoadedModel, tmp_path: Path) -> None:
    uri, images = str(tmp_path / "a.safetensors"), some_images()
    save_file(make_tiny_model().state_dict(), uri)
    for content in ("not JSON", '["a"]', '{"digest": "0", "pretrained_cfg": null}'):
        (tmp_path / "config.json").write_text(content)
        torch.testing.assert_close(fit(uri, teacher)(images), plain_logits(images))
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "2": "b"}}')
    with pytest.raises(CheckpointError, match=r"the config\.json beside '.*a\.safetensors' does not number"):
        fit(uri, teacher)


def test_weights_that_answer_with_no_classes_are_refused(teacher: LoadedModel, tmp_path: Path) -> None:
    save_model(make_tiny_model(), tmp_path / "m", class_names=NAMES, mean=HALF, std=HALF)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    for uri in (str(tmp_path / "m"), str(tmp_path / "m" / "model.safetensors")):
        with pytest.raises(CheckpointError, match=r"outputs values \(regression\)"):
            fit(uri, teacher)


def test_weights_in_every_container_are_artifacts(teacher: LoadedModel, tmp_path: Path) -> None:
    weights, images = make_tiny_model().state_dict(), some_images()
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in weights.items()})  # pyright: ignore[reportArgumentType]
    save_file(weights, tmp_path / "part.safetensors")
    places = {"weight_map": dict.fromkeys(weights, "part.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(places))
    torch.save(weights, tmp_path / "A.PTH")
    for name in ("a.npz", "model.safetensors.index.json", "A.PTH"):
        torch.testing.assert_close(fit(str(tmp_path / name), teacher)(images), plain_logits(images))


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_names_in_upper_case_are_of_the_same_kind(kind: str, write: Write, teacher: LoadedModel) -> None:
    path, images = Path(write(kind, Facts(NAMES))), some_images()
    upper = path.rename(path.with_suffix(path.suffix.upper()))
    torch.testing.assert_close(fit(str(upper), teacher)(images), plain_logits(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "text"), [("names", repr(dict(enumerate(REVERSED)))), ("id2label", json.dumps(dict(enumerate(REVERSED))))]
)
def test_classes_that_other_programs_name_are_put_in_order(
    key: str, text: str, write: Write, teacher: LoadedModel
) -> None:
    uri, images = write("onnx", Facts()), some_images()
    model = onnx.load(uri)
    helper.set_model_props(model, {key: text})
    onnx.save(model, uri)
    torch.testing.assert_close(fit(uri, teacher)(images), plain_logits(images).flip(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", DATA_FORMATS)
def test_a_normalization_of_other_channels_is_refused(kind: str, write: Write, teacher: LoadedModel) -> None:
    with pytest.raises(CheckpointError, match="its mean has 1 values, the images have 3 channels"):
        fit(write(kind, Facts(NAMES, (0.5,), (0.5,))), teacher)


def test_numbers_of_classes_are_not_taken_for_logits(tmp_path: Path, three: LoadedModel) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("TopK", ["means", "k"], ["values", "y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "topk",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 3])],
        [onnx.numpy_helper.from_array(np.array(v), name) for name, v in (("axes", [2, 3]), ("k", [3]))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "t.onnx")
    with pytest.raises(CheckpointError, match=r"gives tensor\(int64\) as 'y', not logits"):
        fit(str(tmp_path / "t.onnx"), three)
    opened = Opened(lambda images: torch.zeros(len(images), 3, dtype=torch.int64), Facts())
    with pytest.raises(CheckpointError, match="gives int64, as numbers of classes are, not logits"):
        fit_to_teacher(opened, "t.pt2", three)


def write_foreign(path: Path, *, batch: int | str, dtype: int, outputs: list[int | str], side: int | str = 32) -> str:
    """Write the mean of each channel as three logits, as another program might."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph(
        [node],
        "foreign",
        [helper.make_tensor_value_info("x", dtype, [batch, 3, side, side])],
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


def test_a_foreign_file_that_takes_images_of_any_size_is_run(tmp_path: Path, three: LoadedModel) -> None:
    uri = write_foreign(tmp_path / "foreign.onnx", batch="n", dtype=TensorProto.FLOAT, outputs=["n", 3], side="side")
    torch.testing.assert_close(fit(uri, three)(some_images()), some_images().mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [[1, 3, 1024], [1, 15, 1024]])
def test_a_foreign_file_that_reshapes_to_one_image_inside_is_refused_for_several(
    shape: list[int], tmp_path: Path, three: LoadedModel
) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "reshapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(np.array(v), name) for name, v in (("axes", [2]), ("shape", shape))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "r.onnx")
    with pytest.raises(CheckpointError, match=r"r\.onnx"):
        fit(str(tmp_path / "r.onnx"), three)(some_images())


def test_calibration_writes_the_names_of_the_teacher(files: Callable[[BitWidths, FormatName], Path]) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(files(BitWidths(), "onnx")).metadata_props}
    assert Facts.from_strings(metadata, "x") == Facts(NAMES, HALF, HALF)
