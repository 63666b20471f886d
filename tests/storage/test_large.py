"""Files that are written piece by piece."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import storage


def test_a_local_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    uri, temporary = str(tmp_path / "folder" / "file"), str(tmp_path / ".tmp")
    with storage.new_file(uri, temporary_in=temporary) as path:
        path.write_bytes(b"content")
        assert not Path(uri).exists()
    assert Path(uri).read_bytes() == b"content"
    with pytest.raises(TypeError), storage.new_file(uri, temporary_in=temporary) as path, path.open("wb") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert Path(uri).read_bytes() == b"content"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_large_file_reaches_an_object_store_in_pieces(
    s3_bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.large._PIECE_BYTES", 5 * 2**20)
    content = bytes(range(256)) * 48 * 2**10
    with storage.new_file("s3://made/folder/file", temporary_in="unused") as path:
        path.write_bytes(content)
        assert list(s3_bucket.objects.all()) == []
    assert s3_bucket.Object("folder/file").get()["Body"].read() == content
    # S3 says of how many pieces a file was made.
    assert s3_bucket.Object("folder/file").e_tag.strip('"').endswith("-3")
    assert not path.exists()


def test_an_upload_that_fails_is_tried_again(s3_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    fs, _ = storage.filesystem("s3://made/file")
    whole, calls = fs.put_file, []

    def put_file(local: str, path: str, chunksize: int) -> None:
        calls.append(path)
        if len(calls) < 3:
            raise ConnectionError("cut")
        whole(local, path, chunksize=chunksize)

    monkeypatch.setattr(fs, "put_file", put_file)
    with storage.new_file("s3://made/file", temporary_in="unused") as path:
        path.write_bytes(b"content")
    assert s3_bucket.Object("file").get()["Body"].read() == b"content"
    assert len(calls) == 3


def test_a_store_that_refuses_raises(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))
    with pytest.raises(OSError, match="bucket"), storage.new_file("s3://nowhere/file", temporary_in="x") as path:
        path.write_bytes(b"content")
