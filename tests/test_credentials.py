"""Credentials in URIs are left out of texts, errors, logs, claims and pages, also where a library quotes them."""

import json
import logging
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import credentials, storage
from pipeline.config import parse_config
from pipeline.credentials import redacted, remember_credentials, without_credentials
from pipeline.errors import ConfigError, DatasetError, one_line, quoted
from pipeline.log import logger, one_printed_line, print_safely
from pipeline.outputs import claim, make_document
from pipeline.report.text import short_name, shortened
from pipeline.report.writing import settings_section
from pipeline.synthesis.config import SynthesisConfig

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> credentials.Secrets:
    """Forget at the end of each test the secrets that it noted: they would be masked in other tests."""
    monkeypatch.setattr(credentials, "_known", credentials.Secrets())
    return credentials._known


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"s3://AKIA:{SECRET}@bucket/key", "s3://…@bucket/key"),
        (f"S3://AKIA:{SECRET}@bucket/key", "S3://…@bucket/key"),
        ("gs://key:secret@bucket/run@2", "gs://…@bucket/run@2"),
        ("https://me:p@ss@host/x is gone", "https://…@host/x is gone"),
        ("https://me:p?ss@host/x", "https://…@host/x"),
        ("git+https://token@host/x", "git+https://…@host/x"),
        ("https://token@host:8080/x@y", "https://…@host:8080/x@y"),
        ("http://me:pw@[::1]/x", "http://…@[::1]/x"),
        ("sftp://jane:p/w@host:22/x@y", "sftp://jane:…@y"),
        ("hdfs://jane:12345@namenode:8020/x", "hdfs://jane:…@namenode:8020/x"),
        ("https://token@host/x?X-Amz-Signature=abc&d=1", "https://…@host/x?X-Amz-Signature=…&d=1"),
        ("https://h/x?AWSAccessKeyId=AKIA&Expires=1", "https://h/x?AWSAccessKeyId=…&Expires=1"),
        ("https://h/x?a=1&access%5Ftoken=b", "https://h/x?a=1&access%5Ftoken=…"),
        ("https://h/x?to=https://h/y&sig=b", "https://h/x?to=https://h/y&sig=…"),
        ("az://container/x?sv=1&se=2&sp=r&sig=abc", "az://container/x?sv=1&se=2&sp=r&sig=…"),
        ("abfs://c@acct.dfs.core.windows.net/x?sig=abc", "abfs://c@acct.dfs.core.windows.net/x?sig=…"),
        ("zip://a@b:c?d::https://me:pw@host/x.zip?sig=1", "zip://a@b:c?d::https://…@host/x.zip?sig=…"),
        ("{'a': 's3://k:s@b/x', 'b': 'https://h/y?key=z'}", "{'a': 's3://…@b/x', 'b': 'https://h/y?key=…'}"),
        ("https://host/x#access_token=abc", "https://host/x#access_token=…"),
        ("no (https://host/x?abcdefghij0123456789AB==): gone", "no (https://host/x?…): gone"),
        ("GET /x?X-Amz-Signature=abcd&y=1 failed", "GET /x?X-Amz-Signature=…&y=1 failed"),
    ],
)
def test_credentials_are_found_by_their_place_in_a_uri(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert without_credentials(expected) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "abfs://datasets@acct.dfs.core.windows.net/out",
        "abfss://datasets@acct.dfs.core.windows.net/out",
        "wasb://datasets@acct.blob.core.windows.net/out",
        "wasbs://datasets@acct.blob.core.windows.net/out",
        "adl://datasets@acct/out",
        "az://datasets@acct/out",
        "oci://datasets@namespace/out",
        "github://organization:repository@revision/path",
        "hf://datasets/me/dataset@revision/y",
        "hf://models:something@revision/y",
        "sftp://longusername@host/x",
        "ssh://longusername@host:22/x",
        "ftp://anonymous:@host/x",
        "smb://workgroup;longusername@host/share",
        "webhdfs://namenode.company.internal:9870/user/jane@corp",
        "hdfs://namenode.company.internal:8020/user/jane@corp",
        "https://host.company.internal:8080/user/jane@corp",
        "https://host.company.internal:8080?mail=jane@corp.com",
        "http://[2001:db8:1:2:3:4:5:6]:8080/user/jane@corp",
        "https://host.company.internal/@someone/x",
        "s3://bucket-of-datasets/run@2",
        "s3://bucketname@region/x",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/run@2",
        "file:///data/run#lr=0.1/student/best",
        "file:///data/a?b/c",
        "file:///data/me:password1@x?token=abcdefghij0123456789",
        "memory://me:password1@x?token=abcdefgh",
        "zip://me:password1@x?token=abcdefgh::file:///data/x.zip",
        "/data/a@b:c?d",
        "/data/my set/x?token=abcdefgh",
        "runs/x?token=abcdefgh",
        "s3://bucket/a#b.parquet",
        "s3://bucket/a#epoch=3/x",
        "s3://bucket/a#token=abcdefgh/x",
        "s3://b/part-?.parquet",
        "s3://b/run-?/part-00000-0123abcd.parquet",
        "s3://b/part-?0000-0123abcdef.parquet",
        "s3://b/x?versionId=abcdefghij0123456789",
        "https://h/x?version=1",
        "https://h/x?everythingthatisofletters",
        "https://h/x?design=beautiful&author=somebody&keyword=something&monkey=business",
        "https://h/x?se=2026-11-27&sp=racwdlmeop",
    ],
)
def test_a_uri_without_secrets_stays_as_it_is_and_nothing_of_it_is_noted(uri: str, noted: credentials.Secrets) -> None:
    remember_credentials(uri)
    assert noted.longest_first == []
    assert without_credentials(uri) == uri
    assert redacted({"images": [uri]}) == {"images": [uri]}


def test_a_secret_of_a_uri_that_was_opened_is_found_wherever_a_library_quotes_it() -> None:
    with pytest.raises(DatasetError) as caught:
        storage.filesystem(f"unknown://me:{SECRET}@bucket/x?sig=token+token")
    assert "wJal" not in str(caught.value)
    assert "token" not in str(caught.value)
    message = f'Invalid bucket name "me:{SECRET}@bucket": sig token+token, wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCY'
    assert without_credentials(message) == 'Invalid bucket name "me:…@bucket": sig …, …'
    # A word of everyday is no secret, and would be missed in every message.
    remember_credentials("https://me:images@host/x?part=everything")
    assert without_credentials("images: everything") == "images: everything"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://me:password1@host/run@2", ["password1"]),
        ("sftp://a-long-name-of-a-user:password1@host/x", ["password1"]),
        ("s3://AKIAIOSFODNN7EXAMPLE:password1@bucket", ["AKIAIOSFODNN7EXAMPLE", "password1"]),
        # Each form counts by its own length.
        ("https://me:%70%61%73%73@host/x", ["%2570%2561%2573%2573", "%70%61%73%73"]),
        ("https://h/x#id_token=password1&x=1", ["password1"]),
        ("simplecache::http://[::1]/x?abcdefghij0123456789", ["abcdefghij0123456789"]),
    ],
)
def test_what_is_noted_is_the_secret_alone(uri: str, expected: list[str], noted: credentials.Secrets) -> None:
    remember_credentials(uri)
    assert noted.longest_first == expected


def test_of_many_secrets_the_latest_and_those_in_use_are_kept(noted: credentials.Secrets) -> None:
    for number in range(2500):
        remember_credentials(f"https://h/x?sig=signature-{number:05}")
        remember_credentials("s3://key:of-the-store@bucket")
    assert len(noted.longest_first) == 1000
    assert without_credentials("signature-00007 of-the-store signature-02499") == "signature-00007 … …"


def test_text_that_is_made_to_be_slow_is_not() -> None:
    started = time.process_time()
    for part in ("://", "://a:", "?key", "?key=", "a@b:", "&a", "?" + "a1" * 20, "::x://a@"):
        for text in ("https://" + part * 30_000, part * 30_000 + "://"):
            without_credentials(text)
            remember_credentials(text)
    # Quadratic time would be minutes.
    assert time.process_time() - started < 20


def test_errors_and_cut_texts_hold_no_credentials() -> None:
    uri = f"https://user:{SECRET * 9}@host/x"
    for text in (
        str(DatasetError(f"no {uri}")),
        repr(DatasetError(uri)),
        one_line(OSError(uri), limit=50),
        quoted(uri),
    ):
        assert "wJal" not in text
    assert b"wJal" not in pickle.dumps(DatasetError(uri))
    for text in (shortened(uri), short_name(uri), str(settings_section({"images": uri}).tables[0].rows)):
        assert "wJal" not in text
    with pytest.raises(ConfigError) as caught:
        parse_config(SynthesisConfig, ["--teacher.name=x", f"--output={uri}", f"--images_per_class={uri}"])
    assert "wJal" not in str(caught.value)


def test_lines_and_tracebacks_hold_neither_credentials_nor_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())
    print_safely()
    hostile = f"s3://k:{SECRET}@b/\x1b[2Jcat\nerror: all is lost\u202egnp\x85\u2028"
    logger.warning(hostile)
    assert capsys.readouterr().err == "warning: s3://…@b/\\x1b[2Jcat\\nerror: all is lost\\u202egnp\\x85\\u2028\n"
    try:
        raise OSError(hostile)
    except OSError as error:
        logger.error("it failed", exc_info=error)
        import sys

        sys.excepthook(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    assert printed.count("Traceback") == 2
    assert "wJal" not in printed
    assert "\x1b" not in printed
    assert one_printed_line("Käse\t猫 \U0001f408") == "Käse\t猫 \U0001f408"


def test_a_claim_holds_no_credentials_and_those_of_earlier_versions_still_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"images": f"s3://k:{SECRET}@b/x", "parts": ["https://h/y?sig=abcdefgh"], "n": 1}
    mine = make_document("calibrate", {"n": 1}, config)
    assert mine["config"] == {"images": "s3://…@b/x", "parts": ["https://h/y?sig=…"], "n": 1}
    assert redacted(mine) == mine
    assert claim(str(tmp_path), "calibrate", mine).new
    assert not claim(str(tmp_path), "calibrate", mine).new
    assert "wJal" not in (tmp_path / "config.json").read_text()
    assert capsys.readouterr().err == ""
    older: dict[str, Any] = {**mine, "config": config}
    (tmp_path / "config.json").write_text(json.dumps(older))
    for _ in range(2):
        assert not claim(str(tmp_path), "calibrate", mine).new
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "holds credentials" in line
