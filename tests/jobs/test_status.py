import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import status
from pipeline.dataset import store
from pipeline.dataset.index import index_table, write_index
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
    line = json.loads(capsys.readouterr().out)
    assert line["complete"] is False
    assert (line["num_shards"], line["num_done"], line["missing"]) == (3, 1, [2])
    assert line["failed"][0]["shard_id"] == 1
    assert line["failed"][0]["reason"] == "shard 1: tv_l2 is not finite at step 7"
    for shard_id in (1, 2):
        store.write_part(output, shard_id, DIGEST, part(shard_id))
    assert status.main(["--uri", output]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_a_large_dataset_that_was_hardly_begun_is_a_short_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write_manifest(str(tmp_path), make_manifest(DIGEST) | {"num_shards": 100_000, "num_images": 200_000})
    for shard_id in (3, 5, 50_000):
        store.write_part(str(tmp_path), shard_id, DIGEST, part(shard_id))
    assert status.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    line = json.loads(out)
    assert (line["num_missing"], line["num_failed"], line["num_damaged"]) == (99_997, 0, 0)
    assert line["missing"] == ["0-2", 4, "6-49999", "50001-99999"]
    assert len(out) < 1_000


def test_the_hours_of_gpus_and_their_cost_are_of_the_index_and_the_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = {"gpus_per_actor": 0.5, "price_per_hour": 0.3}
    store.write_manifest(str(tmp_path), make_manifest(DIGEST, config={"pool": pool}))
    made = {"num_rows": 2, "bytes": len(part(0)), "row_group_bytes": 100, "device": "NVIDIA L4"}
    for shard_id in range(3):
        store.write_part(str(tmp_path), shard_id, DIGEST, part(shard_id))
    rows = [{**made, "shard_id": 0, "seconds": 7200.0}, {**made, "shard_id": 1, "seconds": 3600.0}]
    write_index(str(tmp_path), DIGEST, index_table([*rows, {**made, "shard_id": 2, "device": None}]))
    assert status.main([str(tmp_path)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["actor_hours"], line["gpu_hours"], line["cost"]) == (3.0, 1.5, 0.9)


@pytest.mark.parametrize("pool", [{"gpus_per_actor": 0}, {"price_per_hour": "much"}])
def test_a_pool_that_is_none_is_one_line(
    pool: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write_manifest(str(tmp_path), make_manifest(DIGEST, config={"pool": pool}))
    assert status.main([str(tmp_path)]) == 1
    assert f"manifest.json of {str(tmp_path)!r}: pool.{next(iter(pool))} must " in capsys.readouterr().err


def test_a_part_that_was_cut_off_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path))
    for shard_id, content in enumerate((part(0), part(1)[:-5], part(2))):
        store.write_part(str(tmp_path), shard_id, DIGEST, content)
    assert status.main([str(tmp_path)]) == 1
    (damaged,) = json.loads(capsys.readouterr().out)["damaged"]
    assert damaged["shard_id"] == 1
    assert "part-00001-01234567.parquet" in damaged["reason"]


def test_a_file_of_another_origin_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path))
    for shard_id, content in enumerate((part(0), part(0), part(2))):
        store.write_part(str(tmp_path), shard_id, DIGEST, content)
    assert status.main([str(tmp_path)]) == 1
    (damaged,) = json.loads(capsys.readouterr().out)["damaged"]
    assert damaged["shard_id"] == 1
    assert "names another shard" in damaged["reason"]


NEITHER = "holds neither a synthetic dataset nor the output of a calibration or a distillation"

GOES_ON = "run it again, and it goes on from them"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "is not there: no file or folder has that name"),
        ("", NEITHER),
        ("empty", f"{NEITHER}: it is empty, no job has begun there"),
        ("file.parquet", "is a file: give the folder that a job wrote it into"),
        ("model", NEITHER),
        ("stopped", f"{NEITHER}, but checkpoints of a calibration that was stopped: {GOES_ON}"),
        ("scores", "is the output of jobs.evaluate, which is complete once it has its evaluation.json"),
    ],
)
def test_nothing_of_ours_there(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.parquet").write_bytes(part(0))
    (tmp_path / "empty").mkdir()
    write(tmp_path / "model" / "config.json", {"architecture": "vit_tiny_patch16_224", "num_classes": 10})
    write(tmp_path / "scores" / "evaluation.json", {})
    write(tmp_path / "stopped" / ".qat-checkpoints" / "w4a4-01234567" / "checkpoints" / "epoch-00001.pt", {})
    assert status.main([str(tmp_path / name)]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == f"error: DatasetError: {str(tmp_path / name)!r} {message}\n"


def test_of_a_folder_of_outputs_these_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "calibrate" / "sparse" / "config.json", {"job": "calibrate", "digest": DIGEST})
    begin(str(tmp_path / "dense"))
    assert status.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(f" {NEITHER}, but calibrate/sparse, dense: give one of these\n")


def test_an_empty_location_is_not_the_working_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([""]) == 1
    assert capsys.readouterr().err == "error: ConfigError: uri must name the output of a job, it is empty\n"


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def status_of(output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = status.main([str(output)])
    return code, json.loads(capsys.readouterr().out)


def test_a_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "config.json", {"job": "calibrate", "digest": DIGEST})
    for name in ("ranges.json", "w8a8.pt2", "w8a8.onnx"):
        write(tmp_path / name, {})
    code, line = status_of(tmp_path, capsys)
    assert (code, line["complete"], line["missing"]) == (1, False, ["report.json"])
    assert line["artifacts"] == ["w8a8.onnx", "w8a8.pt2"]
    write(tmp_path / "report.json", {"artifacts": [{"uri": "elsewhere/w8a8.pt2"}, {"uri": "elsewhere/w8a8.onnx"}]})
    assert status_of(tmp_path, capsys) == (0, {**line, "complete": True, "missing": []})
    (tmp_path / "w8a8.onnx").unlink()
    code, line = status_of(tmp_path, capsys)
    assert (code, line["complete"], line["missing"]) == (1, False, ["w8a8.onnx"])
    refused = [{"artifact": "w8a8.onnx", "reason": "its logits are off"}]
    write(tmp_path / "report.json", {"artifacts": [{"uri": "elsewhere/w8a8.pt2"}], "failed": refused})
    code, line = status_of(tmp_path, capsys)
    assert (code, line["complete"], line["missing"], line["failed"]) == (1, False, [], refused)


def test_artifacts_of_an_earlier_run_are_not_those_of_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "config.json", {"job": "calibrate", "digest": DIGEST})
    for name in ("ranges.json", "w4a4.onnx", "w4a4.pt2", "w8a8.onnx", "w8a8.pt2"):
        write(tmp_path / name, {})
    # Without a report it is not known whose they are.
    assert status_of(tmp_path, capsys)[1]["left"] == []
    # That w8a8.onnx could not be made anew: the file is of the run before.
    failed = [{"artifact": "w8a8.onnx", "reason": "could not be made; the file of an earlier run is left"}]
    write(tmp_path / "report.json", {"artifacts": [{"uri": "elsewhere/w8a8.pt2"}], "failed": failed})
    line = status_of(tmp_path, capsys)[1]
    assert (line["artifacts"], line["left"]) == (["w8a8.pt2"], ["w4a4.onnx", "w4a4.pt2", "w8a8.onnx"])


def test_a_distillation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # As it was written before it said whose it is.
    old = {"digest": DIGEST, "student": "s", "teacher": "t", "dataset": None, "config": {"epochs": 3}}
    write(tmp_path / "config.json", old)
    assert status_of(tmp_path, capsys)[1]["epochs_done"] == 0
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    write(tmp_path / "checkpoints" / "epoch-00002.pt", {})
    code, line = status_of(tmp_path, capsys)
    assert (code, line["job"], line["complete"], line["epochs"], line["epochs_done"]) == (
        1,
        "distill",
        False,
        3,
        2,
    )
    assert line["checkpoints"] == ["epoch-00002.pt"]
    assert "result.json" in line["missing"]
    for name in ("student/best/config.json", "student/last/config.json", "result.json"):
        write(tmp_path / name, {})
    code, line = status_of(tmp_path, capsys)
    assert (code, line["complete"], line["missing"]) == (0, True, [])


@pytest.mark.parametrize(
    "line", ["-q OUT", "--watch OUT", "OUT -q --watch", "--every_s 5 OUT --watch false", "-v --uri OUT"]
)
def test_the_uri_may_stand_anywhere(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path))
    for shard_id in range(3):
        store.write_part(str(tmp_path), shard_id, DIGEST, part(shard_id))
    assert status.main(line.replace("OUT", str(tmp_path)).split()) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path)


def test_two_uris_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path))
    assert status.main([str(tmp_path), "other"]) == 1
    assert "other" in capsys.readouterr().err


def test_usage_without_a_uri(capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([]) == 1
    assert "uri" in capsys.readouterr().err
