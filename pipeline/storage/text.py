"""Decode text files that users give."""

from pipeline.file_kinds import is_lfs_pointer


def decode_text(content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 with one, as Windows writes it.

    Raises:
        ValueError: the content is not text; the message is the predicate of a sentence about the file.
    """
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text in {'UTF-16' if encoding == 'utf-16' else 'UTF-8'} ({error.reason})") from error
    if "\0" in text:
        raise ValueError("is not text")
    if is_lfs_pointer(text[:64].encode()):
        raise ValueError("is a Git LFS pointer, not the file itself: run `git lfs pull`")
    return text
