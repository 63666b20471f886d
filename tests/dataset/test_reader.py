import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.dataset import read_images, schema, store, write_images
from pipeline.dataset import rows as row_reader
from pipeline.dataset.damage import damaged_parts
from pipeline.dataset.discovery import find_source
from pipeline.dataset.own_card import write_card
from pipeline.errors import DatasetError
from tests.conftest import make_manifest

DIGEST = "0123456789abcdef" * 4
NAMES = ["zero", "one", "two"]
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
LABELS = [row % 3 for row in range(10)]

pytestmark = pytest.mark.usefixtures("ray_session")


def write_synthetic(
    folder: Path, *, shards: int = 2, side: int = 8, channels: int = 3, names: list[str] = NAMES, version: int = 2
) -> Path:
    """Write a dataset of 5 images a shard, as synthesis leaves it."""
    images = IMAGES[:, :side, :side, :channels]
    for shard_id in range(shards):
        rows = range(shard_id * 5, shard_id * 5 + 5)
        ids = [f"{row:05d}" for row in rows]
        columns = {
            "image": schema.image_column([images[row] for row in rows], ids),
            "label": [LABELS[row] for row in rows],
            "keep_indices": [[0, 2] if row % 2 else [1] for row in rows],
            "image_id": ids,
            "shard_id": [shard_id] * 5,
            "class_loss": [0.5] * 5,
            "teacher_confidence": [0.25] * 5,
            "teacher_prediction": [1] * 5,
        }
        facts = {"digest": DIGEST, "shard_id": str(shard_id)}
        part = schema.part_schema(names, shard_id, metadata=facts, version=version)
        store.write_part(str(folder), shard_id, DIGEST, schema.to_parquet(pa.table(columns, schema=part)))
    manifest = make_manifest(
        DIGEST, class_names=names, image_size=[channels, side, side], num_shards=shards, schema_version=version
    )
    store.write_manifest(str(folder), manifest)
    write_card(str(folder), manifest)
    return folder


def write_folder(folder: Path, suffix: str = "png") -> Path:
    for row, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        # Real images have sizes of their own.
        Image.fromarray(pixels[: 4 + row % 3]).save(folder / NAMES[label] / f"{row}.{suffix}")
    return folder


def rows_of(uri: Path | str, **options: object) -> list[dict]:
    return sorted(read_images(str(uri), **options).take_all(), key=lambda row: row["image_id"])  # type: ignore[arg-type]


def test_synthetic_dataset_comes_back(tmp_path: Path) -> None:
    rows = rows_of(write_synthetic(tmp_path))
    assert [row["image_id"] for row in rows] == [f"{row:05d}" for row in range(10)]
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(row["image"], IMAGES[index])
        assert row["label"] == LABELS[index]
        assert list(row["keep_indices"]) == ([0, 2] if index % 2 else [1])
        assert row["shard_id"] == index // 5
        assert set(row) == set(schema.COLUMNS)


def test_columns_and_encoded_images(tmp_path: Path) -> None:
    rows = read_images(str(write_synthetic(tmp_path)), columns=["image", "label"], decode=False).take_all()
    assert set(rows[0]) == {"image", "label"}
    assert rows[0]["image"].startswith(b"\x89PNG")
    only_labels = read_images(str(tmp_path), columns=["label"])
    assert only_labels.count() == 10
    assert set(only_labels.take(1)[0]) == {"label"}


def test_gray_images_have_one_channel(tmp_path: Path) -> None:
    file = tmp_path / "gray.parquet"
    write_images(str(file), IMAGES[:, :, :, :1], LABELS, NAMES)
    assert rows_of(file)[3]["image"].shape == (8, 8, 1)


def test_any_parquet_with_an_image_column(tmp_path: Path) -> None:
    codes = [schema.encode_image(image) for image in IMAGES]
    for part in range(2):
        rows = slice(part * 5, part * 5 + 5)
        table = pa.table({"image": codes[rows], "label": pa.array(LABELS[rows], pa.int8()), "note": ["n"] * 5})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=3)
    rows = rows_of(tmp_path)
    assert [row["image_id"] for row in rows[4:6]] == ["0-00000004", "1-00000000"]
    np.testing.assert_array_equal([row["image"] for row in rows], IMAGES)
    assert "note" not in rows[0]
    assert read_images(str(tmp_path), columns=["note", "label"]).take(1)[0].keys() == {"note", "label"}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_image_folder(tmp_path: Path, suffix: str) -> None:
    rows = rows_of(write_folder(tmp_path, suffix))
    assert len(rows) == 10
    for row in rows:
        # Labels by sorted order of the subfolders: one, two, zero.
        name, number = row["image_id"].removesuffix(f".{suffix}").split("/")
        assert row["label"] == sorted(NAMES).index(name)
        assert row["image"].shape == (4 + int(number) % 3, 8, 3)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    (row,) = rows_of(tmp_path)
    assert set(row) == {"image", "image_id"}


def test_as_many_blocks_as_asked_for_with_every_row_once(tmp_path: Path) -> None:
    file = tmp_path / "one.parquet"
    write_images(str(file), IMAGES, LABELS, NAMES)
    for count in (1, 3, 10):
        dataset = read_images(str(file), override_num_blocks=count).materialize()
        assert dataset.num_blocks() == count
        assert sorted(row["image_id"] for row in dataset.take_all()) == [f"{row:06d}" for row in range(10)]


def test_a_large_row_group_is_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "one.parquet"
    write_images(str(file), IMAGES, LABELS, NAMES)
    monkeypatch.setattr("pipeline.dataset.units.MOST_BYTES_IN_PIECES", 100)
    dataset = read_images(str(file), override_num_blocks=3).materialize()
    assert dataset.num_blocks() == 1
    assert sorted(row["image_id"] for row in dataset.take_all()) == [f"{row:06d}" for row in range(10)]


def test_counting_reads_no_image(tmp_path: Path) -> None:
    assert find_source(str(write_synthetic(tmp_path))).num_rows == 10
    assert read_images(str(tmp_path)).count() == 10


def _truncate(folder: Path) -> str:
    part = sorted((write_synthetic(folder) / "data").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-40])
    return part.name


def _foreign_part(folder: Path) -> str:
    part = sorted((write_synthetic(folder) / "data").iterdir())[1]
    pq.write_table(pa.table({"price": [1.0]}), part)
    return part.name


def _foreign_file(folder: Path) -> str:
    pq.write_table(pa.table({"price": [1.0]}), folder / "prices.parquet")
    return r"prices\.parquet.*no column `image`"


def _text_images(folder: Path) -> str:
    pq.write_table(pa.table({"image": ["a.png"]}), folder / "paths.parquet")
    return r"paths\.parquet.*it is string"


def _mixed(folder: Path) -> str:
    pq.write_table(pa.table({"image": [b""], "label": [1]}), folder / "0.parquet")
    pq.write_table(pa.table({"image": [b""]}), folder / "1.parquet")
    return r"1\.parquet.*other columns than.*0\.parquet"


def _no_rows(folder: Path) -> str:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "0.parquet")
    return "no rows"


def _nothing(folder: Path) -> str:
    (folder / "notes.txt").touch()
    return "neither Parquet files nor images"


def _too_deep(folder: Path) -> str:
    (folder / "a" / "b").mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(folder / "a" / "b" / "x.png")
    return "deeper"


def _stray(folder: Path) -> str:
    Image.fromarray(IMAGES[0]).save(write_folder(folder) / "stray.png")
    return r"stray\.png"


def _no_parts(folder: Path) -> str:
    store.write_manifest(str(folder), make_manifest(DIGEST))
    return "no parts"


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate,
        _foreign_part,
        _foreign_file,
        _text_images,
        _mixed,
        _no_rows,
        _nothing,
        _too_deep,
        _stray,
        _no_parts,
    ],
)
def test_bad_input_is_named_before_any_work(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    with pytest.raises(DatasetError, match=spoil(tmp_path)):
        read_images(str(tmp_path))


def test_missing_dataset_and_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        read_images(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="no column 'price'"):
        read_images(str(write_synthetic(tmp_path)), columns=["price"])
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b""]}), file)
    with pytest.raises(DatasetError, match="no column 'label'"):
        read_images(str(file), columns=["label"])


def test_parquet_written_by_hugging_face(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [Image.fromarray(image) for image in IMAGES], "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hf.parquet"))
    np.testing.assert_array_equal([row["image"] for row in rows_of(tmp_path)], IMAGES)
    assert find_source(str(tmp_path)).class_names == NAMES


def test_hugging_face_metadata_is_what_that_library_writes() -> None:
    import datasets

    marks = json.loads(schema.arrow_schema(NAMES).metadata[b"huggingface"])
    features = datasets.Features.from_dict(marks["info"]["features"])
    assert features.arrow_schema.types == schema.arrow_schema(NAMES).types


def test_a_decoded_image_that_is_broken_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"broken"], "image_id": ["bad-one"]}), buffer)
    (tmp_path / "x.parquet").write_bytes(buffer.getvalue())
    with pytest.raises(DatasetError, match="bad-one"):
        read_images(str(tmp_path)).take_all()


def test_gray_and_color_images_of_one_size_are_read_together(tmp_path: Path) -> None:
    """numpy cannot make one array of [8, 8, 3] and [8, 8, 1], and neither could Ray's column of tensors."""
    for row, pixels in enumerate(IMAGES):
        Image.fromarray(pixels if row % 2 else pixels[:, :, 0]).save(tmp_path / f"{row}.png")
    rows = rows_of(tmp_path)
    assert [row["image"].shape for row in rows] == [(8, 8, 3 if row % 2 else 1) for row in range(10)]
    shuffled = read_images(str(tmp_path), override_num_blocks=5).random_shuffle(seed=0).take_all()
    assert sorted(row["image_id"] for row in shuffled) == [row["image_id"] for row in rows]


def test_rows_without_an_id_of_their_own_get_one(tmp_path: Path) -> None:
    codes = [schema.encode_image(image) for image in IMAGES[:3]]
    pq.write_table(pa.table({"image": codes, "image_id": ["a", None, "c"]}), tmp_path / "x.parquet")
    assert [row["image_id"] for row in rows_of(tmp_path)] == ["a", "c", "x-00000001"]


def test_row_groups_are_read_in_pieces_of_few_large_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow reads a row group beyond 2 GB only in pieces; each is decoded before the next is read."""
    monkeypatch.setattr(row_reader, "_BYTES_AT_ONCE", 500)
    codes = [schema.encode_image(image) for image in IMAGES]
    pq.write_table(pa.table({"image": codes, "label": LABELS}), tmp_path / "x.parquet")
    source = find_source(str(tmp_path))
    units = [part for unit in source.units for part in unit.split(3)]
    tables = [table for unit in units for table in row_reader.read_unit(source, unit)]
    assert max(map(len, tables)) <= 2
    together = pa.concat_tables(tables)
    assert together["image"].to_pylist() == codes
    assert together["image_id"].to_pylist() == [f"x-{row:08d}" for row in range(10)]
    assert pa.concat_tables(row_reader.read_columns(source, "label"))["label"].to_pylist() == LABELS


def test_images_that_are_paths_alone_are_named_by_row(tmp_path: Path) -> None:
    rows = [{"bytes": schema.encode_image(IMAGES[0]), "path": None}, {"bytes": None, "path": "far/a.png"}]
    table = pa.table({"image": pa.array(rows, schema.IMAGE)})
    pq.write_table(table, tmp_path / "x.parquet", write_statistics=False)
    source = find_source(str(tmp_path))
    with pytest.raises(DatasetError, match=r"x\.parquet' has no bytes of the image in row 1: only .*far/a\.png"):
        list(row_reader.read_unit(source, source.units[0]))


MANY = [f"class {number}" for number in range(2000)]


@pytest.mark.parametrize("version", [1, 2])
def test_class_names_of_a_dataset_of_many_classes(tmp_path: Path, version: int) -> None:
    write_synthetic(tmp_path, shards=2, names=MANY, version=version)
    sizes = [part.stat().st_size for part in sorted((tmp_path / "data").iterdir())]
    assert (max(sizes) < 2 * min(sizes)) == (version == 1)
    assert find_source(str(tmp_path)).class_names == MANY
    assert find_source(str(tmp_path / "data")).class_names == MANY
    assert damaged_parts(str(tmp_path), DIGEST, [0, 1]) == {}
    assert len(rows_of(tmp_path)) == 10


def test_parts_without_names_have_those_of_the_manifest_beside_them_or_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic(tmp_path, names=MANY)
    (tmp_path / "data" / store.part_name(0, DIGEST)).unlink()
    assert find_source(str(tmp_path / "data")).class_names == MANY
    assert capsys.readouterr().err == ""
    (tmp_path / "manifest.json").unlink()
    assert find_source(str(tmp_path / "data")).class_names is None
    assert "but not the manifest.json with their class names: labels go by number" in capsys.readouterr().err


def test_parts_of_two_sets_of_classes_in_one_folder_are_refused(tmp_path: Path) -> None:
    """Though neither of the two files holds the names themselves."""
    for name, names in (("a", MANY), ("b", MANY[::-1])):
        part = write_synthetic(tmp_path / name, names=names) / "data" / store.part_name(1, DIGEST)
        (tmp_path / "both").mkdir(exist_ok=True)
        part.rename(tmp_path / "both" / f"{name}.parquet")
    with pytest.raises(DatasetError, match=r"b\.parquet' has other class names than .*a\.parquet"):
        find_source(str(tmp_path / "both"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("names", "first"), [(NAMES, True), (NAMES, False), (MANY, True), (MANY, False)])
def test_hugging_face_finds_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], first: bool, streaming: bool
) -> None:
    """Names are found from the dataset's folder always, from its data if the first part is there or names are few."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    write_synthetic(tmp_path / "out", shards=2, names=names)
    if not first:
        (tmp_path / "out" / "data" / store.part_name(0, DIGEST)).unlink()
    places = ["out", "out/data"] if first or names is NAMES else ["out"]
    for place in places:
        loaded = datasets.load_dataset(
            str(tmp_path / place), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
        )
        rows = list(loaded)
        assert loaded.features is not None
        assert loaded.features["label"].names == names
        assert len(rows) == (10 if first else 5)
        assert rows[-1]["label"] == LABELS[9]
        np.testing.assert_array_equal(np.asarray(rows[-1]["image"]), IMAGES[9])


def test_a_readme_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    write_synthetic(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (write_synthetic(tmp_path / "old", version=1) / "README.md").exists()


def test_image_files_are_read_side_by_side_and_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for number in range(8):
        (tmp_path / "a" / f"{number}.png").write_bytes(schema.encode_image(np.full((4, 4, 1), number, np.uint8)))
    source, read = find_source(str(tmp_path)), storage.read_bytes
    together = threading.Barrier(8)

    def read_together(uri: str) -> bytes:
        together.wait(30)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", read_together)
    (table,) = row_reader.read_unit(source, source.units[0])
    assert table["image_id"].to_pylist() == [f"a/{number}.png" for number in range(8)]
    values = [schema.decode_image(code, "x")[0, 0, 0] for code in table["image"].to_pylist()]
    assert values == list(range(8))
