import errno
import io
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem
from s3fs.core import S3File

from pipeline import storage
from pipeline.dataset.collection import find_images
from pipeline.dataset.discovery import find_source
from pipeline.errors import DatasetError


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "data") if request.param == "local" else f"memory://{tmp_path.name}/data"


def test_write_read_list_remove(folder: str) -> None:
    assert storage.list_files(folder) == []
    storage.write_bytes(storage.join(folder, "b.bin"), b"1")
    storage.write_bytes(storage.join(folder, "b.bin"), b"22")
    storage.write_json(storage.join(folder, "a.json"), {"x": [1]})
    assert storage.read_bytes(storage.join(folder, "b.bin")) == b"22"
    assert storage.read_json(storage.join(folder, "a.json")) == {"x": [1]}
    assert storage.list_files(folder) == ["a.json", "b.bin"]
    assert storage.list_files(folder, ".json") == ["a.json"]
    storage.remove(storage.join(folder, "b.bin"))
    storage.remove(storage.join(folder, "b.bin"))
    assert storage.list_files(folder) == ["a.json"]
    assert storage.exists(storage.join(folder, "a.json"))


def test_upload_folder(folder: str, tmp_path: Path) -> None:
    (tmp_path / "made" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "deep" / "a.txt").write_text("x")
    storage.upload_folder(tmp_path / "made", folder)
    assert storage.read_bytes(storage.join(folder, "deep", "a.txt")) == b"x"


@pytest.mark.parametrize("uri", ["nosuch://bucket/a", "/nowhere/a.json", "http2://x"])
def test_what_cannot_be_read_is_named(uri: str) -> None:
    with pytest.raises(DatasetError, match=uri):
        storage.read_bytes(uri)


def test_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match=r"a\.json.*not JSON"):
        storage.read_json(str(tmp_path / "a.json"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write to .*file/below"):
        storage.check_writable(str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("below", ["", "/below", "/two/below"])
def test_a_file_in_the_place_of_a_folder_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write to '.*': '.*/file' is a file, and a folder is needed"):
        storage.check_writable(f"{tmp_path}/file{below}")


def test_what_may_not_be_looked_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    (tmp_path / "locked" / "images").mkdir(parents=True)
    (tmp_path / "locked").chmod(0)
    user = os.geteuid()
    # The administrator may look at everything.
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(DatasetError, match=r"cannot read '.*/locked/images': PermissionError"):
            storage.exists(str(tmp_path / "locked" / "images"))
        with pytest.raises(DatasetError, match=r"cannot write to '.*/locked/images': PermissionError"):
            storage.check_writable(str(tmp_path / "locked" / "images"))
    finally:
        os.seteuid(user)
        (tmp_path / "locked").chmod(0o700)
    assert not storage.exists(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="File name too long"):
        storage.exists(str(tmp_path / ("a" * 300)))
    with pytest.raises(DatasetError, match="no path has a null character"):
        storage.exists(f"{tmp_path}/\0")


def test_a_path_is_no_text(tmp_path: Path) -> None:
    given: Any = tmp_path / "a"
    for use in (storage.exists, storage.absolute, find_source, find_images, lambda path: find_images([path])):
        with pytest.raises(DatasetError, match=r"^a location is text, not PosixPath\(.*\): give str\("):
            use(given)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A full device: the file system refuses the bytes, and the old file stays."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    limited = (
        "import resource, signal, sys; from pipeline import storage;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "storage.write_bytes(sys.argv[1], b'x' * 100_000)"
    )
    ended = subprocess.run([sys.executable, "-c", limited, str(target)], capture_output=True, text=True, check=False)
    assert "OSError" in ended.stderr
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_kill_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    writer = (
        "import sys; from pipeline import storage\n"
        "for n in range(10**6): storage.write_bytes(sys.argv[1], bytes([n % 256]) * 2_000_000)"
    )
    for delay in (0.05, 0.1, 0.15):
        process = subprocess.Popen([sys.executable, "-c", writer, str(target)])
        deadline = time.monotonic() + 60
        while not target.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.wait()
        content = target.read_bytes()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1
    assert stat.S_ISREG(target.stat().st_mode)


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/x") == str(tmp_path / "runs/x")
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"
    assert storage.absolute("memory://x") == "memory://x"


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["nowhere", "file/below"])
def test_listing_what_is_not_there(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    assert storage.list_files(str(tmp_path / folder)) == []
    assert not storage.exists(str(tmp_path / folder))


def test_find_files_skips_hidden_ones(tmp_path: Path) -> None:
    for name in ("a/x.png", ".tmp/y.png", "a/.z.png", "b.png"):
        storage.write_bytes(str(tmp_path / name), b"12")
    assert storage.find_files(str(tmp_path)) == [("a/x.png", 2), ("b.png", 2)]
    assert storage.find_files(str(tmp_path / "b.png")) == [("", 2)]


def test_no_credentials_is_an_os_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(DatasetError, match="s3://bucket/x"):
        storage.check_writable("s3://bucket/x")


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
def test_a_file_is_created_once(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
    uri = {"local": f"{tmp_path}/a/x.json", "memory": f"memory://{tmp_path.name}/x", "s3": "s3://made/a/x"}[place]
    assert storage.create_json(uri, {"first": 1}) is True
    assert storage.create_json(uri, {"second": 2}) is False
    assert storage.read_json(uri) == {"first": 1}


@pytest.mark.parametrize("place", ["local", "local without hard links", "s3"])
def test_of_many_that_create_a_file_at_once_one_wins(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
    if place == "local without hard links":

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    uri = "s3://made/x" if place == "s3" else str(tmp_path / "x")
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return storage.create_bytes(uri, bytes([number]) * 1000)

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(create, range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == bytes([won.index(True)]) * 1000
    if place != "s3":
        assert os.listdir(tmp_path) == ["x"]


def test_one_file_is_reported_from_a_folder_and_from_nothing(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "a.bin"), b"1")
    assert storage.is_file(storage.join(folder, "a.bin"))
    assert not storage.is_file(folder)
    assert not storage.is_file(storage.join(folder, "b.bin"))


def test_what_a_driver_logs_and_raises_all_the_same_is_not_printed() -> None:
    code = "import logging, pipeline.storage; logging.getLogger('gcsfs.retry').error('out of retries')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.mark.usefixtures("s3")
def test_labels_do_not_cost_the_images_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs reads 50 MiB ahead, so that the labels of a file would cost the whole file."""
    images = [os.urandom(2**18) for _ in range(32)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": list(range(32))}), buffer, row_group_size=4, compression="none")
    storage.write_bytes("s3://made/x.parquet", buffer.getvalue())
    fetched: list[int] = []
    fetch = S3File._fetch_range

    def count(self: S3File, start: int, end: int) -> Any:
        fetched.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", count)
    with storage.open_file("s3://made/x.parquet") as file:
        assert pq.ParquetFile(file).read(["label"])["label"].to_pylist() == list(range(32))
    assert sum(fetched) < len(buffer.getvalue()) / 3
    fetched.clear()
    with storage.open_file("s3://made/x.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(3)["image"].to_pylist() == images[12:16]
    assert sum(fetched) < 2 * 4 * 2**18
