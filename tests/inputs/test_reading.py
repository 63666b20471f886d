from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.dataset import read_images, schema, store, write_images
from pipeline.dataset.collection import find_images
from pipeline.dataset.discovery import find_source
from pipeline.errors import DatasetError
from pipeline.inputs import check_inputs, find_labeled, read_inputs
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


def write_folders(folder: Path, names: list[str]) -> str:
    """A folder for each class, with one image."""
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(random_images(1, 32)[0]).save(folder / name / "x.png")
    return str(folder)


def labels_of(uri: str, loaded: LoadedModel, *, labels: bool = True) -> dict[str, int]:
    """The model's label of each class folder."""
    rows = read_inputs(uri, loaded, labels=labels).take_all()
    return {row["image_id"].partition("/")[0]: row["label"] for row in rows}


def with_classes(loaded: LoadedModel, names: list[str]) -> LoadedModel:
    return replace(loaded, class_names=names)


def test_class_folders_map_by_name(tmp_path: Path, loaded: LoadedModel) -> None:
    assert labels_of(write_folders(tmp_path / "a", ["class j", "class b"]), loaded) == {"class b": 1, "class j": 9}
    assert labels_of(write_folders(tmp_path / "b", ["Class_J", "class-b"]), loaded) == {"class-b": 1, "Class_J": 9}


def test_folders_that_are_numbers_are_the_labels_of_a_model_whose_names_are_numbers(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    numbered = with_classes(loaded, [str(label) for label in range(12)])
    uri = write_folders(tmp_path / "some", ["02", "10", "3"])
    assert labels_of(uri, numbered) == {"02": 2, "10": 10, "3": 3}
    with pytest.raises(DatasetError, match=r"has the class '12', which model .* does not have by that name"):
        read_inputs(write_folders(tmp_path / "beyond", ["2", "12"]), numbered, labels=True)


def test_folders_of_other_names_go_by_number_and_the_first_pairs_are_reported(
    tmp_path: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = write_folders(tmp_path / "v", [str(number) for number in range(10)])
    named = with_classes(loaded, list("jihgfedcba"))
    check_inputs(find_images(uri), named, labels=True)
    assert capsys.readouterr().err == (
        f"warning: no class of {uri!r} has the name of one of model {loaded.name!r}: labels go by number: "
        "'0' is 'j', '1' is 'i', '2' is 'h', ...\n"
    )
    assert labels_of(uri, named)["9"] == 9


def test_an_empty_class_folder_counts_and_an_absent_one_is_refused(tmp_path: Path, loaded: LoadedModel) -> None:
    names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    uri = write_folders(tmp_path / "v", [name for name in names if name != "bee"])
    with pytest.raises(
        DatasetError, match=r"has 9 classes, 'ant', 'cat', \.\.\., model .* has 10, .*no name is the same"
    ):
        check_inputs(find_images(uri), loaded, labels=True)
    (tmp_path / "v" / "bee").mkdir()
    assert labels_of(uri, loaded) == {name: label for label, name in enumerate(names) if name != "bee"}


def test_an_order_on_which_torchvision_and_timm_differ_is_refused(tmp_path: Path, loaded: LoadedModel) -> None:
    uri = write_folders(tmp_path / "v", [f"class{number}" for number in range(1, 11)])
    with pytest.raises(DatasetError, match="'class10' and 'class2' are sorted differently by torchvision and by timm"):
        read_inputs(uri, with_classes(loaded, list("abcdefghij")), labels=True)
    assert labels_of(uri, with_classes(loaded, [f"Class {number}" for number in range(1, 11)]))["class10"] == 9


@pytest.mark.parametrize(
    ("names", "own", "reason"),
    [
        (["Cat", "cat", "x"], ["CAT", "dog", "bird"], "class 'Cat', which is no single class of model"),
        (
            ["na", "NA", "q"],
            ["na", "nb", "nc"],
            "class 'NA', which model .* does not have by that name, although it has 'na'",
        ),
        (
            [str(number) for number in range(13) if number != 4],
            list("abcdefghijkl"),
            "'5' would get label 4, 'e' of model .*: a number is missing",
        ),
    ],
)
def test_folders_whose_labels_would_be_guessed_are_refused(
    tmp_path: Path, loaded: LoadedModel, names: list[str], own: list[str], reason: str
) -> None:
    uri = write_folders(tmp_path / "v", names)
    with pytest.raises(DatasetError, match=f"{reason}.*teacher.class_names"):
        find_labeled(uri, with_classes(loaded, own))


def test_names_of_parquet_files_that_are_sorted_as_text_are_refused(tmp_path: Path, loaded: LoadedModel) -> None:
    file = str(tmp_path / "x.parquet")
    write_images(file, random_images(1, 32), [2], ["0", "1", "10", *"23456789"])
    with pytest.raises(DatasetError, match=r"'10' would get label 2, 'c' of model .* sorted as text"):
        find_labeled(file, with_classes(loaded, list("abcdefghijk")))


def test_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "x.parquet")
    write_images(file, random_images(1, 32), [0], ["cat", "cat", "z"])
    with pytest.raises(DatasetError, match="has more than one class named 'cat'"):
        find_source(file)


def test_labels_that_are_not_needed_are_unknown_where_no_class_is_the_models(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    uri = write_folders(tmp_path / "v", ["wolf", "lynx", "class b"])
    assert labels_of(uri, loaded, labels=False) == {"class b": 1, "lynx": -1, "wolf": -1}


def test_another_split_of_a_folder_gives_the_classes_that_this_one_lacks(tmp_path: Path, loaded: LoadedModel) -> None:
    letters = list("abcdefghij")
    write_folders(tmp_path / "train", letters)
    write_folders(tmp_path / "val", ["a", "c"])
    rows = read_inputs(find_source(str(tmp_path), split="validation"), loaded, labels=True).take_all()
    assert {row["image_id"]: row["label"] for row in rows} == {"val/a/x.png": 0, "val/c/x.png": 2}


def test_rotated_photos_are_read_as_hugging_face_datasets_reads_them(tmp_path: Path, loaded: LoadedModel) -> None:
    import datasets

    pixels = random_images(1, 32)[0, :20]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        for suffix in ("png", "jpg", "webp", "tif"):
            Image.fromarray(pixels).save(tmp_path / f"{orientation}.{suffix}", exif=exif)
    ids = [str(path) for path in sorted(tmp_path.iterdir())]
    theirs = datasets.Dataset.from_dict({"image": ids}).cast_column("image", datasets.Image())["image"]
    ours = {row["image_id"]: row["image"] for row in read_images(str(tmp_path)).take_all()}
    inputs = {row["image_id"]: row["pixels"] for row in read_inputs(str(tmp_path), loaded).take_all()}
    for path, image in zip(ids, theirs, strict=True):
        np.testing.assert_array_equal(ours[Path(path).name], np.asarray(image))
        np.testing.assert_array_equal(inputs[Path(path).name], RealImageTransform(loaded)(image).numpy())
    assert ours["6.png"].shape == (32, 20, 3)


def test_labeled_parquet_maps_by_class_name(tmp_path: Path, loaded: LoadedModel) -> None:
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
    with pytest.raises(DatasetError, match=r"has 11 classes, .*, model .* has 10"):
        read_inputs(file, loaded, labels=True)


def test_class_names_that_are_the_models_only_in_part(tmp_path: Path, loaded: LoadedModel) -> None:
    file = str(tmp_path / "x.parquet")
    write_images(file, random_images(2, 32), [0, 1], ["class b", "zebra"])
    with pytest.raises(
        DatasetError, match=r"class 'zebra', which model .* does not have by that name, although it has"
    ):
        read_inputs(file, loaded, labels=True)


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


def test_class_names_in_parquet_that_are_the_models_in_another_order_are_not_warned_about(
    tmp_path: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "x.parquet")
    write_images(file, random_images(1, 32), [3], NAMES[::-1])
    check_inputs(find_images(file), loaded, labels=True)
    assert capsys.readouterr().err == ""
    assert read_inputs(file, loaded, labels=True).take_all()[0]["label"] == 6


def test_labels_of_several_datasets_map_each_by_its_own_names(tmp_path: Path, loaded: LoadedModel) -> None:
    one = write_folders(tmp_path / "one", ["class b", "class a"])
    two = write_folders(tmp_path / "two", ["class j", "class b"])
    rows = read_inputs([one, two], loaded, labels=True).take_all()
    assert [row["label"] for row in rows] == [0, 1, 1, 9]
    assert len({row["image_id"] for row in rows}) == 4


def test_two_datasets_in_one_folder_are_refused_before_any_image_is_read(tmp_path: Path, loaded: LoadedModel) -> None:
    codes = [schema.encode_image(image) for image in random_images(2, 32)]
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": codes, "image_id": ["0", "1"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DatasetError, match=r"more than one image with the image_id '0': .* in a list"):
        check_inputs(find_images(str(tmp_path)), loaded)
    both = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    with pytest.raises(DatasetError, match="are the same dataset"):
        find_images(both)


def test_images_that_are_scored_may_share_an_id_and_this_is_said(
    tmp_path: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [schema.encode_image(image) for image in random_images(2, 32)]
    pq.write_table(pa.table({"image": codes, "label": [0, 1], "image_id": ["0", "0"]}), tmp_path / "a.parquet")
    assert find_labeled(str(tmp_path), loaded).num_rows == 2
    assert "more than one image with the image_id '0': each of them is scored" in capsys.readouterr().err
