"""Calibration images: planned by their ids, and decoded few at a time in the process that observes them."""

from pathlib import Path

import pytest

from pipeline.dataset.collection import ImageCollection, find_images
from pipeline.dataset.conversion import Convert
from pipeline.errors import DatasetError
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.quantization.batches import plan_windows
from pipeline.quantization.reading import iterate_inputs, read_patch_counts
from tests.dataset.test_collection import write_folder
from tests.distillation.conftest import kept_patches, write_ragged


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


def test_an_index_names_images_and_counts_patches_without_reading_them(tmp_path: Path, loaded: LoadedModel) -> None:
    ids = write_ragged(tmp_path / "images.parquet", 7)
    content = (tmp_path / "images.parquet").read_bytes()
    (tmp_path / "images.parquet").write_bytes(content.replace(b"IHDR", b"XHDR"))
    images = find_images(str(tmp_path))
    sizes = [len(kept_patches(row)) for row in range(7)]
    assert read_patch_counts(images, loaded, dense=False) == list(zip(ids, sizes, strict=True))
    assert read_patch_counts(images, loaded, dense=True) == [(image_id, 16) for image_id in ids]
    with pytest.raises(DatasetError, match="images-00000"):
        next(iterate_inputs(images, loaded, ids))


def test_images_in_folders_are_indexed_by_name(tmp_path: Path, loaded: LoadedModel) -> None:
    images = find_images(write_folder(tmp_path / "images", 10))
    assert read_patch_counts(images, loaded, dense=False) == [("ant/0.bmp", 16), ("bee/0.bmp", 16)]
    assert [row["image_id"] for row in iterate_inputs(images, loaded, ["bee/0.bmp"])] == ["bee/0.bmp"]


@pytest.mark.parametrize("rows", [[0], [3, 4], [0, 22], [4, 5, 6, 21], list(range(23))])
def test_a_selection_holds_its_rows_and_few_others(tmp_path: Path, loaded: LoadedModel, rows: list[int]) -> None:
    write_ragged(tmp_path / "images.parquet", 23)
    selected = find_images(str(tmp_path)).select(rows)
    ids = [image_id for image_id, _ in read_patch_counts(selected, loaded, dense=True)]
    assert {f"images-{row:05d}" for row in rows} <= set(ids)
    # Of each row group, of 5 rows, at most what lies between the first and the last.
    assert len(selected.units) == len({row // 5 for row in rows})
    assert selected.num_rows == sum(
        max(of_group) - min(of_group) + 1
        for of_group in ([row for row in rows if row // 5 == group] for group in range(5))
        if of_group
    )


def test_no_more_images_are_decoded_at_a_time_than_a_window_and_a_piece_of_a_file(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = write_ragged(tmp_path / "images.parquet", 23)
    decoded: list[int] = []
    decode = Convert.pixels
    monkeypatch.setattr(Convert, "pixels", lambda self, table: decoded.append(len(table)) or decode(self, table))
    rows = iterate_inputs(find_images(str(tmp_path)), loaded, ids[3:9])
    assert next(rows)["image_id"] == ids[3]
    assert decoded == [2]
    assert [row["image_id"] for row in rows] == ids[4:9]
    assert decoded == [2, 4]


def test_several_datasets_are_calibrated_on_together(tmp_path: Path, loaded: LoadedModel) -> None:
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        write_ragged(tmp_path / name / "images.parquet", count)
    images: ImageCollection = find_images([str(tmp_path / "a"), str(tmp_path / "b")])
    index = read_patch_counts(images, loaded, dense=False)
    windows = plan_windows(index, 2, None, seed=0)
    assert [window.rows for window in windows] == [[0, 1], [2, 3], [4]]
    read = [row["image_id"] for row in iterate_inputs(images, loaded, [image_id for image_id, _ in index])]
    assert read == [image_id for image_id, _ in index]
    assert len(set(read)) == 5
