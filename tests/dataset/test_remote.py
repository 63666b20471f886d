"""Parquet behind a server that lets a file be read and nothing else, cuts connections, or has let a token expire."""

import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3fs import S3FileSystem

from pipeline.dataset import write_images
from pipeline.dataset.discovery import find_source
from pipeline.dataset.rows import read_unit
from pipeline.errors import DatasetError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


@dataclass
class Server:
    """One file, `made/t.parquet`; everything else is forbidden, as on S3 without the permission to list."""

    content: bytes
    url: str = ""
    faults: list[str] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path != "/made/t.parquet" or "list-type" in request.path:
            return self.refuse(request, 403, "AccessDenied")
        for fault in filter(str.isdigit, self.faults):
            return self.refuse(request, int(fault), "Refused")
        if "expired" in self.faults and request.command == "GET":
            return self.refuse(request, 400, "ExpiredToken")
        start, stop = 0, len(self.content)
        wanted = request.headers.get("Range")
        if wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(stop, int(last) + 1 if last else stop)
        request.send_response(200 if wanted is None else 206)
        request.send_header("Content-Length", str(stop - start))
        request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.content)}")
        request.send_header("ETag", '"x"')
        request.end_headers()
        if request.command == "GET":
            cut = "cut" in self.faults
            request.wfile.write(self.content[start : (start + stop) // 2 if cut else stop])
            request.close_connection = cut
        return None

    def refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    file = tmp_path / "t.parquet"
    write_images(str(file), IMAGES, [row % 3 for row in range(20)], ["a", "b", "c"])
    there = Server(file.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            there.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        there.url = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", there.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        S3FileSystem.clear_instance_cache()
        yield there
        S3FileSystem.clear_instance_cache()
        http.shutdown()


def read(uri: str) -> int:
    source = find_source(uri)
    return sum(len(table) for unit in source.units for table in read_unit(source, unit))


def test_a_file_that_may_be_read_and_not_listed(server: Server) -> None:
    assert read("s3://made/t.parquet") == 20


def test_a_signed_web_address_is_one_file(server: Server) -> None:
    assert read(f"{server.url}/made/t.parquet?X-Amz-Signature=abc%2Fdef&X-Amz-Expires=60") == 20


@pytest.mark.parametrize("scheme", ["s3://", "http"])
def test_a_connection_that_is_cut_is_one_line(server: Server, scheme: str) -> None:
    uri = "s3://made/t.parquet" if scheme == "s3://" else f"{server.url}/made/t.parquet"
    source = find_source(uri)
    server.faults.append("cut")
    with pytest.raises(DatasetError, match=r"cannot read '.*t\.parquet': ClientPayloadError: "):
        list(read_unit(source, source.units[0]))
    with pytest.raises(DatasetError, match=r"cannot read '.*t\.parquet': ClientPayloadError: "):
        find_source(uri)


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_a_web_server_that_refuses_is_not_one_without_the_file(server: Server, status: int) -> None:
    server.faults.append(str(status))
    with pytest.raises(DatasetError, match=rf"cannot read 'http.*t\.parquet': ClientResponseError: {status}") as error:
        find_source(f"{server.url}/made/t.parquet")
    assert error.value.is_transient is (status > 403)


def test_a_web_server_without_the_file_and_none_at_all(server: Server) -> None:
    server.faults.append("404")
    with pytest.raises(DatasetError, match=r"no dataset at 'http.*': there is no such file"):
        find_source(f"{server.url}/made/t.parquet")
    with pytest.raises(DatasetError, match=r"cannot read 'http.*': ClientConnectorError: Cannot connect") as error:
        find_source("http://127.0.0.1:9/made/t.parquet")
    assert error.value.is_transient


def test_an_expired_token_is_not_called_a_damaged_file(server: Server) -> None:
    server.faults.append("expired")
    with pytest.raises(DatasetError, match=r"cannot read 's3://made/t\.parquet': PermissionError: ExpiredToken"):
        find_source("s3://made/t.parquet")


def test_a_file_in_an_archive_stays_open_while_it_is_read(server: Server, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "t.parquet", "in/t.parquet")
    assert read(f"zip://in/t.parquet::{tmp_path}/z.zip") == 20
