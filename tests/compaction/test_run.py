"""The job: what it writes, killed and run again, on failing storage, on an object store; and that readers take it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from jobs import compact as job
from jobs import status
from pipeline import storage
from pipeline.compaction import compact, files_left
from pipeline.compaction.plan import plan_compaction
from pipeline.config import to_dict
from pipeline.dataset import read_images, store
from pipeline.dataset.collection import find_images, image_facts
from pipeline.dataset.discovery import find_source
from pipeline.dataset.index import INDEX, read_index
from pipeline.dataset.open_files import OpenFiles
from pipeline.dataset.rows import read_columns, read_unit
from pipeline.errors import DatasetError
from pipeline.outputs.owners import check_output
from pipeline.storage import upload_folder
from tests.compaction.conftest import DIGEST, NUM_SHARDS, bytes_of, make_config, make_dataset, rows_of, write_part
from tests.compaction.failing import die_once, run_out_of_disk, write_elsewhere
from tests.synthesis.conftest import start
from tests.synthesis.test_kill import KILLER

pytestmark = pytest.mark.usefixtures("ray_session")

FILES = [
    "part-00000-00001-01234567.parquet",
    "part-00002-00003-01234567.parquet",
    "part-00004-00005-01234567.parquet",
    "part-00006-01234567.parquet",
]


@pytest.fixture(scope="module")
def compacted(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[str, str, dict[str, Any]]:
    """A dataset, the compacted one, and what the job said; look and do not touch."""
    folder = tmp_path_factory.mktemp("compacted")
    dataset = make_dataset(str(folder / "dataset"))
    for name in ("report.html", "contact_sheet.png"):
        (Path(dataset) / name).write_text(name)
    return dataset, str(folder / "compact"), compact(make_config(dataset, folder / "compact"))


def test_the_rows_are_the_same_in_the_same_order(compacted: tuple[str, str, dict[str, Any]]) -> None:
    dataset, output, _ = compacted
    assert rows_of(output) == rows_of(dataset)
    assert len(rows_of(output)) == 21


def test_files_have_the_size_asked_for_and_the_summary_says_what_was_done(
    compacted: tuple[str, str, dict[str, Any]],
) -> None:
    _, output, summary = compacted
    files = sorted(Path(output, "data").iterdir())
    assert [file.name for file in files] == FILES
    assert all(20_000 < file.stat().st_size <= 40_000 for file in files[:-1])
    seconds = summary.pop("seconds")
    assert seconds > 0
    assert summary == {
        "complete": True,
        "output": output,
        "digest": DIGEST,
        "num_parts": 7,
        "num_missing": 0,
        "num_files": 4,
        "num_files_made": 4,
        "num_images": 21,
        "bytes": sum(file.stat().st_size for file in files),
    }
    summary["seconds"] = seconds


def test_everything_beside_the_parts_is_kept(compacted: tuple[str, str, dict[str, Any]]) -> None:
    dataset, output, _ = compacted
    before, after = bytes_of(dataset), bytes_of(output)
    names = {"manifest.json", "README.md", INDEX, "report.html", "contact_sheet.png"}
    assert {name for name in after if not name.startswith("data/")} == names
    assert after["report.html"] == before["report.html"]
    manifest = store.read_manifest(output)
    assert manifest.pop("compaction")["num_files"] == 4
    assert manifest == store.read_manifest(dataset)
    assert after["README.md"] == before["README.md"].replace(b"in 7 Parquet files", b"in 4 Parquet files")
    assert after["README.md"] != before["README.md"]


def test_the_index_has_what_is_known_of_each_part(compacted: tuple[str, str, dict[str, Any]]) -> None:
    dataset, output, _ = compacted
    before, after = read_index(dataset, DIGEST), read_index(output, DIGEST)
    assert after.drop_columns(["bytes"]).equals(before.drop_columns(["bytes"]))
    sizes = [Path(output, "data", name).stat().st_size for name in FILES]
    assert after["bytes"].to_pylist() == [sizes[shard_id // 2] for shard_id in range(7)]


def test_status_says_that_it_is_complete(
    compacted: tuple[str, str, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status.main([compacted[1]]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["job"], line["num_done"], line["missing"], line["damaged"]) == ("compact", 7, [], [])
    assert status.main([compacted[1], "--watch"]) == 0
    assert "7 of 7 done (100%)" in capsys.readouterr().err
    # Without an index, and with a file that is cut off.
    upload_folder(compacted[1], str(tmp_path))
    (tmp_path / INDEX).unlink()
    assert status.main([str(tmp_path)]) == 0
    capsys.readouterr()
    file = tmp_path / "data" / FILES[1]
    file.write_bytes(file.read_bytes()[:-9])
    assert status.main([str(tmp_path)]) == 1
    damaged = json.loads(capsys.readouterr().out)["damaged"]
    assert [part["shard_id"] for part in damaged] == [2, 3]
    assert all(FILES[1] in part["reason"] for part in damaged)


def test_readers_find_the_same_with_and_without_the_index(
    compacted: tuple[str, str, dict[str, Any]], tmp_path: Path
) -> None:
    upload_folder(compacted[1], str(tmp_path))
    (tmp_path / INDEX).unlink()
    with_index, without = find_source(compacted[1]), find_source(str(tmp_path))
    assert [unit.facts for unit in with_index.units] == [unit.facts for unit in without.units]
    assert [unit.num_rows for unit in with_index.units] == [3] * NUM_SHARDS
    assert image_facts(find_images(compacted[1])) == image_facts(find_images(compacted[0]))
    # As plain Parquet files, as other tools see them.
    assert rows_of(f"{compacted[1]}/data") == rows_of(compacted[0])
    first = pq.read_table(f"{compacted[1]}/data").to_pylist()
    assert first == rows_as_stored(compacted[0])


def rows_as_stored(dataset: str) -> list[dict[str, Any]]:
    parts = [pq.ParquetFile(file).read() for file in sorted(Path(dataset, "data").iterdir())]
    return [row for part in parts for row in part.to_pylist()]


def test_ray_and_hugging_face_read_it(compacted: tuple[str, str, dict[str, Any]], tmp_path: Path) -> None:
    rows = rows_of(compacted[0])
    # In any order: Ray Data hands rows over as its tasks end.
    on_ray = {row["image_id"]: row for row in read_images(compacted[1]).take_all()}
    assert sorted(on_ray) == sorted(row["image_id"] for row in rows)
    assert {row["image"].shape for row in on_ray.values()} == {(32, 32, 3)}
    for path in (compacted[1], f"{compacted[1]}/data"):
        loaded: Any = datasets.load_dataset(path, cache_dir=str(tmp_path))["train"]
        assert [row["image_id"] for row in loaded] == [row["image_id"] for row in rows]
        assert loaded.features["label"].names == store.read_manifest(compacted[0])["class_names"]
        assert loaded[0]["image"].size == (32, 32)


def test_no_synthesis_writes_into_it(compacted: tuple[str, str, dict[str, Any]]) -> None:
    with pytest.raises(DatasetError, match="holds a compacted dataset: synthesize needs a folder of its own"):
        check_output(compacted[1], "synthesize")


def test_run_again_it_makes_nothing_and_needs_no_cluster(
    compacted: tuple[str, str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, output, summary = compacted
    before = bytes_of(output)
    monkeypatch.setattr(ray, "remote", None)
    again = compact(make_config(dataset, output))
    assert {**again, "seconds": 0} == {**summary, "seconds": 0, "num_files_made": 0}
    assert bytes_of(output) == before


def test_twice_the_same_bytes_and_without_the_index_of_the_dataset_too(
    compacted: tuple[str, str, dict[str, Any]], tmp_path: Path
) -> None:
    upload_folder(compacted[0], str(tmp_path / "moved"))
    (tmp_path / "moved" / INDEX).unlink()
    compact(make_config(str(tmp_path / "moved"), tmp_path / "again"))
    assert bytes_of(tmp_path / "again") == bytes_of(compacted[1])


def test_killed_between_two_files_and_run_again_gives_the_same_bytes(
    compacted: tuple[str, str, dict[str, Any]], tmp_path: Path
) -> None:
    orders, output = tmp_path / "orders", tmp_path / "out"
    orders.mkdir()
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    (tmp_path / "compact.yaml").write_text(yaml.safe_dump(to_dict(make_config(compacted[0], output))))
    # With one file there, whichever worker is first to move another into place finds one.
    plan = plan_compaction(make_config(compacted[0], output))
    plan.merger.merge(plan.files[0])
    env = {"PYTHONPATH": str(tmp_path), "KILL_ORDERS": str(orders), "KILL_DATA": str(output / "data")}
    process = start(["-m", "jobs.compact", "--config", str(tmp_path / "compact.yaml")], env)
    (tmp_path / "order").write_text(str(process.pid))
    (tmp_path / "order").rename(orders / "os.rename-1")
    _, reported = process.communicate(timeout=200)
    assert process.returncode == -9, reported
    assert len(list((output / "data").iterdir())) == 1
    assert not (output / INDEX).exists()
    assert files_left(make_config(compacted[0], output)) == "1 of 4 files are written, run it again for the rest"
    with pytest.raises(DatasetError, match=r"is incomplete: it holds \d+ of 21 images; run its compaction again"):
        find_source(str(output)).check_complete()
    assert compact(make_config(compacted[0], output))["num_files_made"] == 3
    assert bytes_of(output) == bytes_of(compacted[1])


def test_two_at_once_write_each_file_once(compacted: tuple[str, str, dict[str, Any]], tmp_path: Path) -> None:
    config = make_config(compacted[0], tmp_path / "out")
    with ThreadPoolExecutor(2) as threads:
        summaries = list(threads.map(compact, [config, config]))
    assert sorted(summary["num_files_made"] for summary in summaries) == [0, 4]
    assert all(summary["complete"] for summary in summaries)
    assert bytes_of(tmp_path / "out") == bytes_of(compacted[1])


def test_a_run_that_was_stopped_before_its_first_file_says_so(dataset: str, tmp_path: Path) -> None:
    for output in (tmp_path / "nowhere", dataset):
        assert files_left(make_config(dataset, output)) == "nothing was made, run it again"


def test_missing_shards_stay_missing_with_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, output = make_dataset(str(tmp_path / "dataset"), without=(2, 5)), str(tmp_path / "compact")
    flags = ["--images", dataset, "--output", output]
    assert job.main(flags) == 1
    assert "incomplete: it holds 5 of 7 shards" in capsys.readouterr().err
    assert job.main([*flags, "--allow_incomplete", "true"]) == 0
    out, err = capsys.readouterr()
    *_, told, check = err.splitlines()
    assert re.fullmatch(rf"compact: 15 images of 5 parts are in 3 files, 0\.\d+ MB: {output}", told)
    assert check == f"check it: python -m jobs.status --uri {output}"
    assert (json.loads(out)["num_files"], json.loads(out)["num_missing"]) == (3, 2)
    assert re.search(r"plan: 5 parts, 0\.\d+ MB in all, into 3 files; shards without a part: 2\n", err)
    assert status.main([output]) == 1
    line = json.loads(capsys.readouterr().out)
    assert (line["missing"], [record["shard_id"] for record in line["failed"]]) == ([2], [5])
    assert rows_of(output) == rows_of(dataset)


def test_a_damaged_part_ends_the_job_in_one_line_and_what_is_written_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, output = make_dataset(str(tmp_path / "dataset")), tmp_path / "compact"
    part = Path(store.part_uri(dataset, 3, DIGEST))
    content = bytearray(part.read_bytes())
    content[1000] ^= 1
    part.write_bytes(content)
    flags = ["--images", dataset, "--output", str(output), "--file_mb", "0.04"]
    assert job.main(flags) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: DatasetError: ")
    assert "part-00003-01234567.parquet' is damaged, delete it and run the synthesis again: image '3-0'" in line
    write_part(dataset, 3)
    assert job.main(flags) == 0
    assert rows_of(str(output)) == rows_of(dataset)


def test_a_file_whose_worker_dies_is_merged_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, output = make_dataset(str(tmp_path / "dataset")), tmp_path / "compact"
    monkeypatch.setattr("pipeline.compaction.run._merge", die_once)
    assert compact(make_config(dataset, output))["num_files_made"] == 4
    assert rows_of(str(output)) == rows_of(dataset)


def test_files_that_only_their_worker_sees_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, output = make_dataset(str(tmp_path / "dataset")), tmp_path / "compact"
    monkeypatch.setattr("pipeline.compaction.run._merge", write_elsewhere)
    assert job.main(["--images", dataset, "--output", str(output), "--file_mb", "0.04"]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert f"{FILES[0]}' was written, and it is not there: is that a folder of a single machine?" in line


def test_a_disk_that_is_full_ends_the_job_and_says_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, output = make_dataset(str(tmp_path / "dataset")), tmp_path / "compact"
    monkeypatch.setattr("pipeline.compaction.run._merge", run_out_of_disk)
    flags = ["--images", dataset, "--output", str(output), "--file_mb", "0.04"]
    assert job.main(flags) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "of 4 files are written, run it again for the rest: " in line
    assert "No space left on device" in line


def test_from_and_to_an_object_store(s3: dict[str, str], s3_bucket: Any, tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "dataset"))
    upload_folder(dataset, "s3://made/dataset")
    config = make_config("s3://made/dataset", "s3://made/compact")
    assert with_env(config, s3)["num_files_made"] == 4
    assert rows_of("s3://made/compact") == rows_of(dataset)
    local = compact(make_config(dataset, tmp_path / "compact"))
    stored = {file.key: file.get()["Body"].read() for file in s3_bucket.objects.filter(Prefix="compact/")}
    assert {name.removeprefix("compact/"): content for name, content in stored.items()} == bytes_of(local["output"])


def with_env(config: Any, env: dict[str, str]) -> dict[str, Any]:
    """Run the job in a process whose workers know the way to the store."""
    process = start(["-m", "jobs.compact", *(f"--{name}={value}" for name, value in to_dict(config).items())], env)
    out, reported = process.communicate(timeout=200)
    assert process.returncode == 0, reported
    return json.loads(out)


def test_a_reader_opens_a_file_once_for_all_of_its_parts(
    compacted: tuple[str, str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_source(compacted[1])
    opened: list[str] = []
    whole = storage.open_file
    monkeypatch.setattr(storage, "open_file", lambda uri: opened.append(Path(uri).name) or whole(uri))
    tables = list(read_columns(source, "label"))
    assert [len(table) for table in tables] == [3] * NUM_SHARDS
    assert sorted(opened) == FILES
    opened.clear()
    with OpenFiles() as files:
        # In turns, as in a shuffled epoch.
        order = [0, 2, 4, 6, 5, 3, 1, 0]
        ids = [
            next(read_unit(source, source.units[unit], ["image_id"], files))["image_id"][0].as_py() for unit in order
        ]
    assert ids == [f"{unit}-0" for unit in order]
    assert sorted(opened) == FILES
