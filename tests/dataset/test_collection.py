import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dataset import read_images, schema
from pipeline.dataset.collection import find_images, image_facts, source_facts
from pipeline.dataset.discovery import find_source
from pipeline.dataset.rows import read_unit, repeated_id
from pipeline.errors import DatasetError
from tests.dataset.test_reader import write_synthetic

PIXELS = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


def write_file(uri: Path, ids: list[str], start: int = 0) -> str:
    codes = [schema.encode_image(PIXELS + start + row) for row in range(len(ids))]
    pq.write_table(pa.table({"image": codes, "image_id": ids}), uri)
    return str(uri)


def write_folder(folder: Path, color: int, classes: tuple[str, ...] = ("ant", "bee")) -> str:
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (color, color, color)).save(folder / name / "0.bmp")
    return str(folder)


def read_ids(uris: list[str]) -> list[str]:
    images = find_images(uris)
    tables = [table for number, unit in images.units for table in read_unit(images.sources[number], unit, ["image_id"])]
    return pa.concat_tables(tables)["image_id"].to_pylist()


def test_ids_of_several_datasets_differ_and_stay_where_they_are_moved(tmp_path: Path) -> None:
    one = str(write_synthetic(tmp_path / "one"))
    two = write_file(tmp_path / "two.parquet", ["00000", "00001"])
    ids = read_ids([one, two])
    assert [name.split("/")[1] for name in ids] == [*(f"{row:05d}" for row in range(10)), "00000", "00001"]
    assert len(set(ids)) == 12
    assert {name.split("/")[0] for name in ids[:10]} == {"01234567"}  # the dataset's digest
    os.rename(one, tmp_path / "moved")
    os.rename(two, tmp_path / "moved.parquet")
    moved = [str(tmp_path / "moved"), str(tmp_path / "moved.parquet")]
    assert read_ids(moved) == ids
    assert read_ids([moved[1]]) == ["00000", "00001"]


@pytest.mark.usefixtures("ray_session")
def test_several_datasets_are_read_with_the_columns_they_share(tmp_path: Path) -> None:
    one, two = write_folder(tmp_path / "one", 10), write_folder(tmp_path / "two", 20)
    rows = read_images([one, two, str(write_synthetic(tmp_path / "made"))], columns=["image", "image_id"]).take_all()
    # In any order: Ray Data hands rows over as its tasks end.
    photos = [row["image"] for row in rows if "ant" in row["image_id"] or "bee" in row["image_id"]]
    assert sorted(int(image[0, 0, 0]) for image in photos) == [10, 10, 20, 20]
    assert len(rows) == 14
    with pytest.raises(DatasetError, match=r"two' has no column 'keep_indices'"):
        read_images([str(tmp_path / "made"), two], columns=["keep_indices"])


@pytest.mark.usefixtures("ray_session")
def test_labels_that_mean_other_classes_are_not_mixed(tmp_path: Path) -> None:
    one, same = write_folder(tmp_path / "one", 10), write_folder(tmp_path / "same", 20)
    other = write_folder(tmp_path / "other", 30, ("bee", "cat"))
    assert sorted(row["label"] for row in read_images([one, same]).take_all()) == [0, 0, 1, 1]
    with pytest.raises(DatasetError, match="have different classes, so their labels cannot be read together"):
        read_images([one, other])
    assert read_images([one, other], columns=["image"]).count() == 4


def test_one_dataset_twice_is_refused(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", 10)
    shutil.copytree(one, tmp_path / "copy")
    for uris in ([one, one], [one, str(tmp_path / "copy")]):
        with pytest.raises(DatasetError, match="are the same dataset: read it once"):
            find_images(uris)
    # Equal names and sizes, other pixels.
    assert find_images([one, write_folder(tmp_path / "two", 20)]).num_rows == 4
    with pytest.raises(DatasetError, match="images is an empty list"):
        find_images([])


def test_a_split_is_chosen_in_each_dataset_that_is_not_synthetic(tmp_path: Path) -> None:
    for split, color in (("train", 10), ("test", 20)):
        write_folder(tmp_path / "real" / split, color)
    uris = [str(tmp_path / "real"), str(write_synthetic(tmp_path / "made"))]
    assert find_images(uris, split="train").num_rows == 12
    with pytest.raises(DatasetError, match="has the splits 'test', 'train'"):
        find_images(uris)


def test_ids_that_repeat_within_a_dataset_are_found(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", ["x", "y"])
    write_file(tmp_path / "b.parquet", ["y", "z"])
    assert repeated_id(find_source(str(tmp_path))) == "y"
    assert repeated_id(find_source(str(tmp_path / "a.parquet"))) is None
    assert repeated_id(find_source(write_folder(tmp_path / "images", 1))) is None


def test_facts_of_one_dataset_in_a_list_are_those_of_the_dataset(tmp_path: Path) -> None:
    one, two = write_folder(tmp_path / "one", 10), write_folder(tmp_path / "two", 20, ("ant", "bee", "cat"))
    assert image_facts(find_images([one])) == source_facts(find_source(one))
    both = image_facts(find_images([one, two]))
    assert both["num_images"] == 5
    assert both != image_facts(find_images([two, one]))
