"""Errors that may pass, and errors that would come again."""

import errno
import io
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pyarrow.parquet as pq
import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from pipeline import storage
from pipeline.errors import CheckpointError, ClusterError, ConfigError, DatasetError, IncompleteError, PipelineError
from pipeline.models.checkpoints import read_state_dict
from pipeline.transient import causes, is_missing, is_of_store, is_refusal, is_transient


def answer(status: int) -> aiohttp.ClientResponseError:
    return aiohttp.ClientResponseError(None, (), status=status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (OSError(errno.EIO, "a disk fails"), True),
        (OSError(errno.ESTALE, "a server of files was restarted"), True),
        (aiohttp.ClientPayloadError(), True),
        (answer(503), True),
        (answer(429), True),
        (answer(403), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (FileNotFoundError("gone, as drivers of stores say it"), False),
        (PermissionError(errno.EACCES, "forbidden"), False),
        (OSError(errno.EROFS, "a disk that is only read"), False),
        (OSError("Corrupt snappy compressed data."), False),
        (ValueError("wrong"), False),
    ],
)
def test_what_a_store_or_a_network_does_may_pass(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected
    raised = DatasetError("cannot read 'x'")
    raised.__cause__ = error
    outer = CheckpointError("checkpoint: cannot read 'x'")
    outer.__cause__ = raised
    # Also after two processes, neither of which hands on a cause.
    for _ in range(3):
        assert outer.is_transient is expected
        outer = pickle.loads(pickle.dumps(outer))  # noqa: S301


def test_the_causes_of_an_error_are_walked_once_even_around_a_circle() -> None:
    first, second, third = ValueError("first"), OSError("second"), KeyError("third")
    third.__cause__, second.__cause__ = second, first
    assert list(causes(third)) == [third, second, first]
    first.__cause__ = third
    assert list(causes(third)) == [third, second, first]


def test_an_error_that_a_library_wraps_goes_before_the_one_that_it_was_raised_from() -> None:
    wrapped, outer = ValueError("wrapped"), RuntimeError("compiler")
    outer.inner_exception, outer.__cause__ = wrapped, KeyError("cause")  # type: ignore[attr-defined]
    assert list(causes(outer, wrapped_as="inner_exception")) == [outer, wrapped]
    assert list(causes(outer)) == [outer, outer.__cause__]


@pytest.mark.parametrize(("code", "expected"), [(500, True), (429, True), (400, False)])
def test_so_may_what_google_cloud_storage_answers(code: int, expected: bool) -> None:
    retry = pytest.importorskip("gcsfs.retry")
    assert is_transient(retry.HttpError({"code": code, "message": "no"})) is expected


@pytest.mark.parametrize(("status", "expected"), [(503, True), (429, True), (403, False), (404, False)])
def test_so_may_what_hugging_face_answers(status: int, expected: bool) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    client = pytest.importorskip("httpx2")
    answered = client.Response(status, request=client.Request("GET", "https://huggingface.co/x"))
    assert is_transient(errors.HfHubHTTPError("no", response=answered)) is expected
    assert is_refusal(errors.HfHubHTTPError("no", response=answered)) is not expected
    assert is_transient(client.HTTPStatusError("no", request=answered.request, response=answered)) is expected
    assert is_transient(client.ConnectError("no network"))
    assert not is_transient(errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1"))


class DriverError(Exception):
    """Stands for the base error of a storage driver that is not installed here."""


class WrongPassword(DriverError):
    """Stands for the error of that driver that does not pass: the password is wrong."""


@pytest.mark.parametrize(
    ("module", "name", "lasting"),
    [
        ("azure.core.exceptions", "AzureError", "ClientAuthenticationError"),
        ("paramiko.ssh_exception", "SSHException", "AuthenticationException"),
        ("smbprotocol.exceptions", "SMBException", "SMBAuthenticationError"),
        ("fsspec.implementations.ftp", "Error", "error_perm"),
    ],
)
def test_so_may_errors_of_drivers_but_for_a_wrong_password(
    module: str, name: str, lasting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_transient(DriverError("reset"))
    driver = types.ModuleType(module)
    monkeypatch.setattr(driver, name, DriverError, raising=False)
    monkeypatch.setattr(driver, lasting, WrongPassword, raising=False)
    monkeypatch.setitem(sys.modules, module, driver)
    assert is_transient(DriverError("reset"))
    assert not is_transient(WrongPassword("no"))
    assert is_refusal(WrongPassword("no"))
    busy, forbidden = DriverError("busy"), DriverError("forbidden")
    busy.status_code, forbidden.status_code = 503, 403  # type: ignore[attr-defined]
    assert [is_transient(error) for error in (busy, forbidden)] == [True, False]


@pytest.mark.parametrize(("code", "expected"), [(503, True), (429, True), (404, False), (401, False)])
def test_so_may_what_the_hub_of_weights_answers(code: int, expected: bool) -> None:
    answer = SimpleNamespace(status_code=code, headers={}, request=None)
    limited = HfHubHTTPError("no", response=answer)  # type: ignore[arg-type]
    assert is_transient(requests.HTTPError("no", response=answer)) is expected  # type: ignore[arg-type]
    # As the hub's client says it of a file that is not in its cache either.
    missing = FileNotFoundError("cannot find the requested files")
    missing.__cause__ = limited
    assert is_transient(missing) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (OSError(errno.ENOSPC, "a disk is full"), False),
        (OSError(errno.EMFILE, "too many open files"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
    ],
)
def test_a_full_disk_may_pass_and_is_still_this_machines_own(error: OSError, expected: bool) -> None:
    outer = CheckpointError("checkpoint: cannot be read")
    outer.__cause__ = error
    assert is_of_store(outer) is expected


def test_work_that_was_lost_may_be_done_again() -> None:
    found = [error("x").is_transient for error in (IncompleteError, ClusterError, ConfigError, DatasetError)]
    assert found == [True, True, False, False]


def _truncated_part(folder: Path) -> None:
    (folder / "x.parquet").write_bytes(b"PAR1PAR1")
    try:
        pq.ParquetFile(folder / "x.parquet")
    except (OSError, ValueError) as error:
        raise DatasetError("not whole") from error


def _no_image(folder: Path) -> None:
    try:
        Image.open(io.BytesIO(b"no image"))
    except OSError as error:
        raise DatasetError("not an image") from error


def _no_file(folder: Path) -> None:
    storage.read_bytes(str(folder / "nowhere"))


def _no_checkpoint(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(b"\x08" + b"\0" * 20)
    read_state_dict(str(folder / "x.safetensors"), [])


@pytest.mark.parametrize("read", [_truncated_part, _no_image, _no_file, _no_checkpoint])
def test_what_a_file_holds_does_not_change(read: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as raised:
        read(tmp_path)
    assert not raised.value.is_transient


@pytest.mark.parametrize("says", [FileNotFoundError("no"), NotADirectoryError("no"), OSError(errno.ENOENT, "no")])
def test_a_driver_may_say_in_several_ways_that_a_file_is_missing(says: OSError) -> None:
    class SmbError(OSError):
        """Python makes a FileNotFoundError of an OSError alone."""

    assert is_missing(says)
    assert is_missing(SmbError(errno.ENOENT, "no such file"))
    assert not is_missing(SmbError(errno.EIO, "no answer"))
    assert not is_missing(None)
