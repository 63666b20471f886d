from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.dataset import schema, store, write_images
from pipeline.dataset.sources import find_source
from pipeline.errors import DatasetError
from pipeline.inputs import check_inputs, read_inputs
from pipeline.inversion import Teacher
from pipeline.models import LoadedModel, ModelConfig, RealImageTransform, load_model, save_model
from pipeline.models.image_reader import num_patches
from tests.conftest import make_manifest, make_tiny_model

DIGEST = "0123456789abcdef" * 4
NAMES = [f"class {letter}" for letter in "abcdefghij"]

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


def random_images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_synthetic(folder: Path, *, side: int = 32, keep: list[list[int]], labels: list[int]) -> np.ndarray:
    images = random_images(len(labels), side)
    ids = [f"{row:05d}" for row in range(len(labels))]
    columns = {name: [0] * len(labels) for name in schema.COLUMNS}
    columns |= {"image": schema.image_column(list(images), ids), "label": labels, "keep_indices": keep, "image_id": ids}
    table = pa.table(columns, schema=schema.arrow_schema(NAMES))
    store.write_part(str(folder), 0, DIGEST, schema.to_parquet(table))
    store.write_manifest(str(folder), make_manifest(DIGEST, class_names=NAMES, image_size=[3, side, side]))
    return images


def test_synthetic_images_are_only_normalized(tmp_path: Path, loaded: LoadedModel) -> None:
    images = write_synthetic(tmp_path, keep=[[0, 5], [3]], labels=[7, 2])
    rows = read_inputs(str(tmp_path), loaded, labels=True).take_all()
    teacher = Teacher(loaded.model, mean=loaded.mean, std=loaded.std)
    expected = teacher.from_uint8(torch.from_numpy(images)).numpy()
    assert rows[0]["pixels"].dtype == np.float32
    np.testing.assert_array_equal([row["pixels"] for row in rows], expected)
    assert [list(row["keep_indices"]) for row in rows] == [[0, 5], [3]]
    assert [row["label"] for row in rows] == [7, 2]
    assert [row["image_id"] for row in rows] == ["00000", "00001"]


def test_real_images_of_any_size_go_through_the_models_transform(tmp_path: Path, loaded: LoadedModel) -> None:
    image = Image.fromarray(random_images(1, 50)[0, :40])
    image.save(tmp_path / "a.png")
    (row,) = read_inputs(str(tmp_path), loaded).take_all()
    np.testing.assert_array_equal(row["pixels"], RealImageTransform(loaded)(image).numpy())
    assert list(row["keep_indices"]) == list(range(16))
    assert row["label"] == -1


def test_folder_maps_by_class_name_else_by_order(tmp_path: Path, loaded: LoadedModel) -> None:
    for folder, names in {"named": ["class j", "class b"], "other": ["wolf", "lynx"]}.items():
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            Image.fromarray(random_images(1, 32)[0]).save(tmp_path / folder / name / "x.png")
    found = {
        folder: {row["image_id"]: row["label"] for row in read_inputs(str(tmp_path / folder), loaded).take_all()}
        for folder in ("named", "other")
    }
    assert found["named"] == {"class b/x.png": 1, "class j/x.png": 9}
    assert found["other"] == {"lynx/x.png": 0, "wolf/x.png": 1}


def test_labelled_parquet_maps_by_class_name(tmp_path: Path, loaded: LoadedModel) -> None:
    file = tmp_path / "x.parquet"
    write_images(str(file), random_images(2, 32), [0, 1], ["class c", "class a"])
    assert [row["label"] for row in read_inputs(str(file), loaded, labels=True).take_all()] == [2, 0]


def test_gray_model_reads_colors_as_gray(tmp_path: Path) -> None:
    model = make_tiny_model(in_chans=1, num_classes=2)
    save_model(model, tmp_path / "m", class_names=["a", "b"], mean=(0.5,), std=(0.5,))
    gray = load_model(ModelConfig(name=f"local-dir:{tmp_path / 'm'}"))
    write_images(str(tmp_path / "x.parquet"), random_images(2, 32), [0, 1], ["a", "b"])
    assert read_inputs(str(tmp_path / "x.parquet"), gray).take(1)[0]["pixels"].shape == (1, 32, 32)


def test_num_patches(loaded: LoadedModel) -> None:
    assert num_patches(loaded) == 16


def test_labels_that_are_needed_and_not_there(tmp_path: Path, loaded: LoadedModel) -> None:
    Image.fromarray(random_images(1, 32)[0]).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="no labels"):
        read_inputs(str(tmp_path), loaded, labels=True)


def test_synthetic_images_of_another_size(tmp_path: Path, loaded: LoadedModel) -> None:
    write_synthetic(tmp_path, side=24, keep=[[0]], labels=[0])
    with pytest.raises(DatasetError, match=r"are 24x24 with 3 channels, model .* reads 32x32 with 3 channels"):
        read_inputs(str(tmp_path), loaded)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"'00000'.*24x24"):
        read_inputs(str(tmp_path / "data"), loaded).take_all()


def test_synthetic_images_on_another_patch_grid(tmp_path: Path, loaded: LoadedModel) -> None:
    write_synthetic(tmp_path, keep=[[0, 16]], labels=[0])
    with pytest.raises(DatasetError, match="keeps patch 16, the model has 16 patches"):
        read_inputs(str(tmp_path), loaded).take_all()


def test_more_classes_than_the_model_has(tmp_path: Path, loaded: LoadedModel) -> None:
    file = str(tmp_path / "x.parquet")
    write_images(file, random_images(1, 32), [10], [str(label) for label in range(11)])
    with pytest.raises(DatasetError, match=r"11 classes, model .* has 10"):
        read_inputs(file, loaded)


def test_class_names_that_are_the_models_only_in_part(tmp_path: Path, loaded: LoadedModel) -> None:
    file = str(tmp_path / "x.parquet")
    write_images(file, random_images(2, 32), [0, 1], ["class b", "zebra"])
    with pytest.raises(DatasetError, match=r"class 'zebra', which model .* lacks, though it has 'class b'"):
        read_inputs(file, loaded)


def test_label_outside_the_classes(tmp_path: Path, loaded: LoadedModel) -> None:
    code = schema.encode_image(random_images(1, 32)[0])
    pq.write_table(pa.table({"image": [code] * 2, "label": [3, 10]}), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match="label 10, there are 10 classes"):
        read_inputs(str(tmp_path), loaded, labels=True).take_all()


def test_withheld_labels_are_unknown(tmp_path: Path, loaded: LoadedModel) -> None:
    code = schema.encode_image(random_images(1, 32)[0])
    table = pa.table({"image": [code] * 3, "label": pa.array([3, None, -1], pa.int64())})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [row["label"] for row in read_inputs(str(tmp_path), loaded).take_all()] == [3, -1, -1]
    with pytest.raises(DatasetError, match="without a label"):
        read_inputs(str(tmp_path), loaded, labels=True).take_all()


def test_labels_that_go_by_number_though_there_are_names_are_told(
    tmp_path: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, names in (("same", NAMES), ("other", list("jihgfedcba"))):
        write_images(str(tmp_path / f"{name}.parquet"), random_images(1, 32), [3], names)
        check_inputs(find_source(str(tmp_path / f"{name}.parquet")), loaded, labels=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: '{tmp_path}/other.parquet' has the classes 'j', ..., model ")
    assert line.endswith("has 'class a', ...: labels go by number")
