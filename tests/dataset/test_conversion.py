"""Labels and kept patches as a model reads them, without a cluster."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import schema
from pipeline.dataset.collection import find_images
from pipeline.dataset.discovery import find_source
from pipeline.dataset.rows import read_columns
from pipeline.errors import DatasetError
from pipeline.inputs import check_inputs, conversion, find_labeled
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.quantization.reading import read_patch_counts
from tests.inputs.test_reading import random_images, write_synthetic


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


def test_numbers_that_are_no_class_are_unknown_where_labels_are_not_needed(tmp_path: Path, loaded: LoadedModel) -> None:
    code = schema.encode_image(random_images(1, 32)[0])
    pq.write_table(pa.table({"image": [code] * 3, "label": [3, 500, -7]}), tmp_path / "x.parquet")
    images = find_images(str(tmp_path))
    with pytest.raises(DatasetError, match="label 500, there are 10 classes"):
        check_inputs(images, loaded, labels=True)
    check_inputs(images, loaded)
    (table,) = read_columns(images.sources[0], "label")
    assert conversion(images.sources[0], loaded, labels=False).labels(table).to_pylist() == [3, -1, -1]


@pytest.mark.parametrize("label", [["ant", "bee"], [[1], [2, 3]]], ids=["texts", "lists"])
def test_labels_that_are_no_numbers_are_not_read_and_this_is_said(
    tmp_path: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str], label: list[Any]
) -> None:
    code = schema.encode_image(random_images(1, 32)[0])
    pq.write_table(pa.table({"image": [code] * 2, "label": label}), tmp_path / "x.parquet")
    images = find_images(str(tmp_path))
    assert re.search(
        r": its column 'label' \((string|list<.*>)\) holds no numbers, and is not read\n$", capsys.readouterr().err
    )
    check_inputs(images, loaded)
    with pytest.raises(DatasetError, match=r"has no labels: .*; if its column 'label' \(.*\) holds them, write it as"):
        check_inputs(images, loaded, labels=True)


def set_grid(folder: Path, grid: int) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "grid_size": grid}))


def test_a_smaller_grid_all_of_whose_numbers_the_models_has_is_refused_where_patches_are_read(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    write_synthetic(tmp_path, keep=[[0, 3]], labels=[0])
    set_grid(tmp_path, 2)
    images = find_images(str(tmp_path))
    with pytest.raises(DatasetError, match=r"keep patches of a 2x2 grid, model '.*' has 4x4"):
        check_inputs(images, loaded)
    with pytest.raises(DatasetError, match=r"keep patches of a 2x2 grid, model '.*' has 4x4"):
        find_labeled(str(tmp_path), loaded, reads_kept=True)
    # To score, whole images are read.
    assert find_labeled(str(tmp_path), loaded).num_rows == 1
    check_inputs(images, loaded, reads_kept=False)
    set_grid(tmp_path, 4)
    check_inputs(find_images(str(tmp_path)), loaded)


def write_kept(folder: Path, keep: list[list[int | None] | None]) -> str:
    """Images with a column of kept patches that no synthesis wrote."""
    codes = [schema.encode_image(image) for image in random_images(len(keep), 32)]
    kept = pa.array(keep, pa.list_(pa.int16()))
    ids = [f"image {row}" for row in range(len(keep))]
    pq.write_table(pa.table({"image": codes, "keep_indices": kept, "image_id": ids}), folder / "x.parquet")
    return str(folder)


def test_an_image_that_does_not_say_which_patches_it_keeps_keeps_all(tmp_path: Path, loaded: LoadedModel) -> None:
    uri = write_kept(tmp_path, [[3], None])
    check_inputs(find_images(uri), loaded)
    table = next(read_columns(find_source(uri), "image_id", "keep_indices"))
    convert = conversion(find_source(uri), loaded, labels=False)
    assert convert.keep_indices(table).to_pylist() == [[3], list(range(16))]
    assert read_patch_counts(find_images(uri), loaded, dense=False) == [("image 0", 1), ("image 1", 16)]


@pytest.mark.parametrize(
    ("kept", "keeps"),
    [
        ([2, None], "a patch without a number"),
        ([2, -1], "patch -1, which is no number"),
        ([], "no patch"),
        ([2, 16], "patch 16, the model has 16"),
    ],
)
def test_patches_that_are_none_are_refused_before_the_work_starts(
    tmp_path: Path, loaded: LoadedModel, kept: list[int | None], keeps: str
) -> None:
    images = find_images(write_kept(tmp_path, [[3], kept]))
    with pytest.raises(DatasetError, match=f"image 'image 1' of '.*' keeps {keeps}"):
        check_inputs(images, loaded)
    if keeps.startswith(("no patch", "patch 16")):
        # A model that reads whole images does not ask for them.
        check_inputs(images, loaded, reads_kept=False)
