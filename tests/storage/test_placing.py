"""File systems on which a file is seen while it grows: HDFS, SFTP and the like."""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.registry import _registry

from pipeline import storage
from pipeline.errors import DatasetError


class Disk(ArrowFSWrapper):
    """The driver of HDFS, on a local disk."""

    protocol = "hdfs"  # type: ignore[assignment]
    cut = False

    def __init__(self, **options: Any) -> None:
        super().__init__(fs=pyarrow.fs.LocalFileSystem(), **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value[: len(value) // 2] if self.cut else value, mode, **options)
        if self.cut:
            raise ConnectionResetError("cut")


class Strict(Disk):
    """Moves nothing onto a file that is there, and says so, as SMB."""

    says = FileExistsError(errno.EEXIST, "File exists")

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if self.exists(path2):
            raise self.says
        super().mv(path1, path2, **options)


class Plain(Strict):
    """HDFS, whose library has one error for every move that is not done."""

    says = OSError(errno.EIO, "HDFS Rename failed. Detail: [errno 5] Input/output error")


class Hadoop(Disk):
    """Moves nothing onto a file that is there, as HDFS; and does not say so, as WebHDFS."""

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if not self.exists(path2):
            super().mv(path1, path2, **options)


@pytest.fixture(params=[Disk, Strict, Plain, Hadoop])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(_registry, "hdfs", request.param)
    return f"hdfs://{tmp_path}/out"


def test_a_file_is_written_in_folders_that_are_made_and_replaced_as_a_whole(folder: str, tmp_path: Path) -> None:
    for content in (b"1", b"22"):
        storage.write_bytes(f"{folder}/data/part", content, temporary_in=f"{folder}/.tmp")
        assert storage.read_bytes(f"{folder}/data/part") == content
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["part"]


def test_a_write_that_is_cut_leaves_the_file_of_before_or_none(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{folder}/old", b"old")
    monkeypatch.setattr(Disk, "cut", True)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="cut"):
            storage.write_bytes(f"{folder}/{name}", b"content")
    with pytest.raises(OSError, match="cut"):
        storage.create_bytes(f"{folder}/new", b"content")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"old": b"old"}


def test_what_a_killed_write_left_is_passed_by_and_deleted(folder: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{folder}/part", b"1")
    left = tmp_path / "out" / ".part.0123abcd.tmp"
    left.write_bytes(b"hal")
    assert storage.list_files(folder) == ["part"]
    storage.remove_temporaries(folder)
    assert not left.exists()
    assert storage.list_files(folder) == ["part"]


def test_a_file_is_created_once(folder: str) -> None:
    assert [storage.create_bytes(f"{folder}/a/lease", content) for content in (b"1", b"2")] == [True, False]
    assert storage.read_bytes(f"{folder}/a/lease") == b"1"


def test_a_large_file_is_moved_into_its_place(folder: str, tmp_path: Path) -> None:
    for content in (b"1", b"22"):
        with storage.new_file(f"{folder}/data/part", temporary_in=f"{folder}/.tmp") as path:
            path.write_bytes(content)
        assert storage.read_bytes(f"{folder}/data/part") == content
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["part"]


def test_through_a_cache_too(folder: str, tmp_path: Path) -> None:
    uri = f"simplecache::{folder}/part"
    storage.write_bytes(uri, b"1")
    assert storage.read_bytes(uri) == b"1"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["part"]


def test_a_store_that_does_not_answer_is_not_said_to_be_without_a_file(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Disk, path: str, **_: Any) -> None:
        raise ConnectionResetError("no answer")

    monkeypatch.setattr(Disk, "info", refuse)
    with pytest.raises(DatasetError, match=r"cannot read 'hdfs://.*': ConnectionResetError: no answer"):
        storage.exists(f"{folder}/part")


def move_by(monkeypatch: pytest.MonkeyPatch, move: Callable[[str, str], None]) -> None:
    for kind in (Disk, Strict, Hadoop):
        monkeypatch.setattr(kind, "mv", lambda self, source, target: move(source, target))


def fail_onto_the_part(monkeypatch: pytest.MonkeyPatch, *answers: OSError | None) -> None:
    """Let moves onto the part fail, each with an error, or succeed."""
    left = iter(answers)

    def move(source: str, target: str) -> None:
        error = next(left) if Path(target).name == "part" else None
        if error is not None:
            raise error
        Path(source).rename(target)

    move_by(monkeypatch, move)


def test_a_write_whose_temporary_file_is_gone_is_not_taken_for_done(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{folder}/part", b"old")

    def lose(source: str, target: str) -> None:
        Path(source).unlink()
        raise FileNotFoundError(errno.ENOENT, "gone", source)

    move_by(monkeypatch, lose)
    with pytest.raises(FileNotFoundError, match="gone"):
        storage.write_bytes(f"{folder}/part", b"new")
    assert storage.read_bytes(f"{folder}/part") == b"old"


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "cut"), PermissionError(errno.EACCES, "denied")], ids=repr
)
def test_a_move_that_fails_for_another_reason_leaves_the_file_that_is_there(
    error: OSError, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{folder}/part", b"old")

    def fail(source: str, target: str) -> None:
        raise error

    move_by(monkeypatch, fail)
    with pytest.raises(type(error)):
        storage.write_bytes(f"{folder}/part", b"new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"part": b"old"}


def test_a_file_comes_back_whose_successor_could_not_be_moved(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{folder}/part", b"old")
    fail_onto_the_part(monkeypatch, FileExistsError(errno.EEXIST, "File exists"), ConnectionResetError("cut"), None)
    with pytest.raises(ConnectionResetError):
        storage.write_bytes(f"{folder}/part", b"new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"part": b"old"}


def test_a_file_that_cannot_come_back_is_not_deleted(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{folder}/part", b"old")
    cut = ConnectionResetError("cut")
    fail_onto_the_part(monkeypatch, FileExistsError(errno.EEXIST, "File exists"), cut, cut)
    with pytest.raises(ConnectionResetError):
        storage.write_bytes(f"{folder}/part", b"new")
    assert [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()] == [b"old"]


def test_many_workers_may_check_at_once_that_they_can_write(folder: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{folder}/manifest.json", b"1")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(storage.check_writable, [folder] * 80)) == [None] * 80
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]
