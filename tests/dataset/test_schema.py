import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dataset import schema
from pipeline.dataset.card import card_class_names
from pipeline.errors import DatasetError


def make_images(count: int = 4, channels: int = 3, side: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_keeps_pixels_and_mode(channels: int, mode: str) -> None:
    image = make_images(1, channels)[0]
    code = schema.encode_image(image)
    assert Image.open(io.BytesIO(code)).mode == mode
    np.testing.assert_array_equal(schema.decode_image(code, "x"), image)


def test_png_holds_pixels_and_nothing_else() -> None:
    code = schema.encode_image(make_images(1)[0])
    chunks, at = [], 8
    while at < len(code):
        chunks.append(code[at + 4 : at + 8])
        at += 12 + int.from_bytes(code[at : at + 4], "big")
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_encode_refuses_what_is_no_image(image: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="uint8"):
        schema.encode_image(image)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)],
)
def test_decode_any_mode(mode: str, channels: int) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 3)).save(buffer, format="JPEG" if mode == "CMYK" else "PNG")
    pixels = schema.decode_image(buffer.getvalue(), "x")
    assert pixels.shape == (3, 5, channels)
    assert pixels.dtype == np.uint8


def test_decode_16_bit_keeps_the_range() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(buffer, format="PNG")
    np.testing.assert_array_equal(schema.decode_image(buffer.getvalue(), "x")[0, :, 0], [0, 1, 255])


@pytest.mark.parametrize("content", [b"", b"no image", b"truncated"])
def test_decode_refuses_and_names_the_image(content: bytes) -> None:
    code = schema.encode_image(make_images(1)[0])[:-30] if content == b"truncated" else content
    with pytest.raises(DatasetError, match=r"image 'digit-7' of 'x\.parquet' cannot be decoded: ") as refused:
        schema.decode_image(code, "digit-7", "x.parquet")
    assert "object at" not in str(refused.value)


def test_schema_has_the_types_of_the_contract() -> None:
    found = {field.name: str(field.type) for field in schema.arrow_schema(["a"])}
    assert found == {
        "image": "struct<bytes: binary, path: string>",
        "label": "int64",
        "keep_indices": "list<item: int16>",
        "image_id": "string",
        "shard_id": "int32",
        "class_loss": "float",
        "teacher_confidence": "float",
        "teacher_prediction": "int64",
    }


def test_class_names_survive() -> None:
    assert schema.class_names_of(schema.arrow_schema(["a", "b"]).metadata) == ("a", "b")
    assert schema.class_names_of(schema.arrow_schema(None).metadata) is None
    assert schema.class_names_of(None) is None
    assert schema.class_names_of({b"huggingface": b"{"}) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ([0, 1], ("0", "1")),
        ({"1": "b", "0": "a"}, ("a", "b")),
        # Without label 1, `c` would be taken for it.
        ({"0": "a", "2": "c"}, None),
        ({"a": "0"}, None),
        ([None, None], None),
        (None, None),
        ("ab", None),
    ],
)
def test_class_names_are_those_of_every_label_or_none(names: Any, expected: tuple[str, ...] | None) -> None:
    marks = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    assert schema.class_names_of({b"huggingface": json.dumps(marks).encode()}) == expected
    card = {"dataset_info": {"features": [{"name": "label", "dtype": {"class_label": {"names": names}}}]}}
    assert card_class_names(card, None) == (None if expected is None else list(expected))


FEW, MANY = ["ant", "bee"], [f"class {number}" for number in range(5000)]


@pytest.mark.parametrize(("names", "shards"), [(FEW, [0, 1, 7]), (MANY, [0])])
def test_many_class_names_stand_in_the_first_part_alone(names: list[str], shards: list[int]) -> None:
    parts = {shard_id: schema.part_schema(names, shard_id).metadata for shard_id in (0, 1, 7)}
    assert [shard_id for shard_id, facts in parts.items() if schema.class_names_of(facts)] == shards
    assert {schema.names_digest_of(facts) for facts in parts.values()} == {schema.names_digest(names)}
    assert all(len(str(facts)) < 1500 for shard_id, facts in parts.items() if shard_id not in shards)


def test_a_part_of_version_1_has_the_metadata_it_always_had() -> None:
    facts = {"digest": "d", "shard_id": "3", "schema_version": "1"}
    part = schema.part_schema(MANY, 3, metadata=facts, version=1)
    assert part.equals(schema.arrow_schema(MANY, metadata=facts), check_metadata=True)
    assert list(part.metadata) == [b"huggingface", b"digest", b"shard_id", b"schema_version"]
    assert schema.names_digest_of(part.metadata) == schema.names_digest(MANY)


def test_parquet_is_zstd_and_the_same_each_time() -> None:
    images = make_images()
    names = [f"{row}" for row in range(len(images))]
    columns = {"image": schema.image_column(images, names), "label": [0, 1, 0, 1], "image_id": names}
    table = pa.table(columns, schema=schema.arrow_schema(["a", "b"], columns=list(columns), metadata={"digest": "d"}))
    content = schema.to_parquet(table)
    assert content == schema.to_parquet(table)
    footer = pq.read_metadata(io.BytesIO(content))
    assert footer.num_row_groups == 1
    assert {footer.row_group(0).column(index).compression for index in range(4)} == {"ZSTD"}
    assert footer.metadata is not None
    assert footer.metadata[b"digest"] == b"d"


def test_a_png_that_is_cut_off_or_changed_is_no_whole_one() -> None:
    encoded = schema.encode_image(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    assert schema.is_whole_png(encoded)
    assert not any(schema.is_whole_png(encoded[:length]) for length in range(len(encoded)))
    assert not schema.is_whole_png(encoded + b"x")
    for place in range(len(encoded)):
        changed = bytearray(encoded)
        changed[place] ^= 1
        assert not schema.is_whole_png(bytes(changed)), place
