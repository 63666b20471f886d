"""Files of another kind than expected are recognized by their content."""

import pytest

from pipeline.file_kinds import recognize_foreign


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
        ),
        (b"<!DOCTYPE html>", "is a web page (HTML or XML), perhaps an error or a login: download the file itself"),
        (b'{"error": 1}', "is JSON, not an image"),
        (b"404: not found", "is text, not an image ('404: not found')"),
        (b"\x89PNG", None),
        (b"PAR1", "is a Parquet file, not an image"),
        # A phone's photo that was named .jpg.
        (b"\0\0\0\x18ftypheic", "is a HEIC photo: save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypmp42\x81", None),
        (b"PK\x03\x04 and more", "is corrupt, a zip archive that is cut off: download or copy it again"),
        # The first byte of a Flax checkpoint, as of anything else.
        (b"\x81\xff\0", None),
    ],
)
def test_what_no_image_is(content: bytes, reported: str | None) -> None:
    assert recognize_foreign(content, "an image") == reported


def test_the_head_of_an_archive_is_not_called_cut_off() -> None:
    assert recognize_foreign(b"PK\x03\x04", "a Parquet file", whole=False) == (
        "is a zip archive: unpack it, and give the file inside"
    )
