import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import status
from pipeline.dataset import store
from pipeline.dataset.schema import to_parquet
from tests.conftest import make_manifest

DIGEST = "0123456789abcdef" * 4


def part(shard_id: int) -> bytes:
    """A part's file, as far as it is looked at here: its metadata says which one it is."""
    facts = {"digest": DIGEST, "shard_id": str(shard_id)}
    return to_parquet(pa.table({"label": [1, 2]}).replace_schema_metadata(facts))


def begin(output: str) -> None:
    store.write_manifest(output, make_manifest(DIGEST))


@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_is_done_missing_and_failed_and_why(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path) if place == "local" else f"memory://{tmp_path.name}"
    begin(output)
    store.write_part(output, 0, DIGEST, part(0))
    store.write_failure(output, 1, {"error": "NonFiniteError", "reason": "shard 1: tv_l2 is not finite at step 7"})
    assert status.main([output]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["complete"] is False
    assert (told["num_shards"], told["num_done"], told["missing"]) == (3, 1, [2])
    assert told["failed"][0]["shard_id"] == 1
    assert told["failed"][0]["reason"] == "shard 1: tv_l2 is not finite at step 7"
    for shard_id in (1, 2):
        store.write_part(output, shard_id, DIGEST, part(shard_id))
    assert status.main(["--uri", output]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_a_part_that_was_cut_off_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path))
    for shard_id, content in enumerate((part(0), part(1)[:-5], part(2))):
        store.write_part(str(tmp_path), shard_id, DIGEST, content)
    assert status.main([str(tmp_path)]) == 1
    (damaged,) = json.loads(capsys.readouterr().out)["damaged"]
    assert damaged["shard_id"] == 1
    assert "part-00001-01234567.parquet" in damaged["reason"]


def test_a_file_of_another_origin_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path))
    for shard_id, content in enumerate((part(0), part(0), part(2))):
        store.write_part(str(tmp_path), shard_id, DIGEST, content)
    assert status.main([str(tmp_path)]) == 1
    (damaged,) = json.loads(capsys.readouterr().out)["damaged"]
    assert damaged["shard_id"] == 1
    assert "names another shard" in damaged["reason"]


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_dataset_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(tmp_path / name)]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "DatasetError" in streams.err
    assert "manifest.json" in streams.err


def test_usage_without_a_uri(capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([]) == 1
    assert "uri" in capsys.readouterr().err
