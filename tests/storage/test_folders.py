"""Folders on stores that have none: markers are not files, and a forbidden delete does no harm."""

import contextlib
import errno
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import storage
from pipeline.errors import DatasetError


class NoDelete(MemoryFileSystem):
    """A store that lets nothing be deleted, as a bucket policy may say."""

    protocol = "nodelete"
    store: dict[str, Any] = {}  # noqa: RUF012  (as in the class it extends)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("nodelete://", "memory://"))

    def rm_file(self, path: str) -> None:
        raise PermissionError(f"Access Denied: {path}")


@pytest.fixture
def nodelete(request: pytest.FixtureRequest) -> str:
    fsspec.register_implementation("nodelete", NoDelete, clobber=True)
    NoDelete.store.clear()
    return "nodelete://bucket/out"


def test_without_permission_to_delete_one_probe_is_left_and_never_read(
    nodelete: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"{nodelete}/probed"
    for _ in range(3):
        storage.check_writable(uri)
    (left,) = NoDelete.store
    assert re.fullmatch(r"/bucket/out/probed/\.probe\.[0-9a-f]{8}", left)
    assert storage.list_files(uri) == []
    assert storage.find_files(uri) == []
    assert capsys.readouterr().err == f"warning: files are left in {uri!r}, they could not be deleted\n"


def test_files_that_may_be_made_and_not_replaced_are_enough(nodelete: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Google's role `objectCreator`."""
    uri, write = f"{nodelete}/made", MemoryFileSystem.pipe_file

    def create(self: NoDelete, path: str, value: bytes, **options: Any) -> None:
        if path in self.store:
            raise OSError(f"Forbidden: {path}")
        write(self, path, value, **options)

    monkeypatch.setattr(NoDelete, "pipe_file", create)
    for _ in range(2):
        storage.check_writable(uri)
    assert storage.find_files(uri) == []
    assert NoDelete.store

    def refuse(self: NoDelete, path: str, value: bytes, **options: Any) -> None:
        raise OSError(f"Forbidden: {path}")

    monkeypatch.setattr(NoDelete, "pipe_file", refuse)
    with pytest.raises(DatasetError, match="cannot write to 'nodelete://bucket/out/made': OSError: Forbidden"):
        storage.check_writable(uri)


def test_what_may_not_be_deleted_is_left_and_said_once(nodelete: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c/d"):
        storage.write_bytes(f"{nodelete}/{name}", b"1")
    storage.remove(f"{nodelete}/a")
    storage.remove(f"{nodelete}/b")
    storage.remove_folder(f"{nodelete}/c")
    assert len(storage.find_files(nodelete)) == 3
    folders = [f"warning: files are left in {folder!r}" for folder in (nodelete, f"{nodelete}/c")]
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == folders


def test_removing_a_folder_takes_its_name_literally() -> None:
    for folder in ("run[1]", "run1", "run*"):
        storage.write_bytes(f"memory://literal/{folder}/deep/x", b"1")
    storage.remove_folder("memory://literal/run[1]")
    storage.remove_folder("memory://literal/run*")
    storage.remove_folder("memory://literal/nowhere")
    assert storage.find_files("memory://literal") == [("run1/deep/x", 1)]


def test_links_to_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder" / "broken").symlink_to(tmp_path / "nowhere")
    assert storage.list_files(str(tmp_path / "folder")) == ["link"]


def test_check_writable_leaves_nothing_new(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    storage.check_writable(str(tmp_path / "there"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def put(bucket: Any, *keys: str) -> None:
    for key in keys:
        bucket.put_object(Key=key, Body=b"" if key.endswith(("/", "_$folder$")) or key == "out/sub" else b"12")


MARKERS = ("out/", "out/data/", "out/data_$folder$", "out/sub", "out/empty/")


def test_folder_markers_are_no_files(s3_bucket: Any) -> None:
    put(s3_bucket, *MARKERS, "out/data/a.bin", "out/sub/deep/b.bin", "out/c.json", "out/.probe.0123abcd", "only/")
    assert storage.list_files("s3://made/out") == ["c.json"]
    assert storage.list_files("s3://made/out/data") == ["a.bin"]
    assert storage.find_files("s3://made/out") == [("c.json", 2), ("data/a.bin", 2), ("sub/deep/b.bin", 2)]
    assert storage.list_files("s3://made/only") == storage.find_files("s3://made/only") == []
    assert storage.find_files("s3://made/out/c.json") == [("", 2)]
    assert storage.list_files("s3://made/out/c.json") == []


def test_a_folder_with_markers_is_copied_and_deleted(s3_bucket: Any, tmp_path: Path) -> None:
    put(s3_bucket, *MARKERS, "out/data/a.bin", "out/sub/deep/b.bin", "out/train/", "out/train/x")
    storage.download_folder("s3://made/out", tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "data/a.bin",
        "sub/deep/b.bin",
        "train/x",
    ]
    storage.remove_folder("s3://made/out/train")
    assert storage.find_files("s3://made/out") == [("data/a.bin", 2), ("sub/deep/b.bin", 2)]


@pytest.mark.parametrize("key", ["out/data", "out", "out/data/", "out_$folder$"])
def test_an_empty_object_named_like_a_folder_is_that_folder(s3_bucket: Any, key: str) -> None:
    s3_bucket.put_object(Key=key, Body=b"")
    put(s3_bucket, "out/data/a.bin")
    assert not storage.is_file(f"s3://made/{key}")
    assert storage.is_file("s3://made/out/data/a.bin")
    assert storage.find_files("s3://made/out/data") == [("a.bin", 2)]
    assert storage.find_files("s3://made/out") == [("data/a.bin", 2)]
    assert storage.list_files("s3://made/out") == []


def test_an_empty_file_is_a_file(s3_bucket: Any, tmp_path: Path) -> None:
    for folder in ("s3://made/out", "memory://empty", str(tmp_path)):
        storage.write_bytes(f"{folder}/a", b"")
        storage.write_bytes(f"{folder}/ab/c", b"1")
        assert storage.is_file(f"{folder}/a")


def write_to_full_disk(uri: str | None) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with storage.scratch_folder("made-") as folder:
        (folder / "a").write_bytes(b"1")
        with contextlib.nullcontext() if uri is None else storage.writing_to(uri):
            raise full


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (None, r"^cannot write to the temporary folder '.*made-\w+': OSError: \[Errno 28\].*; TMPDIR"),
        ("s3://made/out", r"^cannot write to 's3://made/out': OSError: \[Errno 28\]"),
    ],
)
def test_a_full_disk_of_temporary_files_is_not_said_to_be_of_the_output(uri: str | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        write_to_full_disk(uri)


def test_where_there_is_no_place_for_temporary_files_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="cannot write to a temporary folder: FileNotFoundError"):
        write_to_full_disk(None)
