from pipeline.hashing import hash_number


def test_a_number_is_the_beginning_of_the_sha256() -> None:
    # `printf abc | sha256sum` begins with ba7816bf8f01cfea.
    assert hash_number("abc", 5) == 0xBA7816BF8F
    assert hash_number("abc", 8) == 0xBA7816BF8F01CFEA
