"""File system and path that a string names: URIs are read as URIs, and local paths as they are written."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.cached import SimpleCacheFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from pipeline import storage
from pipeline.errors import DatasetError

ODD = [
    "a::b",
    "file.zip::x",
    "zip::x",
    "s3:x",
    "run*",
    "a?b",
    "[1]",
    "a#b",
    "a%20b",
    "file:x",
    "ünï cöde",
    "~x",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("form", ["relative", "absolute", "file://"])
def test_a_plain_local_path_is_taken_literally(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = {"relative": "", "absolute": f"{tmp_path}/", "file://": f"file://{tmp_path}/"}[form]
    folder = f"{start}{name}"
    storage.check_writable(folder)
    storage.write_bytes(storage.join(folder, "deep", "a.txt"), b"1")
    storage.write_bytes(storage.join(folder, "b.txt"), b"22")
    assert storage.create_bytes(storage.join(folder, "b.txt"), b"3") is False
    assert (tmp_path / name / "deep" / "a.txt").read_bytes() == b"1"
    assert os.listdir(tmp_path) == [name.partition("/")[0]]
    assert storage.list_files(folder) == ["b.txt"]
    assert storage.find_files(folder) == [("b.txt", 2), ("deep/a.txt", 1)]
    assert storage.absolute(folder) == str(tmp_path / name)
    assert storage.absolute(storage.absolute(folder)) == str(tmp_path / name)
    storage.download_folder(folder, tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "a.txt").read_bytes() == b"1"
    storage.remove_folder(storage.join(folder, "deep"))
    assert storage.find_files(folder) == [("b.txt", 2)]


def test_a_protocol_in_the_middle_of_a_local_path_is_no_protocol(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/s3://x/y", b"1")
    assert (tmp_path / "s3:" / "x" / "y").read_bytes() == b"1"


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("~/data") == str(tmp_path / "home" / "data")
    assert storage.absolute("./~/data") == str(tmp_path / "~" / "data")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/x/y", "/x/y"),
        ("file://localhost/x/y", "/x/y"),
        ("FILE://LOCALHOST/x", "/x"),
        ("file:///localhost/x%20y", "/localhost/x%20y"),
        ("file://./x", "{here}/x"),
        ("./", "{here}"),
        (".", "{here}"),
        ("/", "/"),
    ],
)
def test_other_forms_of_local_paths(uri: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute(uri) == path.format(here=tmp_path)


@pytest.mark.parametrize("uri", ["file://data/x", "file://nas.example.com/x", "file://localhost", "file://data"])
def test_a_file_on_another_machine_is_no_path_from_the_working_folder_on(uri: str) -> None:
    with pytest.raises(DatasetError, match=rf"'{uri}' names the machine '.*': .* three slashes, file:///FOLDER"):
        storage.exists(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/a::b/c", "s3://bucket/b::file.zip"])
def test_a_key_of_an_object_is_not_cut(uri: str) -> None:
    assert storage.filesystem(uri)[1] == uri.removeprefix("s3://")
    assert storage.join(uri, "d") == f"{uri}/d"


def test_chained_locations_are_read(tmp_path: Path) -> None:
    storage.write_bytes("memory://chained/folder/a.txt", b"1")
    cached = "simplecache::memory://chained/folder"
    assert isinstance(storage.filesystem(cached)[0], SimpleCacheFileSystem)
    assert storage.read_bytes(storage.join(cached, "a.txt")) == b"1"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("folder/a.txt", "22")
    for inside in (f"zip://folder::{tmp_path}/x.zip", f"zip://folder::file://{tmp_path}/x.zip"):
        assert storage.list_files(inside) == ["a.txt"]
        assert storage.read_bytes(storage.join(inside, "a.txt")) == b"22"
    assert storage.read_bytes(storage.join(f"zip::file://{tmp_path}/x.zip", "folder", "a.txt")) == b"22"
    assert isinstance(storage.filesystem(f"{tmp_path}/x.zip")[0], LocalFileSystem)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(DatasetError, match="cannot open 'gopher://host/x'"):
        storage.filesystem("gopher://host/x")


@pytest.mark.parametrize("uri", ["github://x", "dir://x", "reference://x", "webhdfs://"])
def test_a_scheme_that_needs_more_than_a_uri_is_named_in_a_line(uri: str) -> None:
    with pytest.raises(DatasetError, match=f"^cannot open '{uri}': .*$"):
        storage.filesystem(uri)


def test_the_case_of_a_scheme_does_not_matter(tmp_path: Path) -> None:
    storage.write_bytes("Memory://Upper/Folder/a.txt", b"1")
    assert storage.read_bytes("memory://Upper/Folder/a.txt") == b"1"
    assert storage.read_bytes("simplecache::MEMORY://Upper/Folder/a.txt") == b"1"
    assert storage.filesystem("S3://Bucket/a::S3://b")[1] == "Bucket/a::S3://b"
    assert storage.absolute(f"FILE://{tmp_path}") == str(tmp_path)
    assert storage.join("S3://bucket", "a") == "S3://bucket/a"


PACKAGE = "session_2026-11-26_00-00-00_000000_1/runtime_resources/working_dir_files/_ray_pkg_0123abcd"


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        (f"{PACKAGE}/runs", True),
        (PACKAGE, True),
        ("runtime_resources/py_modules_files/_ray_pkg_0/x", True),
        ("runtime_resources/working_dir_files/s3_bucket_code/x", True),
        ("elsewhere/working_dir_files/_ray_pkg_0/x", True),
        ("working_dir_files/runs", False),
        ("runs", False),
    ],
)
def test_what_lies_in_a_package_that_ray_unpacked(
    folder: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / folder)
    assert storage.in_job_package(str(tmp_path / folder)) is inside
    assert storage.in_job_package(str(tmp_path / "link" / "new")) is inside
    monkeypatch.chdir(tmp_path / folder)
    assert storage.in_job_package("runs/x") is inside
    assert not storage.in_job_package(f"s3://bucket/{PACKAGE}")
    with pytest.raises(DatasetError) as raised:
        storage.read_bytes("runs/x")
    assert ("relative paths lead into the package that Ray made of --working-dir" in str(raised.value)) is inside


def test_a_working_folder_that_was_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert storage.absolute(str(tmp_path / "x")) == str(tmp_path / "x")
    with pytest.raises(DatasetError, match="cannot open 'x': the working folder was deleted, go to one that is there"):
        storage.absolute("x")


def test_a_connection_that_has_ended_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server(MemoryFileSystem):
        """With a connection, as the driver of SFTP has one."""

        protocol = "sftp"
        cachable = True
        connections = 0
        active = True

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.client = self
            self._connect()

        def _connect(self) -> None:
            type(self).connections += 1
            type(self).active = True

        def get_transport(self) -> "Server":
            return self

        def is_active(self) -> bool:
            return self.active

    monkeypatch.setitem(_registry, "sftp", Server)
    for _ in range(2):
        storage.filesystem("sftp://host/x")
    assert Server.connections == 1
    Server.active = False
    storage.filesystem("sftp://host/x")
    assert Server.connections == 2
