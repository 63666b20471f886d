"""Text as editors and tools write it."""

import pytest

from pipeline.storage import decode_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_is_no_text(encoding: str) -> None:
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    assert decode_text(mark + "né\n".encode(encoding)) == "né\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xe9", "is not text in UTF-8"),
        (b"\xff\xfea", "is not text in UTF-16"),
        (b"a\0", "is not text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_what_is_no_text(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_text(content)
