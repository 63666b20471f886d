import errno
import json
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.dataset import store, write_images
from pipeline.dataset.part_files import list_part_files, merged_name, parse_part_name
from pipeline.errors import DatasetError
from tests.conftest import make_manifest

DIGEST = "0123456789abcdef" * 4


def test_part_names() -> None:
    assert store.part_name(7, DIGEST) == "part-00007-01234567.parquet"
    assert parse_part_name("part-00007-01234567.parquet") == (range(7, 8), "01234567")
    assert parse_part_name(store.part_name(123456, DIGEST)) == (range(123456, 123457), "01234567")
    for name in ("part-7-01234567.parquet", ".part-00007-01234567.parquet.ab.tmp", "x.parquet"):
        assert parse_part_name(name) is None


def test_the_name_of_a_merged_file_says_which_shards_it_holds() -> None:
    assert merged_name(range(7, 12), DIGEST) == "part-00007-00011-01234567.parquet"
    assert parse_part_name("part-00007-00011-01234567.parquet") == (range(7, 12), "01234567")
    assert merged_name(range(7, 8), DIGEST) == store.part_name(7, DIGEST)
    for name in ("part-00007-00007-01234567.parquet", "part-00011-00007-01234567.parquet"):
        assert parse_part_name(name) is None


def test_merged_files_are_listed_with_the_shards_of_their_names(tmp_path: Path) -> None:
    output, content = str(tmp_path), b"x" * 500
    for shard_ids in (range(3, 5), range(2, 3), range(0, 2)):
        storage.write_bytes(f"{output}/data/{merged_name(shard_ids, DIGEST)}", content)
    assert [file.shard_ids for file in list_part_files(output, DIGEST)] == [range(0, 2), range(2, 3), range(3, 5)]
    assert store.list_parts(output, DIGEST) == dict.fromkeys(range(5), 500)
    store.write_part(output, 4, DIGEST, content)
    with pytest.raises(DatasetError, match=r"holds shard 4 twice: delete 'part-00003-00004.*' or 'part-00004-0"):
        list_part_files(output, DIGEST)


def test_a_name_that_states_more_parts_than_the_file_has_room_for_is_refused(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/data/{merged_name(range(10**11), DIGEST)}", b"x" * 500)
    with pytest.raises(DatasetError, match="states 100000000000 parts in 500 bytes"):
        list_part_files(str(tmp_path), DIGEST)


def test_progress_of_files(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert store.read_progress(output, 4, DIGEST) == store.Progress({}, {}, [0, 1, 2, 3])
    store.write_failure(output, 1, {"error": "NonFiniteError", "reason": "tv_l2 is not finite"})
    store.write_failure(output, 2, {"error": "OSError", "reason": "disk full"})
    store.write_part(output, 0, DIGEST, b"part")
    store.write_part(output, 2, DIGEST, b"part")
    progress = store.read_progress(output, 4, DIGEST)
    assert progress.done == [0, 2]
    assert progress.failed == {1: {"shard_id": 1, "error": "NonFiniteError", "reason": "tv_l2 is not finite"}}
    assert progress.missing == [3]
    assert not progress.complete
    assert store.failed_shards(output) == [1]  # a part strikes its shard off the failures


def test_nothing_but_parts_lies_under_data_even_during_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    replace = Path.replace

    def looked_at(self: Path, target: Path) -> Path:
        seen.append([str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()])
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", looked_at)
    store.write_part(str(tmp_path), 0, DIGEST, b"part")
    assert [name.startswith(".tmp/") for name in seen[0]] == [True]
    assert seen[0]
    (tmp_path / seen[0][0]).write_bytes(b"half, of a process that was killed")
    store.clear_temporaries(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_only_temporary_files_of_our_writes_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".tmp" / "photos").mkdir(parents=True)
    for name in ("notes.tmp", ".notes.tmp", "photos/.a.01234567.tmp"):
        (tmp_path / ".tmp" / name).write_bytes(b"mine")
    (tmp_path / ".tmp" / ".part-0.parquet.01234567.tmp").write_bytes(b"half")
    store.clear_temporaries(str(tmp_path))
    left = [str(path.relative_to(tmp_path / ".tmp")) for path in (tmp_path / ".tmp").rglob("*") if path.is_file()]
    assert sorted(left) == [".notes.tmp", "notes.tmp", "photos/.a.01234567.tmp"]


@pytest.mark.parametrize("name", ["notes.txt", "part-00001-ffffffff.parquet", "part-00009-01234567.parquet"])
def test_foreign_files_under_data_are_named(tmp_path: Path, name: str) -> None:
    store.write_part(str(tmp_path), 0, DIGEST, b"part")
    (tmp_path / "data" / name).write_bytes(b"")
    with pytest.raises(DatasetError, match=name):
        store.read_progress(str(tmp_path), 4, DIGEST)


@pytest.mark.parametrize("content", ["no json", "[]", "{}", json.dumps({"digest": "d", "schema_version": 99})])
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        store.read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["digest", "num_shards", "num_images", "class_names", "image_size", "teacher", "teacher.weights_sha256"]
)
@pytest.mark.parametrize("value", [None, 1.5])
def test_a_manifest_that_lacks_something_is_refused_by_name(tmp_path: Path, name: str, value: float | None) -> None:
    manifest: dict[str, Any] = make_manifest(DIGEST)
    holder, key = (manifest["teacher"], name.partition(".")[2]) if "." in name else (manifest, name)
    del holder[key]
    if value is not None:
        holder[key] = value
    store.write_manifest(str(tmp_path), manifest)
    with pytest.raises(DatasetError, match=f"manifest.json' .*'{name}'"):
        store.read_manifest(str(tmp_path))


def test_storage_at_any_scheme() -> None:
    store.write_part("memory://there", 3, DIGEST, b"part")
    store.write_failure("memory://there", 1, {"reason": "r"})
    progress = store.read_progress("memory://there", 4, DIGEST)
    assert (progress.done, sorted(progress.failed), progress.missing) == ([3], [1], [0, 2])
    assert storage.find_files("memory://there") == [
        ("data/part-00003-01234567.parquet", 4),
        ("failed/shard-00001.json", 37),
    ]


def labeled(folder: Path, channels: int = 3) -> tuple[Path, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
    file = folder / "images.parquet"
    write_images(str(file), images, [2, 1, 0, 1, 2], ["zero", "one", "two"], row_group_size=2)
    return file, images


def test_write_images_for_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    file, images = labeled(tmp_path, channels=1)
    loaded = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features["image"] == datasets.Image()
    assert loaded.features["label"].names == ["zero", "one", "two"]
    np.testing.assert_array_equal(np.asarray(loaded[3]["image"]), images[3, :, :, 0])


def test_write_images_for_pandas_and_pyarrow(tmp_path: Path) -> None:
    file, _ = labeled(tmp_path)
    frame = pandas.read_parquet(file)
    assert list(frame["label"]) == [2, 1, 0, 1, 2]
    first = frame.to_dict("records")[0]["image"]
    assert first["bytes"].startswith(b"\x89PNG")
    assert first["path"] == "000000.png"
    assert pq.read_metadata(file).num_row_groups == 3


@pytest.mark.parametrize(
    ("labels", "ids", "message"),
    [([0, 1], None, "2 labels"), ([0, 1, 7], None, "label 7"), ([0, 1, 1], ["a", "a", "b"], "repeat")],
)
def test_write_images_refuses(tmp_path: Path, labels: list[int], ids: list[str] | None, message: str) -> None:
    file = tmp_path / "images.parquet"
    with pytest.raises(DatasetError, match=message):
        write_images(str(file), np.zeros((3, 4, 4, 1), np.uint8), labels, ["a", "b"], image_ids=ids)
    assert not file.exists()


@pytest.mark.parametrize(
    ("size", "names", "ids", "message"),
    [
        (4, {0: "a", 1: "b"}, None, "class_names must be a list of texts, not {0: 'a', 1: 'b'}"),
        (4, "ab", None, "class_names must be a list of texts, not 'ab'"),
        (4, [0, 1], None, "class_names must be a list of texts"),
        (4, ["a", "b"], [7, 8], r"image_ids must be a list of texts, not \[7, 8\]"),
        (4, ["a", "b"], ["x", None], "image_ids must be a list of texts"),
        (0, ["a", "b"], None, r"an image must be uint8 \[H, W, 1 or 3\], not uint8 \[0, 0, 1\]"),
    ],
)
def test_write_images_refuses_names_that_are_no_texts_and_images_without_pixels(
    tmp_path: Path, size: int, names: Any, ids: Any, message: str
) -> None:
    file = tmp_path / "images.parquet"
    with pytest.raises(DatasetError, match=message):
        write_images(str(file), np.zeros((2, size, size, 1), np.uint8), [0, 1], names, image_ids=ids)
    assert not file.exists()


def test_write_images_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot write"):
        write_images(str(tmp_path / "file" / "x.parquet"), np.zeros((1, 4, 4, 1), np.uint8), [0], ["a"])


def test_failure_records_are_read_together_and_asked_for_again_where_a_store_throttles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole = str(tmp_path), storage.read_json
    for shard_id in range(8):
        store.write_failure(output, shard_id, {"reason": f"reason {shard_id}"})
    together, refused = threading.Barrier(8, timeout=30), []

    def busy(uri: str) -> Any:
        if "00003" in uri and not refused:
            refused.append(uri)
            raise DatasetError(f"cannot read {uri!r}") from OSError(errno.EBUSY, "SlowDown")
        together.wait()
        return whole(uri)

    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr(storage, "read_json", busy)
    progress = store.read_progress(output, 10, DIGEST)
    assert [record["reason"] for record in progress.failed.values()] == [f"reason {number}" for number in range(8)]
    assert list(progress.failed) == list(range(8))
    assert progress.missing == [8, 9]
    assert len(refused) == 1


def test_a_part_is_written_though_the_record_of_its_failure_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker would say that another run made it."""
    output = str(tmp_path)
    store.write_failure(output, 0, {"reason": "an earlier try"})

    def busy(uri: str) -> None:
        raise OSError(errno.EBUSY, "SlowDown")

    monkeypatch.setattr(storage, "remove", busy)
    store.write_part(output, 0, DIGEST, b"content")
    assert store.read_progress(output, 1, DIGEST).complete
