"""Files of strangers are data: they run no code, read nothing elsewhere, take little memory, and print no controls."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.status import StatusConfig, status
from pipeline.artifacts.formats import load_quantized
from pipeline.dataset import schema
from pipeline.dataset.card import read_card
from pipeline.dataset.discovery import find_source
from pipeline.dataset.own_card import dataset_card
from pipeline.dataset.rows import read_first, read_unit
from pipeline.dataset.schema import class_names_of, open_image
from pipeline.errors import CheckpointError, ConfigError, DatasetError, ModelError, PipelineError
from pipeline.evaluation.report import evaluation_page
from pipeline.evaluation.scores import Score
from pipeline.log import logger
from pipeline.models import ModelConfig, load_model
from pipeline.models.checkpoints import read_state_dict
from tests.conftest import make_manifest
from tests.report.page_check import check_page

DIGEST = "d" * 64


def short(value: object) -> str | None:
    """Id of a parameter in the name of a test: cut where it is long."""
    return str(value)[:30].encode("ascii", "replace").decode() if isinstance(value, str | bytes | dict) else None


EVIL = "</text></svg></script><script>alert('1')</script>\"'&{{7*7}}\x1b[31m"
NAMES = [
    *("a\n---\nlicense: mit", "---", "\u2028---\u2028x", "\x85---\x85", "\x1c---\x1c", "null", "2020-01-01", "a: b"),
    *("# c", "\x00\x1b[31m", "!!python/object/apply:os.system ['x']", "&a", "*a", "{}", EVIL, "|", " x ", "\ufeffx"),
    *("../../x", "=", "yes", "Käse \U0001f9c0"),
]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return self.path.write_text, ("ran",)


def torch_bomb(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": bomb}, buffer)
    return buffer.getvalue()


def npz_bomb(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([bomb], object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.pth", torch_bomb),
        ("a.safetensors", torch_bomb),
        ("b.safetensors", lambda bomb: pickle.dumps(bomb, 2)),
        ("a.npz", npz_bomb),
        ("a.npz", lambda bomb: pickle.dumps({"w": bomb}, 2)),
        ("a.index.json", torch_bomb),
        ("a.pt2", torch_bomb),
        ("a.onnx", torch_bomb),
    ],
    ids=short,
)
def test_a_pickle_under_any_name_runs_no_code(name: str, make: Callable[[Bomb], bytes], tmp_path: Path) -> None:
    file, ran = tmp_path / name, tmp_path / "ran"
    file.write_bytes(make(Bomb(ran)))
    with pytest.raises(CheckpointError):
        _ = load_quantized(file) if file.suffix in (".pt2", ".onnx") else read_state_dict(str(file), ["w"])
    assert not ran.exists()


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def zipped(members: dict[str, bytes], *, stated_size: int | None = None) -> bytes:
    """A zip archive; its directory may state another size of each member than it has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for entry in archive.infolist() if stated_size else ():
            entry.file_size = stated_size or 0
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", zipped({"w.npy": npy("(10**15,)".replace("10**15", str(10**15)))}), "not a readable npz file"),
        ("a.npz", zipped({"w.npy": npy("(-1,)")}), "not a readable npz file"),
        ("a.npz", zipped({"w.npy": b"x"}, stated_size=2**33), "would unpack"),
        ("a.pth", zipped({"x/data.pkl": b"x"}, stated_size=2**33), "would unpack"),
        ("a.safetensors", struct.pack("<Q", 2**62) + b"{" + b" " * 100, "corrupt"),
        ("a.index.json", b'{"weight_map": ' + b"[" * 200_000, "not the index"),
        ("a.index.json", b'{"weight_map": {"w": "../../etc/passwd"}}', "not a file beside it"),
        ("a.index.json", b'{"weight_map": {"w": "/etc/passwd"}}', "not a file beside it"),
        ("a.index.json", b'{"weight_map": {"w": 5}}', "cannot read"),
    ],
    ids=short,
)
def test_checkpoints_that_state_impossible_things_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(str(tmp_path / name), ["w"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped({"x/data.pkl": b"x"}, stated_size=2**33), "w.bin' would unpack"),
        (struct.pack("<Q", 10) + b'{"w": 5}  ', "w.bin' is not a readable safetensors file"),
    ],
    ids=short,
)
def test_a_file_that_an_index_names_is_checked_as_one_that_is_given(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    (tmp_path / "a.index.json").write_text('{"weight_map": {"w": "w.bin"}}')
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(str(tmp_path / "a.index.json"), ["w"])


def test_weights_without_values_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_model(ModelConfig(name=f"local-dir:{tiny_folder}")).model
    torch.save(model.to("meta").state_dict(), tmp_path / "w.pth")
    config = ModelConfig(name=f"local-dir:{tiny_folder}", checkpoint=str(tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="is without values"):
        load_model(config)


@pytest.mark.parametrize("name", ["a.pt2", "a.aoti.pt2"])
def test_artifacts_that_unpack_to_too_much_or_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(zipped({"m/extra/facts.json": b"{}"}, stated_size=2**33))
    with pytest.raises(CheckpointError, match="would unpack"):
        load_quantized(tmp_path / name, allow_compiled=True)
    (tmp_path / name).write_bytes(zipped({"m/models/model.json": b"{}", "m/extra/../../../escaped": b"x"}))
    with pytest.raises(CheckpointError):
        load_quantized(tmp_path / name, allow_compiled=True)
    assert not list(tmp_path.parent.rglob("escaped"))


@pytest.fixture(scope="module")
def stated(tiny_folder: Path) -> dict[str, Any]:
    return json.loads((tiny_folder / "config.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        *({"architecture": value} for value in ("hf-hub:evil/x", "local-dir:/", "../x", ["x"], 5, None)),
        *({"model_args": value} for value in ({"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, 5)),
        *({"model_args": {name: "os.system"}} for name in ("norm_layer", "act_layer", "block_fn")),
        {"model_args": {"embed_dim": 10**6, "num_heads": 2}},
        {"pretrained_cfg": ["x"]},
        *({"label_names": value} for value in (5, [["x"]] * 10, [*"abcdefghi", "\ud800"])),
    ],
    ids=short,
)
def test_a_model_folder_that_names_odd_things_is_refused(
    changes: dict[str, Any], stated: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**stated, **changes}))
    with pytest.raises((ModelError, CheckpointError, ConfigError)):
        load_model(ModelConfig(name=f"local-dir:{tmp_path / 'm'}"))


def test_a_model_folder_gets_its_weights_from_itself_and_runs_no_code_of_its_own(
    stated: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    elsewhere = {"url": "http://127.0.0.1:1/x", "file": "/etc/passwd", "source": "hf-hub", "custom_load": True}
    elsewhere |= {"hf_hub_id": "evil/x", "hf_hub_filename": "evil.bin", "classifier": 5, "first_conv": {"a": 1}}
    changed = {**stated, "auto_map": {"AutoModel": "evil.M"}, "trust_remote_code": True}
    changed["pretrained_cfg"] = {**stated["pretrained_cfg"], **elsewhere}
    (tmp_path / "m" / "config.json").write_text(json.dumps(changed))
    own = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    assert load_model(ModelConfig(name=f"local-dir:{tmp_path / 'm'}")).digest == own.digest
    assert not (tmp_path / "ran").exists()


def png(width: int, height: int, *, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


BOMB = png(50_000, 50_000, pixels=bytes(1000))


def write_rows(path: Path, image: bytes = b"", *, rows: int = 2, marks: bytes | None = None) -> Path:
    code = image or schema.encode_image(np.zeros((8, 8, 3), np.uint8))
    columns = {"image": pa.array([{"bytes": code, "path": "x"}] * rows, schema.IMAGE), "label": [0] * rows}
    table = pa.table(columns).replace_schema_metadata({} if marks is None else {"huggingface": marks})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_a_decompression_bomb_is_refused_in_folders_and_rows(tmp_path: Path) -> None:
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    (tmp_path / "folder" / "cat" / "x.png").write_bytes(BOMB)
    write_rows(tmp_path / "rows" / "x.parquet", BOMB)
    for name in ("folder", "rows"):
        source = find_source(str(tmp_path / name))
        (code,) = read_first(source, ["image"])["image"].to_pylist()
        with pytest.raises(DatasetError, match=r"cannot be decoded: Image size \(2500000000 pixels\) exceeds limit"):
            open_image(code, "x", source.uri)


def test_truncated_files_are_refused_and_polyglots_are_the_image_that_they_begin_with() -> None:
    whole = schema.encode_image(np.full((8, 8, 3), 7, np.uint8))
    with pytest.raises(DatasetError, match="cannot be decoded"):
        open_image(whole[:-30], "x")
    both = whole + zipped({"evil.py": b"x"}) + b"<script>alert(1)</script>"
    assert np.asarray(open_image(both, "x")).tolist() == np.full((8, 8, 3), 7).tolist()
    for text in (b"GIF89a=1;/*", b"<svg onload=alert(1)>", b"%!PS-Adobe\n(x) run"):
        with pytest.raises(DatasetError, match="cannot be decoded"):
            open_image(text, "x")


@pytest.mark.parametrize(
    "marks",
    [
        *(
            b"[]",
            b"5",
            b'{"info": 5}',
            b'{"info": {"features": []}}',
            b'{"info": {"features": {"label": {"names": 5}}}}',
        ),
        *(b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe", b"nul", b""),
    ],
    ids=short,
)
def test_marks_of_other_types_are_no_class_names(marks: bytes) -> None:
    assert class_names_of({b"huggingface": marks}) is None


def test_a_parquet_file_that_states_endless_rows_is_refused(tmp_path: Path) -> None:
    content = write_rows(tmp_path / "x.parquet", rows=100).read_bytes()
    (size,) = struct.unpack("<I", content[-8:-4])
    # 100 and 2 ** 47 - 1 as Thrift's compact protocol has them.
    footer = content[-8 - size : -8].replace(b"\xc8\x01", b"\xfe\xff\xff\xff\xff\xff\x3f")
    changed = content[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"
    (tmp_path / "x.parquet").write_bytes(changed)
    with pytest.raises(DatasetError, match=r"states 140737488355327 rows in \d+ bytes"):
        find_source(str(tmp_path))


def test_class_names_and_file_names_of_strangers_print_no_controls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = json.dumps({"info": {"features": {"label": {"names": NAMES}}}}).encode()
    source = find_source(str(write_rows(tmp_path / "x\x1b[2J\nerror: y" / "x.parquet", marks=marks)))
    assert source.class_names == NAMES
    assert len(next(read_unit(source, source.units[0]))) == 2
    logger.warning(f"{source.uri}: {', '.join(NAMES)}")
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert "\\x1b[2J\\nerror: y" in line


def test_links_out_of_a_folder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "private").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "private" / "me.png")
    (tmp_path / "set" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "cat" / "a.png")
    (tmp_path / "set" / "cat" / "b.png").symlink_to("a.png")
    find_source(str(tmp_path / "set"))
    assert "out of the folder" not in capsys.readouterr().err
    (tmp_path / "set" / "cat" / "c.png").symlink_to("../../private/me.png")
    find_source(str(tmp_path / "set"))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "out of the folder" in line)
    assert "followed 1 link out of the folder, such as 'cat/c.png' to" in line
    assert "warning" not in line


def test_a_snapshot_of_the_hugging_face_cache_is_made_of_links_and_no_line_tells_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot, blobs = tmp_path / "datasets--me--x" / "snapshots" / "0123abcd", tmp_path / "datasets--me--x" / "blobs"
    (snapshot / "data").mkdir(parents=True)
    write_rows(blobs / "beef")
    (snapshot / "data" / "x.parquet").symlink_to("../../../blobs/beef")
    for folder in (snapshot, snapshot / "data"):
        find_source(str(folder))
        assert capsys.readouterr().err == ""
    write_rows(tmp_path / "elsewhere")
    (snapshot / "data" / "y.parquet").symlink_to(tmp_path / "elsewhere")
    find_source(str(snapshot))
    assert "followed 1 link out of the folder, such as 'data/y.parquet' to" in capsys.readouterr().err


def test_names_that_are_not_text_are_refused_where_they_are_read_alone(tmp_path: Path) -> None:
    def latin(folder: Path, name: bytes) -> Path:
        return Path(os.fsdecode(os.fsencode(folder) + b"/" + name))

    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.png")
    latin(tmp_path, b".\xff").mkdir()
    for name in (b".\xff.png", b"\xff.txt"):
        latin(tmp_path / "cat", name).write_text("notes")
    assert find_source(str(tmp_path)).class_names == ["cat"]
    Image.new("RGB", (8, 8)).save(latin(tmp_path / "cat", b"\xff.png"), format="PNG")
    with pytest.raises(DatasetError, match="is not text in UTF-8: rename it"):
        find_source(str(tmp_path))
    latin(tmp_path / "cat", b"\xff.png").unlink()
    latin(tmp_path, b"\xff").mkdir()
    with pytest.raises(DatasetError, match="is not text in UTF-8: rename it"):
        find_source(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_shards": value} for value in ("5", True, -1, 10**15, 1.5)),
        *({"digest": value} for value in ("../../../etc", "x\n\x1b[31m", "d" * 63 + "/", 5)),
        *({"image_size": value} for value in ([3, -1, 8], [3, 8], "x", [[3], 8, 8])),
        *({"class_names": value} for value in ([1, None], {"a": 1}, [["x"]])),
        *({"num_images": value} for value in (-1, 10**30)),
        *({"teacher": value} for value in ("x", {"name": ["x"], "weights_sha256": "x"})),
        *({"schema_version": value} for value in ([2], {}, 10**9)),
    ],
    ids=short,
)
def test_a_manifest_of_other_types_or_sizes_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**make_manifest(DIGEST), **changes}))
    with pytest.raises(DatasetError, match=r"manifest\.json") as caught:
        status(StatusConfig(uri=str(tmp_path)))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "[" * 200_000),
        ("failed/shard-00000.json", "5"),
        ("failed/shard-00000.json", '{"reason": 5}'),
        ("data/part-00000-" + "e" * 8 + ".parquet", ""),
        ("data/x\n.parquet", ""),
    ],
    ids=short,
)
def test_files_of_a_dataset_that_are_others_are_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(make_manifest(DIGEST)))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError):
        status(StatusConfig(uri=str(tmp_path)))


@pytest.mark.parametrize(
    ("job", "name", "content"),
    [
        ("calibrate", "report.json", '{"artifacts": [5]}'),
        ("calibrate", "report.json", '{"artifacts": 5}'),
        ("calibrate", "report.json", "[" * 200_000),
        ("distill", "metrics.jsonl", "5"),
        ("distill", "metrics.jsonl", '{"a": ' * 200_000),
    ],
    ids=short,
)
def test_outputs_of_other_types_are_refused(job: str, name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"job": job, "config": 5}))
    (tmp_path / name).write_text(content)
    with pytest.raises(PipelineError):
        status(StatusConfig(uri=str(tmp_path)))


def test_the_header_of_a_dataset_card_holds_any_class_names(tmp_path: Path) -> None:
    manifest = make_manifest(DIGEST, class_names=NAMES, schema_version=2)
    for names in (NAMES, [name for name in NAMES if "\x85" not in name and "\u2028" not in name]):
        (tmp_path / "README.md").write_text(dataset_card({**manifest, "class_names": names}), encoding="utf-8")
        card = read_card(str(tmp_path))
        assert card["license"] == "unknown"
        read = card["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
        assert [read[str(label)] for label in range(len(names))] == names
    assert "Käse \U0001f9c0" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: " + "[" * 5000 + "\n", "a: !!python/name:os.system\n"], ids=short)
def test_a_hostile_dataset_card_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{text}---\n")
    with pytest.raises(DatasetError, match="header that is not YAML"):
        read_card(str(tmp_path))


def test_the_page_of_an_evaluation_shows_what_strangers_wrote_as_text() -> None:
    scores = {f"s3://k:secret@b/{EVIL}{n}": Score(4, 1.0, 1.0, 1.0, {(0, n): 4}) for n in range(2)}
    config = {"labeled": f"https://u:secret@h/{EVIL}?sig=secret", "artifacts": list(scores)}
    read = check_page(evaluation_page(config, scores, [EVIL, f"{EVIL}2"]))
    assert "script" not in read.tags
    assert "secret" not in "".join(read.texts)
