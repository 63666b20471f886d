"""Credentials in URIs are left out of texts, errors, logs, claims and pages, also where a library quotes them."""

import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import credentials, storage
from pipeline.config import parse_config
from pipeline.credentials import redacted, remember_credentials, without_credentials
from pipeline.errors import ConfigError, DatasetError, one_line, shown
from pipeline.log import logger, one_printed_line, print_safely
from pipeline.report.text import short_name, shortened
from pipeline.report.writing import settings_section
from pipeline.runs import claim, make_document
from pipeline.synthesis.config import SynthesisConfig

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget at the end what was noted: it would be masked in other tests."""
    before = set(credentials._known)
    yield
    credentials._known.clear()
    credentials._known.update(before)
    remember_credentials.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"s3://AKIA:{SECRET}@bucket/key", "s3://…@bucket/key"),
        ("https://me:p@ss@host/x is gone", "https://…@host/x is gone"),
        ("https://token@host/x.parquet?X-Amz-Signature=abc&d=1", "https://…@host/x.parquet?…"),
        ("az://container/x?sv=1&sig=abc", "az://container/x?…"),
        ("zip://x.parquet::https://me:pw@host/x.zip?sig=1", "zip://x.parquet::https://…@host/x.zip?…"),
        ("{'a': 's3://k:s@b/x', 'b': 'https://h/y?z'}", "{'a': 's3://…@b/x', 'b': 'https://h/y?…'}"),
        ("https://host/x#access_token=abc", "https://host/x#…"),
        ("GET /x?X-Amz-Signature=abcd&y=1 failed", "GET /x?X-Amz-Signature=…&y=1 failed"),
        ("hf://datasets/me/x@main/y", "hf://datasets/me/x@main/y"),
        ("s3://bucket/a#b.parquet", "s3://bucket/a#b.parquet"),
        ("/data/a@b:c?d", "/data/a@b:c?d"),
    ],
)
def test_credentials_are_found_by_their_place_in_a_uri(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert without_credentials(expected) == expected


def test_a_secret_of_a_uri_that_was_opened_is_found_wherever_a_library_quotes_it() -> None:
    with pytest.raises(DatasetError) as caught:
        storage.filesystem(f"unknown://me:{SECRET}@bucket/x?sig=tokentoken")
    assert "SECRET" not in str(caught.value)
    message = f'Invalid bucket name "me:{SECRET}@bucket": sig tokentoken, wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCY'
    assert without_credentials(message) == 'Invalid bucket name "me:…@bucket": sig …, …'
    # A word of everyday is no secret, and would be missed in every message.
    remember_credentials("https://me:images@host/x?part=everything")
    assert without_credentials("images: everything") == "images: everything"


def test_text_that_is_made_to_be_slow_is_not() -> None:
    for text in ("://" * 50_000, "://a:" * 50_000, "?key" * 50_000, "://" + "a:" * 50_000, "::" * 50_000 + "://"):
        without_credentials(text)


def test_errors_and_cut_texts_hold_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"https://user:{SECRET * 9}@host/x"
    for text in (str(DatasetError(f"no {uri}")), repr(DatasetError(uri)), one_line(OSError(uri), limit=50), shown(uri)):
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
    assert mine["config"] == {"images": "s3://…@b/x", "parts": ["https://h/y?…"], "n": 1}
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
